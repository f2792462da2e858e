"""Run by Alembic; the connection is handed in by ``virtha.store.migrate``."""

from alembic import context

from virtha.store import sign_in_schema  # noqa: F401 - its tables
from virtha.store.schema import metadata

connection = context.config.attributes["connection"]
# Batch mode: SQLite can't alter a constraint in place, so such a step copies the table.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
