"""The event stream: nothing lost, nothing doubled, resumable, prompt, and gone when the server stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from test_problems import check

from virtha.api.stream import encode_event, event_chunks
from virtha.control.events import StreamPlace
from virtha.model.codes import Severity
from virtha.model.errors import Unauthenticated
from virtha.model.event import Event
from virtha.model.ids import Revision
from virtha.server.listeners import Listener, bind_unix, unix_listener

Play = Callable[..., Any]
DEADLINE_S = 60.0


@contextlib.asynccontextmanager
async def served(world: Any, directory: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Listener]]:
    """The app behind a real uvicorn: a test client would collect the stream instead of streaming it."""
    path = directory / "s.sock"
    listener = unix_listener(world.app)
    sock = bind_unix(path)
    task = asyncio.create_task(listener.run_until_stopped(sock))
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(path)),
        base_url="http://virtha",
        headers=world.headers("viewer"),
        timeout=DEADLINE_S,
    ) as client:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await listener.accepting.wait()
            yield client, listener
        finally:
            world.services.stopping.set()
            listener.stop()
            async with asyncio.timeout(DEADLINE_S):
                await task


async def read_events(answer: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The next ``count`` events of an open stream, as (id, event, data)."""
    found: list[dict[str, Any]] = []
    current: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            current[name] = value
        elif not line and "data" in current:
            found.append(current)
            current = {}
            if len(found) == count:
                return found
    raise AssertionError(f"the stream ended after {found}")


async def make_events(world: Any, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        await world.ok("POST", "/v1/clusters", {"name": f"c{number}"})


def revision_of(event: dict[str, Any]) -> int:
    return int(event["id"].partition("-")[0])


def names_of(events: list[dict[str, Any]]) -> list[str]:
    return [msgspec.json.decode(event["data"])["fields"]["name"] for event in events]


def test_live_events_arrive_with_id_and_code(play: Play, tmp_path: Path) -> None:
    async def story(world: Any) -> None:
        async with (
            served(world, tmp_path) as (client, _),
            client.stream("GET", "/v1/events/stream") as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            await make_events(world, 3)
            events = await read_events(answer, 3)
        assert [event["event"] for event in events] == ["cluster.created"] * 3
        assert names_of(events) == ["c0", "c1", "c2"]
        for event in events:
            assert revision_of(event) == msgspec.json.decode(event["data"])["revision"]

    play(story)


@pytest.mark.req("W7")
def test_resumed_again_and_again_nothing_is_lost_or_doubled(play: Play, tmp_path: Path) -> None:
    """A reader that breaks off after each few events, while a writer goes on writing."""

    async def story(world: Any) -> None:
        start = (await world.ok("GET", "/healthz", role=None))["revision"]
        async with served(world, tmp_path) as (client, _):
            writer = asyncio.create_task(make_events(world, 30))
            found: list[dict[str, Any]] = []
            headers = {"Last-Event-ID": str(start)}
            for count in (1, 4, 2, 7, 3, 13):
                async with client.stream("GET", "/v1/events/stream", headers=headers) as answer:
                    found += await read_events(answer, count)
                headers = {"Last-Event-ID": found[-1]["id"]}
            await writer
        assert names_of(found) == [f"c{number}" for number in range(30)]
        ids = [revision_of(event) for event in found]
        assert ids == sorted(set(ids))
        listed = await world.ok("GET", f"/v1/events?after={start}&order=asc&limit=100")
        assert [event["revision"] for event in listed["items"]] == ids

    play(story)


def test_after_and_filter(play: Play, tmp_path: Path) -> None:
    async def story(world: Any) -> None:
        await make_events(world, 2)
        await world.ok("PUT", "/v1/hold", {"reason": "works"})
        async with (
            served(world, tmp_path) as (client, _),
            client.stream("GET", "/v1/events/stream?after=0&code=hold.*") as answer,
        ):
            (event,) = await read_events(answer, 1)
        assert event["event"] == "hold.set"

    play(story)


@pytest.mark.bad_input("stream from nowhere", story=True)
@pytest.mark.parametrize(
    ("query", "headers", "status", "field"),
    [
        ("?after=x", {}, 400, "after"),
        ("?befor=1", {}, 400, "befor"),
        ("", {"Last-Event-ID": "-1"}, 400, "Last-Event-ID"),
        ("", {"Last-Event-ID": "9" * 30}, 400, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1-"}, 400, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1-1A2B3C4D"}, 400, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1-00000000"}, 410, "Last-Event-ID"),
        ("", {"Last-Event-ID": "1000000"}, 400, "Last-Event-ID"),
        ("?after=1000000", {}, 400, "after"),
        ("?after=-1", {}, 400, "after"),
        ("?vm=nothing", {}, 404, None),
    ],
)
def test_refused_before_the_first_byte(
    play: Play, query: str, headers: dict[str, str], status: int, field: str | None
) -> None:
    async def story(world: Any) -> None:
        answer = await world.call("GET", f"/v1/events/stream{query}", headers=headers)
        assert answer.status_code == status, answer.text
        if field:
            assert answer.json()["field"] == field

    play(story)


def test_too_old_is_gone(play: Play) -> None:
    async def story(world: Any) -> None:
        await make_events(world, 3)
        async with world.store.write() as tx:
            from virtha.store.installations import newest_before, prune_events

            newest = await newest_before(tx, tx.clock.wall_ms() + 1_000)
            assert newest is not None and await prune_events(tx, newest, spared=()) > 0
            oldest = await tx.revision_now()
        for query, headers, field in (
            ("?after=1", {}, "after"),
            ("", {"Last-Event-ID": "1"}, "Last-Event-ID"),
        ):
            answer = await world.call("GET", f"/v1/events/stream{query}", headers=headers)
            problem = check(answer, 410, "problem.gone", field)
            assert f"oldest is {oldest}" in problem["fix"]
        answer = await world.call("GET", f"/v1/events/stream?after={oldest + 1}")
        problem = check(answer, 400, "problem.revision.future", "after")
        assert problem["allowed"] == [f"{oldest} to {oldest}"]

    play(story)


def test_streams_end_at_once_when_the_server_stops(play: Play, tmp_path: Path) -> None:
    async def story(world: Any) -> None:
        async with served(world, tmp_path) as (client, listener):
            async with client.stream("GET", "/v1/events/stream") as answer:
                lines = answer.aiter_lines()
                assert await anext(lines) == "retry: 1000"
                world.services.stopping.set()
                listener.stop()
                async with asyncio.timeout(60):  # without it they would never end
                    rest = [line async for line in lines]
            assert all(line.startswith((":", "id: ")) or not line for line in rest)

    play(story)


def test_a_wait_for_an_operation_ends_when_the_server_stops(play: Play) -> None:
    async def story(world: Any) -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        waiting = asyncio.create_task(world.services.unless_stopping(never()))
        await asyncio.sleep(0)
        world.services.stopping.set()
        from virtha.model.errors import Unavailable

        with pytest.raises(Unavailable):
            async with asyncio.timeout(DEADLINE_S):
                await waiting

    play(story)


def an_event(revision: int) -> Event:
    return Event(
        revision=Revision(revision), code="hold.set", severity=Severity.INFO, message="a\nb"
    )


def from_nothing() -> StreamPlace:
    return StreamPlace(0, "1a2b3c4d")


async def events_then_nothing(*revisions: int) -> AsyncIterator[Event]:
    for revision in revisions:
        yield an_event(revision)
    await asyncio.Event().wait()


async def allowed() -> None:
    """Always."""


def test_one_message_is_one_line_of_data() -> None:
    lines = encode_event(an_event(7), "1a2b3c4d").decode().split("\n")
    assert lines[0] == "id: 7-1a2b3c4d"
    assert lines[1] == "event: hold.set"
    assert lines[2].startswith("data: {") and lines[3:] == ["", ""]


def test_keep_alive_while_nothing_happens_and_events_are_not_lost_by_it() -> None:
    async def story() -> None:
        wake, moved = asyncio.Event(), asyncio.Event()

        place = from_nothing()

        async def events() -> AsyncIterator[Event]:
            place.revision = 1
            yield an_event(1)
            place.revision = 5  # four that this reader does not ask for
            await wake.wait()
            place.revision = 6
            moved.set()
            yield an_event(6)

        async def waking() -> None:
            """The next event comes while the keep-alive before it is on its way."""
            if len(found) == 5:
                wake.set()
                await moved.wait()

        found: list[bytes] = []
        chunks = event_chunks(events(), waking, place, keep_alive_s=0.01)
        async for chunk in chunks:
            found.append(chunk)
            if chunk.startswith(b"id: 6"):
                break
        await chunks.aclose()
        assert found[0] == b"retry: 1000\nid: 0-1a2b3c4d\n\n"
        ids = [chunk.partition(b"\nevent")[0] for chunk in found if b"\ndata: " in chunk]
        assert ids == [b"id: 1-1a2b3c4d", b"id: 6-1a2b3c4d"]
        alive = [chunk for chunk in found if chunk.startswith(b": keep-alive")]
        assert len(alive) >= 3
        assert set(alive) <= {
            b": keep-alive\nid: %d-1a2b3c4d\n\n" % revision for revision in (1, 5)
        }

    asyncio.run(story())


def test_a_token_that_ended_ends_the_stream() -> None:
    async def story() -> list[bytes]:
        async def ended() -> None:
            raise Unauthenticated("expired", code="problem.token.expired")

        return [
            chunk
            async for chunk in event_chunks(
                events_then_nothing(1), ended, from_nothing(), keep_alive_s=0
            )
        ]

    chunks = asyncio.run(story())
    assert chunks[-1] == b": ended, problem.token.expired\n\n"


def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtha.api import stream
    from virtha.api.metrics import Metrics

    monkeypatch.setattr(stream, "SEND_DEADLINE_S", 0.02)

    async def story() -> None:
        metrics = Metrics()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body"):
                await asyncio.Event().wait()

        async def receive() -> Any:
            await asyncio.Event().wait()

        chunks = event_chunks(events_then_nothing(1), allowed, from_nothing())
        response = stream.EventStreamResponse(chunks, {}, asyncio.Event(), metrics)
        async with asyncio.timeout(DEADLINE_S):
            scope: Any = {}
            await response(scope, receive, send)
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert metrics.streams_dropped._value.get() == 1
        assert metrics.streams._value.get() == 0

    asyncio.run(story())
