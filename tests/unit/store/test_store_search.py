"""Searches find what a second, dumb implementation over plain values finds, in the same order, page by page."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracle import Oracle
from searched_world import MOMENTS, NOUNS, NOW, TEXTS, World, fill
from searches import any_literals, queries
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite
from test_store_notifications import scripts_up_to

from virtha.model.errors import InvalidInput
from virtha.model.time import UtcMillis
from virtha.search import parse, print_query
from virtha.search.tree import Ago, Day, DayName, Instant, Literal, NamedDay, Number, Query
from virtha.search.vocabulary import Field, Kind
from virtha.store import Store, open_store, search
from virtha.store.migrate import migrate
from virtha.store.search import (
    Budget,
    Found,
    Log,
    Place,
    Wanted,
    events_statement,
    find,
    find_events,
    page_statement,
)
from virtha.store.search_fields import VOCABULARY

T = TypeVar("T")
PART = st.sampled_from(TEXTS)
SIZES = (0, 1, 2, 4, 7, 8, 512, 512 << 20, 1 << 30, 2 << 30, 8 << 30)
MORE_THAN_THERE_IS = 1_000


class Searcher:
    """One loop for all examples: to open the store costs more than a search."""

    def __init__(self, store: Store, world: World, runner: asyncio.Runner) -> None:
        self.store, self.world, self._runner = store, world, runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def keys(self, query: Query, limit: int, *, case_sensitive: bool = True) -> list[Any]:
        """Of all pages."""
        wanted = Wanted(query, NOW, case_sensitive, limit)
        found: list[Any] = []
        async with self.store.read() as tx:
            if query.noun == "Events":
                down = query.sort is None or query.sort.descending
                log: Log | None = Log(0, await tx.revision_now(), down)
                while log is not None:
                    part = await find_events(tx, wanted, log)
                    found += [event.revision for event in part.events]
                    log = log.behind(part.next) if part.next is not None else None
                return found
            after: Place | None = None
            while True:
                page = await find(tx, wanted, after)
                assert len(page.keys) <= limit
                found += page.keys
                after = page.next
                if after is None:
                    return found


@pytest.fixture(scope="module")
def searcher(
    tmp_path_factory: pytest.TempPathFactory, fresh_database: Callable[[Any], None]
) -> Iterator[Searcher]:
    directory = tmp_path_factory.mktemp("searched")
    fresh_database(directory)
    world = World()
    with asyncio.Runner() as runner:
        store = runner.run(open_store(f"sqlite:///{directory / 'virtha.db'}", clock=world.clock))
        runner.run(fill(store, world))
        yield Searcher(store, world, runner)
        runner.run(store.close())


def there(field: Field) -> st.SearchStrategy[Literal]:
    """Values near those that the world has."""
    if field.kind is Kind.DURATION:
        return st.sampled_from((1_000, 3_000, 6_000)).map(lambda ms: Number(number=ms))
    if field.kind in (Kind.NUMBER, Kind.SIZE):
        return st.sampled_from(SIZES).map(lambda number: Number(number=number))
    if field.kind is Kind.TIME:
        days = ("2026-03-25", "2026-03-24", "2026-03-19")
        return st.one_of(
            st.sampled_from(MOMENTS).map(lambda at: Instant(at=UtcMillis(at))),
            st.sampled_from(days).map(lambda date: Day(date=date)),
            st.sampled_from(DayName).map(lambda name: NamedDay(name=name)),
            st.sampled_from((0, 3_600_000, 86_400_000)).map(lambda ms: Ago(duration_ms=ms)),
        )
    return any_literals(PART)(field)


@pytest.mark.req("W9")
@pytest.mark.parametrize("noun", NOUNS)
def test_a_search_finds_what_the_oracle_finds(
    searcher: Searcher, noun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EVENT_WINDOW", 2)

    @given(queries(VOCABULARY, noun, PART, there), st.booleans(), st.sampled_from((1, 2, 3, 100)))
    @settings(max_examples=150)
    def same(query: Query, case_sensitive: bool, limit: int) -> None:
        assert parse(print_query(query, VOCABULARY), VOCABULARY, noun) == query
        oracle = Oracle(VOCABULARY, NOW, case_sensitive)
        rows = oracle.found(
            query, searcher.world.rows[noun], name="id" if noun == "Events" else "name"
        )
        expected = [row.values["id"] for row in rows]
        if noun == "Events":
            down = query.sort is None or query.sort.descending
            expected = sorted(expected, reverse=down)
        found = searcher.run(searcher.keys(query, limit, case_sensitive=case_sensitive))
        assert found == expected, print_query(query, VOCABULARY)

    same()


def ask(searcher: Searcher, noun: str, text: str, limit: int = 100) -> list[str]:
    query = parse(text, VOCABULARY, noun)
    found = searcher.run(searcher.keys(query, limit))
    name = "code" if noun == "Events" else "name"
    by_id = {row.values["id"]: row.values[name] for row in searcher.world.rows[noun]}
    return [by_id[key] for key in found]


@pytest.mark.req("W9")
@pytest.mark.parametrize(
    ("noun", "text", "expected"),
    [
        ("Vms", "last_event != null", ["WEB2", "a*b", "db", "web1"]),
        ("Vms", "last_event = null", ["web[3]"]),
        ("Vms", 'last_event > "2026-01-01" sortby last_event desc', ["WEB2", "web1", "db", "a*b"]),
        ("Vms", "last_event = yesterday", ["db"]),
        ("Vms", "last_event > -2h", ["WEB2"]),
        ("Vms", "web*", []),
        ("Vms", "name=web*", ["web1", "web[3]"]),
        ("Vms", "host != h1", ["a*b", "db", "web[3]"]),
        ("Vms", "Hosts.name != h1", ["a*b", "web[3]"]),
        ("Vms", "host = null", ["db"]),
        ("Vms", r'name = "a\*b"', ["a*b"]),
        ("Vms", "memory < 1GiB and ha = true or status = paused", ["WEB2", "db"]),
        ("Vms", "watchdog = null sortby name desc", ["web[3]", "db"]),
        ("Vms", "incident != null", ["web[3]"]),
        ("Vms", "priority > 1 sortby priority desc", ["db", "web1"]),
        ("Vms", "priority = 0", ["WEB2", "web[3]"]),
        ("Vms", "grade = observe", ["web1"]),
        ("Vms", "grade = fence", ["WEB2", "a*b", "web[3]"]),
        ("Vms", "policy.detection.dead_after < 5s", ["a*b", "db"]),
        ("Hosts", "policy.detection.dead_after < 5s", ["host_2"]),
        ("Templates", "priority = 7", ["web"]),
        ("Vms", "Events.severity > normal", ["WEB2", "web1"]),
        ("Vms", "Storage.name = nfs1 Clusters.name = east", ["WEB2", "web1"]),
        ("Hosts", "Vms.status = up", ["h1"]),
        ("Hosts", "vms.ha = true and status = up", ["h1"]),
        ("Hosts", "incident != null", ["H1"]),
        ("Events", "severity >= error", ["incident.opened", "host.unreachable"]),
        ("Events", "event_vm = web1 sortby time asc", ["vm.created", "vm.watchdog.fired"]),
        ("Events", "Hosts = h1", ["vm.watchdog.fired", "vm.watchdog.fired"]),
        ("Templates", "watchdog = i6300esb", ["web"]),
        ("Clusters", "Vms.watchdog != null and description = *EAST", ["east"]),
        ("Clusters", "policy.detection.dead_after < 5s", ["We%st"]),
        ("Vms", "Clusters.policy.detection.dead_after > 5s and name = web*", ["web1", "web[3]"]),
        ("Storage", "type = ceph-rbd", ["rbd"]),
        ("Users", "role = administrator", ["admin"]),
    ],
)
def test_searches_as_people_write_them(
    searcher: Searcher, noun: str, text: str, expected: list[str]
) -> None:
    if text == "web*":
        expected = ["web1", "web[3]"]  # free text stands anywhere
    assert ask(searcher, noun, text) == expected


@pytest.mark.bad_input("search that smuggles")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('description = "é\'; DROP TABLE vm; --"', ["db"]),
        ("\"' OR '1'='1\"", []),
        ("name = '1'='1'", []),
        ("name = x';--", []),
        ('name = "x\' UNION SELECT password_hash FROM user_account --"', []),
        ("name = %", []),
        ("name = web_", []),
        ("name = web?", []),
        ("name = web[0-9]", []),
        ("name = web[3]", ["web[3]"]),
        ('description = "100%*"', ["WEB2"]),
        ("description = a_b", ["web[3]"]),
        ("description = aXb", []),
    ],
)
def test_nothing_in_a_value_is_more_than_text(
    searcher: Searcher, text: str, expected: list[str]
) -> None:
    query = parse(text, VOCABULARY, "Vms")
    for case_sensitive in (True, False):
        found = searcher.run(searcher.keys(query, 100, case_sensitive=case_sensitive))
        assert found == [f"id-{name}" for name in expected]


@pytest.mark.parametrize("noun", NOUNS)
def test_every_field_can_be_asked_and_sorted_by(searcher: Searcher, noun: str) -> None:
    for field in VOCABULARY[noun].fields.values():
        rows = len(searcher.world.rows[noun])
        if field.nullable:
            some = ask(searcher, noun, f"{field.name} = null")
            rest = ask(searcher, noun, f"{field.name} != null")
            assert len(some) + len(rest) == rows, field.name
            assert some and rest, f"{field.name}: the world has both"
        if field.sortable:
            assert len(ask(searcher, noun, f"sortby {field.name}", limit=1)) == rows


def test_pages_by_number(searcher: Searcher) -> None:
    async def page(text: str) -> Found:
        async with searcher.store.read() as tx:
            wanted = Wanted(parse(text, VOCABULARY, "Vms"), NOW, True, 2)
            return await find(tx, wanted, None)

    async def events(text: str) -> list[str]:
        async with searcher.store.read() as tx:
            wanted = Wanted(parse(text, VOCABULARY, "Events"), NOW, True, 2)
            found = await find_events(tx, wanted, Log(0, await tx.revision_now(), True))
            assert found.next is None
            return [event.code for event in found.events]

    assert searcher.run(page("page 1")).keys == ("id-WEB2", "id-a*b")
    assert searcher.run(page("page 2")) == Found(("id-db", "id-web1"), None)
    assert searcher.run(page("page 3")).keys == ("id-web[3]",)
    assert searcher.run(page("page 4")).keys == ()
    assert searcher.run(page("page 1000000")).keys == ()
    assert searcher.run(events("page 2")) == ["host.unreachable", "vm.watchdog.fired"]
    assert searcher.run(events("page 9")) == []


@pytest.mark.bad_input("search that asks too much")
def test_work_is_bounded_by_the_databases_own_steps(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "STEP_OPCODES", 1)
    monkeypatch.setattr(search, "STEPS_MAX", 50)
    for noun in ("Vms", "Events"):
        query = parse("a or b or c", VOCABULARY, noun)
        with pytest.raises(InvalidInput) as caught:
            searcher.run(searcher.keys(query, 100))
        assert (caught.value.code, caught.value.field) == ("problem.search.costly", "search")
    monkeypatch.setattr(search, "STEPS_MAX", 1_000_000)
    # The same connections serve on.
    assert len(searcher.run(searcher.keys(parse("", VOCABULARY, "Vms"), 100))) == 5
    with pytest.raises(InvalidInput, match="more than one request may"):
        searcher.run(searcher.keys(parse("page 1000000", VOCABULARY, "Events"), 100))


def test_a_budget_that_was_left_behind_stops_nothing() -> None:
    budget = Budget(1)
    assert [budget.tick(), budget.tick(), budget.exceeded] == [0, 1, True]
    budget.end()
    assert budget.tick() == 0


def test_a_page_of_rare_events_ends_after_so_much_of_the_log(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "STEP_OPCODES", 1)
    monkeypatch.setattr(search, "EVENT_STEPS", 1)
    monkeypatch.setattr(search, "EVENT_WINDOW", 1)

    async def pages() -> list[int]:
        found = []
        async with searcher.store.read() as tx:
            wanted = Wanted(parse("code = server.started", VOCABULARY, "Events"), NOW, True, 100)
            log: Log | None = Log(0, await tx.revision_now(), True)
            while log is not None:
                part = await find_events(tx, wanted, log)
                found.append(len(part.events))
                log = log.behind(part.next) if part.next is not None else None
        return found

    found = searcher.run(pages())
    assert sum(found) == 1
    assert len(found) > 5, "most pages are empty, and still not the last"


def test_vms_of_before_searches_are_found_as_well(tmp_path: Path) -> None:
    """The columns are filled from the records when the database is brought up to date."""
    database = tmp_path / "virtha.db"
    migrate(database, migrations=scripts_up_to(tmp_path, "0009"))
    card = '{"model":"i6300esb","action":"reset"}'
    bodies = {
        "a": f'{{"description":"é","memory_bytes":{1 << 30},"vcpus":2,"watchdog":{card}}}',
        "b": '{"memory_bytes":512,"watchdog":null}',
    }
    with closing(sqlite3.connect(database)) as old, old:
        old.execute("INSERT INTO cluster VALUES ('c', 'c', '{}', 1)")
        for name, body in bodies.items():
            old.execute("INSERT INTO vm VALUES (?, ?, 'c', 0, ?, 1)", (name, name, body))
        old.execute(
            "INSERT INTO vm_status VALUES ('a', 'down', NULL, ?, 1)",
            ('{"last_watchdog":7,"watchdog_count":3}',),
        )
        old.execute("INSERT INTO vm_status VALUES ('b', 'down', NULL, '{}', 1)")
    migrate(database)
    with closing(sqlite3.connect(database)) as new:
        columns = "description, memory_bytes, vcpus, watchdog, watchdog_action, priority"
        assert new.execute(f"SELECT {columns} FROM vm ORDER BY id").fetchall() == [
            ("é", 1 << 30, 2, "i6300esb", "reset", 0),
            ("", 512, 1, None, None, 0),
        ]
        statuses = "SELECT last_watchdog, watchdog_count FROM vm_status ORDER BY vm_id"
        assert new.execute(statuses).fetchall() == [(7, 3), (None, 0)]


@pytest.mark.parametrize(
    ("noun", "text", "index"),
    [
        ("Vms", "", "vm_1 USING COVERING INDEX ix_vm_searched"),
        ("Vms", "name = web*", "vm_1 USING COVERING INDEX ix_vm_searched (name>? AND name<?)"),
        ("Vms", "web and priority > 3", "SCAN vm_1 USING COVERING INDEX ix_vm_searched"),
        ("Vms", "sortby last_event desc", "ix_vm_status_last_watchdog"),
        ("Vms", "Hosts.name = h1", "ix_vm_status_host_id (host_id=?)"),
        ("Vms", "Events.code = vm.created", "ix_event_code_revision_at (code=?)"),
        ("Vms", "Events.time > today", "ix_event_at (at>?)"),
        ("Vms", "incident != null", "ix_incident_open_closed (open=?)"),
        ("Vms", "ovirt_status = up", "ix_operation_subject_open (subject=? AND open=?)"),
        ("Events", "event_vm = web1", "ix_event_vm_id_revision (vm_id=? AND revision>? AND"),
        ("Events", "event_host = h1", "ix_event_host_id_revision (host_id=? AND revision>? AND"),
        ("Events", "code = vm.created", "ix_event_code_revision_at (code=? AND revision>? AND"),
        ("Events", "message = *a*", "sqlite_autoindex_event_1 (revision>? AND revision<?)"),
    ],
)
def test_what_lists_are_asked_for_most_is_found_by_index(
    searcher: Searcher, noun: str, text: str, index: str
) -> None:
    wanted = Wanted(parse(text, VOCABULARY, noun), NOW, True, 100)
    if noun == "Events":
        statement: Select[Any] = events_statement(wanted, Log(0, 100, True)).limit(100)
    else:
        statement, _ = page_statement(wanted, None)

    async def plan() -> list[str]:
        made = statement.compile(
            dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True}
        )
        values = tuple(made.params[name] for name in made.positiontup or ())
        async with searcher.store.read() as tx:
            rows = await tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {made}", values)
            return [row[3] for row in rows]

    assert any(index in step for step in searcher.run(plan()))
