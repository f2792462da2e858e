"""Requests with a key are carried out once: repeated, at once, by a server that died in between."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from empty_database import lay_empty_database
from sqlalchemy.exc import IntegrityError

from virtha.control import keyed_requests
from virtha.control.keyed_requests import KEPT_MS, Asked, KeyedRequests, asked
from virtha.control.views import Caller
from virtha.model.errors import Conflict, Refused, Unavailable, VirthaError
from virtha.model.host import Cluster, Installation
from virtha.model.ids import ClusterId, InstallationId
from virtha.model.kept_answer import KeptAnswer
from virtha.model.time import Millis, UtcMillis
from virtha.model.user import Role
from virtha.store import Store, open_store
from virtha.store.clusters import all_clusters, save_cluster
from virtha.store.installations import add_installation

EVE, BOB = (Caller(name=name, role=Role.OPERATOR) for name in ("eve", "bob"))
KEY = "c0ffee00-0000-4000-8000-000000000001"
SAID = b'["POST","/v1/clusters",{"name":"east","password":"swordfish"}]'
REQUEST = asked(EVE, KEY, SAID)


_FAILS_AT_THE_END = (
    "CREATE TEMP TRIGGER fails BEFORE UPDATE OF revision ON installation "
    "BEGIN SELECT RAISE(ABORT, 'no'); END"
)
"""Undone with its transaction."""


class Killed(BaseException):
    """Of a server: nothing catches it."""


class Clock:
    now = 1_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(1_700_000_000_000 + self.now)


class Installed:
    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.requests = KeyedRequests(store)

    async def make(self, name: str) -> str:
        async with self.store.write() as tx:
            await save_cluster(tx, Cluster(id=ClusterId(name), name=name))
        return name

    async def names(self) -> list[str]:
        async with self.store.read() as tx:
            return [one.name for one in await all_clusters(tx)]

    async def carry_out(self, request: Asked, work: Awaitable[str]) -> str:
        return await self.requests.carry_out(
            request, work, answer_of=answered, refusal_of=refused_with
        )

    def after_restart(self) -> KeyedRequests:
        """What was only in memory is gone."""
        return KeyedRequests(self.store)


def answered(name: str) -> KeptAnswer:
    return KeptAnswer(status=201, body=f'{{"name":"{name}"}}', revision=7, location=f"/{name}")


def refused_with(error: VirthaError) -> KeptAnswer:
    return KeptAnswer(status=error.http_status, body=error.message)


Story = Callable[[Installed], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], None]:
    lay_empty_database(tmp_path)

    def run(story: Story) -> None:
        async def main() -> None:
            clock = Clock()
            store = await open_store(f"sqlite:///{tmp_path}/virtha.db", clock=clock)
            try:
                async with store.write() as tx:
                    made = Installation(id=InstallationId("i1"))
                    await add_installation(tx, made, timeline="t1")
                await story(Installed(store, clock))
            finally:
                await store.close()

        asyncio.run(main())

    return run


Play = Callable[[Story], None]


def test_a_repeated_request_is_answered_and_not_carried_out_again(play: Play) -> None:
    async def story(here: Installed) -> None:
        assert await here.requests.answer_to(REQUEST) is None
        assert await here.carry_out(REQUEST, here.make("east")) == "east"
        for requests in (here.requests, here.after_restart()):
            assert await requests.answer_to(REQUEST) == answered("east")
        assert await here.requests.answer_to(asked(BOB, KEY, SAID)) is None, "keys are each user's"
        assert await here.requests.answer_to(asked(EVE, KEY + "2", SAID)) is None

    play(story)


def test_two_of_one_key_leave_the_first_ones_mark(play: Play) -> None:
    """Else a third was told that the server had failed, while the first went on: and who asks for it anew has it twice."""

    async def story(here: Installed) -> None:
        go = asyncio.Event()

        async def slow() -> str:
            made = await here.make("east")
            await go.wait()
            return made

        assert await here.requests.answer_to(REQUEST) is None
        assert await here.requests.answer_to(REQUEST) is None, "the second, before either began"
        first = asyncio.create_task(here.carry_out(REQUEST, slow()))
        while await here.names() != ["east"]:
            await asyncio.sleep(0)
        asked_again = (
            lambda: here.carry_out(REQUEST, here.make("west")),
            lambda: here.requests.answer_to(REQUEST),
        )
        for again in asked_again:
            with pytest.raises(Conflict) as caught:
                await again()
            assert caught.value.code == "problem.key.under_way"
        go.set()
        assert await first == "east"
        assert await here.requests.answer_to(REQUEST) == answered("east")
        assert await here.names() == ["east"]

    play(story)


@pytest.mark.bad_input("key of another request")
def test_a_key_of_another_request_is_refused(play: Play) -> None:
    async def story(here: Installed) -> None:
        await here.carry_out(REQUEST, here.make("east"))
        with pytest.raises(Refused) as caught:
            await here.requests.answer_to(asked(EVE, KEY, SAID + b" "))
        assert (caught.value.code, caught.value.field) == ("problem.key.reused", "Idempotency-Key")
        assert "a key of its own" in caught.value.fix

    play(story)


def test_what_was_refused_leaves_its_key_free(play: Play) -> None:
    async def refused(here: Installed) -> str:
        async with here.store.write() as tx:
            await save_cluster(tx, Cluster(id=ClusterId("x"), name="x"))
            raise Conflict("no")

    async def story(here: Installed) -> None:
        with pytest.raises(Conflict):
            await here.carry_out(REQUEST, refused(here))
        assert await here.requests.answer_to(REQUEST) is None
        await here.carry_out(REQUEST, here.make("east"))
        assert await here.names() == ["east"]

    play(story)


def test_what_found_nothing_to_change_changes_nothing_later_either(play: Play) -> None:
    async def nothing_to_do(here: Installed) -> str:
        async with here.store.write():
            return "nothing"

    async def story(here: Installed) -> None:
        assert await here.carry_out(REQUEST, nothing_to_do(here)) == "nothing"
        for requests in (here.requests, here.after_restart()):
            assert await requests.answer_to(REQUEST) == answered("nothing")
        # Another of the same key that had looked before, and comes behind it.
        assert await here.carry_out(REQUEST, nothing_to_do(here)) == "nothing"
        with pytest.raises(Conflict):
            await here.carry_out(REQUEST, here.make("east"))
        assert await here.names() == []

    play(story)


def test_what_is_refused_after_its_first_write_is_refused_again(play: Play) -> None:
    """It is carried out in part: to do it again would do that part twice."""

    async def in_part(here: Installed) -> str:
        await here.make("east")
        raise Unavailable("nobody answered in time")

    async def story(here: Installed) -> None:
        with pytest.raises(Unavailable):
            await here.carry_out(REQUEST, in_part(here))
        for requests in (here.requests, here.after_restart()):
            kept = await requests.answer_to(REQUEST)
            assert kept == KeptAnswer(status=503, body="nobody answered in time")
        assert await here.names() == ["east"]

    play(story)


def test_a_write_that_is_undone_leaves_the_next_one_to_be_the_first(play: Play) -> None:
    async def tries_twice(here: Installed) -> str:
        with pytest.raises(IntegrityError):
            async with here.store.write() as tx:
                await save_cluster(tx, Cluster(id=ClusterId("x"), name="x"))
                await tx.connection.exec_driver_sql(_FAILS_AT_THE_END)
        return await here.make("east")

    async def story(here: Installed) -> None:
        await here.carry_out(REQUEST, tries_twice(here))
        assert await here.after_restart().answer_to(REQUEST) == answered("east")
        assert await here.names() == ["east"]

    play(story)


def test_of_two_at_once_one_is_carried_out(play: Play) -> None:
    async def story(here: Installed) -> None:
        go = asyncio.Event()

        async def slow() -> str:
            await go.wait()
            return await here.make("east")

        first = asyncio.create_task(here.carry_out(REQUEST, slow()))
        await asyncio.sleep(0)
        with pytest.raises(Conflict) as caught:
            await here.requests.answer_to(REQUEST)
        assert caught.value.code == "problem.key.under_way"
        # At another server, which knows nothing of the first, it comes to its write, too.
        elsewhere = here.after_restart()
        second = elsewhere.carry_out(
            REQUEST, here.make("west"), answer_of=answered, refusal_of=refused_with
        )
        assert await second == "west"
        go.set()
        with pytest.raises(Conflict) as caught:
            await first
        assert caught.value.code == "problem.key.under_way"
        assert await here.names() == ["west"], "its write is undone"
        assert await here.requests.answer_to(REQUEST) == answered("west")

    play(story)


def test_a_server_that_dies_before_it_answers_does_not_do_it_again(play: Play) -> None:
    def dies(name: str) -> KeptAnswer:
        raise Killed

    async def story(here: Installed) -> None:
        with pytest.raises(Killed):
            await here.requests.carry_out(
                REQUEST, here.make("east"), answer_of=dies, refusal_of=refused_with
            )
        after = here.after_restart()
        with pytest.raises(Conflict) as caught:
            await after.answer_to(REQUEST)
        assert caught.value.code == "problem.key.answer_lost"
        with pytest.raises(Conflict):
            await after.carry_out(
                REQUEST, here.make("east2"), answer_of=answered, refusal_of=refused_with
            )
        assert await here.names() == ["east"]

    play(story)


def test_an_answer_that_can_not_be_kept_is_given_all_the_same(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise Unavailable("no space left")

    monkeypatch.setattr(keyed_requests, "save_kept_answer", full)

    async def story(here: Installed) -> None:
        assert await here.carry_out(REQUEST, here.make("east")) == "east"
        with pytest.raises(Conflict) as caught:
            await here.requests.answer_to(REQUEST)
        assert caught.value.code == "problem.key.answer_lost"

    play(story)


def test_a_key_is_forgotten_after_a_day(play: Play) -> None:
    async def story(here: Installed) -> None:
        await here.carry_out(REQUEST, here.make("east"))
        here.clock.now += KEPT_MS
        assert await here.requests.answer_to(REQUEST) is not None
        assert await here.requests.prune() == 0
        here.clock.now += 1
        assert await here.requests.answer_to(REQUEST) is None
        await here.carry_out(REQUEST, here.make("west"))
        assert await here.requests.answer_to(REQUEST) == answered("west")
        here.clock.now += KEPT_MS + 1
        assert await here.requests.prune() == 1

    play(story)


def test_of_too_many_the_oldest_are_forgotten(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_requests, "KEPT_MAX", 3)

    async def story(here: Installed) -> None:
        made = [asked(EVE, KEY + str(number), SAID) for number in range(5)]
        for number, request in enumerate(made):
            here.clock.now += 1
            await here.carry_out(request, here.make(f"c{number}"))
            assert await here.requests.prune() == (1 if number >= 3 else 0)
        found = [await here.requests.answer_to(request) for request in made]
        assert [one is not None for one in found] == [False, False, True, True, True]

    play(story)


def test_several_writes_are_one_request_and_what_goes_on_behind_it_is_none(play: Play) -> None:
    async def story(here: Installed) -> None:
        go = asyncio.Event()
        left: list[asyncio.Task[str]] = []

        async def later() -> str:
            await go.wait()
            return await here.make("later")

        async def two() -> str:
            left.append(asyncio.create_task(later()))
            await here.make("east")
            return await here.make("west")

        async def refused() -> str:
            left.append(asyncio.create_task(later()))
            raise Conflict("no")

        await here.carry_out(REQUEST, two())
        assert await here.requests.answer_to(REQUEST) == answered("west")
        other = asked(BOB, KEY, SAID)
        with pytest.raises(Conflict):
            await here.carry_out(other, refused())
        go.set()
        await asyncio.gather(*left)
        assert await here.after_restart().answer_to(other) is None
        assert await here.names() == ["east", "later", "west"]

    play(story)


def test_neither_key_nor_request_can_be_read_from_the_database(play: Play, tmp_path: Path) -> None:
    async def story(here: Installed) -> None:
        await here.carry_out(REQUEST, here.make("east"))

    play(story)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert REQUEST.id.encode() in written
    assert KEY.encode() not in written and b"swordfish" not in written
