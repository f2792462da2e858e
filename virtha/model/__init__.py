"""Nouns: frozen values, ids, time, reasons, events, commands, policy. No I/O, no clock, no randomness."""
