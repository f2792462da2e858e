"""The migration that brought notifications: a database of before it, with data, goes on."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from virtha.store.migrate import MIGRATIONS, migrate


def scripts_up_to(tmp_path: Path, last: str) -> Path:
    """The migrations as they were when ``last`` was the newest."""
    scripts = tmp_path / f"migrations-{last}"
    shutil.copytree(MIGRATIONS, scripts)
    for path in (scripts / "versions").glob("v*.py"):
        if path.name[1:5] > last:
            path.unlink()
    return scripts


def test_an_installation_of_before_notifications_keeps_all_it_had(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    migrate(database, migrations=scripts_up_to(tmp_path, "0001"))
    with closing(sqlite3.connect(database)) as old, old:
        old.execute(
            "INSERT INTO installation VALUES ('i', 'virtha', NULL, 41, 3, 't', 0, 0)",
        )
        old.execute("INSERT INTO user_account VALUES ('u', 'admin', 'administrator', 1, 'hash', 2)")
        old.execute(
            "INSERT INTO token VALUES ('t', 'access', 'h', NULL, 'u', 9, '{}', 3)",
        )
        old.execute("INSERT INTO event VALUES (5, 'hold.set', 1, NULL, NULL, NULL, 7, '{}')")
    backup = migrate(database)
    assert backup is not None and backup.name.startswith("virtha.db.before-0001-")
    with closing(sqlite3.connect(database)) as new:
        assert new.execute("SELECT name, role, enabled, email FROM user_account").fetchall() == [
            ("admin", "administrator", 1, None)
        ]
        assert new.execute("SELECT id, user_id FROM token").fetchall() == [("t", "u")]
        assert new.execute("SELECT revision, code FROM event").fetchall() == [(5, "hold.set")]
        assert new.execute("SELECT revision FROM installation").fetchall() == [(41,)]
        assert new.execute("SELECT count(*) FROM delivery").fetchall() == [(0,)]
        assert new.execute("PRAGMA foreign_key_check").fetchall() == []
