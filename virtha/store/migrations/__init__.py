"""Alembic's migrations; forward only. ``versions/`` holds one file per step, run by ``store.migrate``."""
