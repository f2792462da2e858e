"""The host's own decisions, pure: the sentinel (restarts, watchdog, panic) and the guardian (beats, kills)."""
