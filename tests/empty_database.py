"""A migrated database that holds nothing: to migrate one costs more than most tests do with it."""

import functools
import tempfile
from pathlib import Path


@functools.cache
def _content() -> bytes:
    # Here: many a run of a single test needs none of it.
    from virtha.store.migrate import migrate

    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, "virtha.db")
        migrate(made)
        return made.read_bytes()


def lay_empty_database(directory: Path) -> None:
    """``directory``/virtha.db, where there is none yet."""
    path = directory / "virtha.db"
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(_content())
