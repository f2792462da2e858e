"""The migration that brought notifications: a database of before it, with data, goes on."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from virtha.model.codes import Severity
from virtha.model.ids import ReceiverId, Revision, SubscriptionId
from virtha.model.notification import Subscription
from virtha.model.routing import GroupBy
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


def test_a_subscription_of_before_routes_is_the_route_that_it_was(tmp_path: Path) -> None:
    """Its body says nothing of groups, repeats or quiet hours; a message that waits goes on waiting."""
    database = tmp_path / "virtha.db"
    migrate(database, migrations=scripts_up_to(tmp_path, "0009"))
    body = (
        '{"id":"s","name":"mail1-1","receiver_id":"r","address":"a@example.org",'
        '"codes":["vm.*"],"severity":"warning","enabled":true,"since":7,"revision":7}'
    )
    with closing(sqlite3.connect(database)) as old, old:
        old.execute("INSERT INTO receiver VALUES ('r', 'mail1', 1, '{}', NULL, 3)")
        old.execute(
            "INSERT INTO subscription (id, name, receiver_id, user_id, body, revision) "
            "VALUES ('s', 'mail1-1', 'r', NULL, ?, 7)",
            (body,),
        )
        old.execute(
            "INSERT INTO delivery (id, number, subscription_id, receiver_id, event_revision, test, state, "
            "wait_until, attempts, created, expires) VALUES ('d', 1, 's', 'r', 9, 0, 'pending', 0, 0, 1, 2)"
        )
    migrate(database)
    with closing(sqlite3.connect(database)) as new:
        (kept,) = new.execute("SELECT body FROM subscription").fetchone()
        assert new.execute("SELECT id, state, about FROM delivery").fetchall() == [
            ("d", "pending", None)
        ]
        for table in ("route_group", "event_fate", "silence", "inhibition"):
            assert new.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
    route = msgspec.json.decode(kept, type=Subscription)
    assert route == Subscription(
        id=SubscriptionId("s"),
        name="mail1-1",
        receiver_id=ReceiverId("r"),
        address="a@example.org",
        codes=("vm.*",),
        severity=Severity.WARNING,
        since=Revision(7),
        revision=Revision(7),
    )
    assert not route.solved and route.group_by is GroupBy.NONE and route.quiet == ()
