"""Narrow Protocols between the decision cores' callers and the world. Owned by the user side."""
