"""PURE: who is told of an event, when it is tried again, and what a message says (W7)."""
