"""Telling people and machines what happened: what a message says. PURE: no clock, no chance, no I/O (W7)."""
