"""The event stream: parsing, resuming without a loss or a double, and giving up."""

import json
from collections.abc import Callable

import msgspec
import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import event, page, vm_view

from virtha.cli import event as event_module
from virtha.cli.stream import LINE_BYTES_MAX, ServerEvent, parse_events, split_lines
from virtha.model.errors import Failed
from virtha.model.event import Event

Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_module, "RETRY_S", 0.001)
    monkeypatch.setattr(event_module, "RETRY_S_MAX", 0.001)


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("id: 4\nevent: vm.started\ndata: {}\n\n", [ServerEvent("4", "vm.started", "{}")]),
        ("data:a\ndata: b\n\n", [ServerEvent("", "message", "a\nb")]),
        (": keep-alive\n\nretry: 1000\n\n", []),
        (
            "id: 4\ndata: a\n\ndata: b\n\n",
            [ServerEvent("4", "message", "a"), ServerEvent("4", "message", "b")],
        ),
        ("id: 4\ndata: half", []),
        ("id: 4\ndata: half\n", []),
        ("id: 4\r\ndata: a\r\n\r\n", [ServerEvent("4", "message", "a")]),
        ("nonsense\n\nevent: x\n\n", []),
        ("id: 1\0\ndata: a\n\n", [ServerEvent("", "message", "a")]),
    ],
)
def test_stream_format(text: str, events: list[ServerEvent]) -> None:
    raw = text.encode()
    assert list(parse_events(split_lines([raw]))) == events
    # However the network cuts it.
    assert list(parse_events(split_lines(raw[i : i + 1] for i in range(len(raw))))) == events


def test_only_line_feeds_and_carriage_returns_end_a_line() -> None:
    """JSON may hold U+2028 or U+0085 as they are; Python's splitlines would cut an event there."""
    raw = "data: a\u2028b\x85c\x0bd\r\ndata: e\rdata: f\n\r".encode()
    for size in (1, 2, 3, 100):
        chunks = [raw[i : i + size] for i in range(0, len(raw), size)]
        assert list(split_lines(chunks)) == ["data: a\u2028b\x85c\x0bd", "data: e", "data: f", ""]


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    with pytest.raises(Failed, match="longer than"):
        list(split_lines(b"x" * 4096 for _ in range(LINE_BYTES_MAX)))


def frame(one: Event) -> bytes:
    head = f"id: {one.revision}-1a2b3c4d\nevent: {one.code}\ndata: ".encode()
    return head + msgspec.json.encode(one) + b"\n\n"


def stream(*chunks: bytes, cut: bool = False) -> Answer:
    """An event stream that ends after these chunks; ``cut`` breaks it without a word."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Answer(raw=head + body + (b"" if cut else b"0\r\n\r\n"), cut=True)


@pytest.mark.req("W7")
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "ended"])
def test_follow_resumes_without_loss_or_double(cut: bool, api: Api, run: Run) -> None:
    api.on("GET", "/v1/events", page(revision=7))
    api.on(
        "GET",
        "/v1/events/stream",
        stream(b": from 7\n\n", frame(event(8)), frame(event(9)), frame(event(10))[:-20], cut=cut),
        Answer(cut=True),
        stream(frame(event(9)), frame(event(10)), frame(event(10)), frame(event(12))),
    )
    ran = run("event", "follow", "--count", "4", "-o", "json")
    assert ran.code == 0
    assert [json.loads(line)["revision"] for line in ran.out.splitlines()] == [8, 9, 10, 12]
    asked = api.calls("GET", "/v1/events/stream")
    assert [one.headers.get("last-event-id") for one in asked] == [None, *["9-1a2b3c4d"] * 2]
    assert [one.query.get("after") for one in asked] == ["7", None, None]
    assert "connected again; going on after revision 9" in ran.err


def test_follow_sends_its_filter(api: Api, run: Run) -> None:
    api.on("GET", "/v1/events/stream", stream(frame(event(8))))
    argv = ["--vm", "web1", "--code", "vm.watchdog.*", "--severity", "warning", "--after", "3"]
    ran = run("event", "follow", *argv, "--count", "1")
    assert ran.code == 0
    assert ran.out.split("\t")[-1] == "vm.started\n"
    asked = api.asked[0]
    wanted = {"vm": "web1", "code": "vm.watchdog.*", "severity": "warning", "after": "3"}
    assert asked.query == wanted and "last-event-id" not in asked.headers


def test_follow_needs_the_server_at_first(api: Api, run: Run) -> None:
    api.on("GET", "/v1/events/stream", Answer(cut=True))
    assert run("event", "follow", "--after", "3").code == 5
    assert len(api.asked) == 1


def test_follow_gives_up_and_says_how_to_go_on(api: Api, run: Run) -> None:
    api.on("GET", "/v1/events/stream", stream(frame(event(8))), Answer(cut=True))
    ran = run("event", "follow", "--after", "3", "--give-up", "10ms")
    assert ran.code == 5
    assert "virtha event follow --after 8" in ran.err


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(410, "problem.gone", 1), (401, "problem.token.expired", 6), (404, "problem.not_found", 3)],
)
def test_follow_ends_when_it_can_not_be_resumed(
    status: int, code: str, exit_code: int, api: Api, run: Run
) -> None:
    problem = Answer({"code": code, "detail": "no more"}, status=status)
    api.on("GET", "/v1/events/stream", stream(frame(event(8))), problem)
    ran = run("event", "follow", "--after", "3")
    assert ran.code == exit_code
    assert f"code: {code}" in ran.err


@pytest.mark.parametrize("data", [b"{}", b"[]", b"not json", b'{"revision": null}'])
def test_a_stream_of_something_else(data: bytes, api: Api, run: Run) -> None:
    api.on("GET", "/v1/events/stream", stream(b"data: " + data + b"\n\n"))
    ran = run("event", "follow", "--after", "3")
    assert ran.code == 1
    assert "no event" in ran.err


def test_ctrl_c_ends_with_0(api: Api, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(event_module.time, "sleep", press)
    api.on("GET", "/v1/events/stream", stream(frame(event(8))))
    assert run("event", "follow", "--after", "3").code == 0


def test_yaml_has_no_streams(api: Api, run: Run) -> None:
    assert run("event", "follow", "-o", "yaml").code == 2
    assert api.asked == []


def test_lists_show_the_newest_last(api: Api, run: Run) -> None:
    api.on("GET", "/v1/events", page(event(9), event(8)))
    assert run("event", "list", "-q", "--limit", "2").out == "8\n9\n"
    assert api.asked[0].query == {"order": "desc", "limit": "2"}
    api.on("GET", "/v1/events", page(event(8), event(9)))
    assert run("event", "list", "-q", "--after", "7").out == "8\n9\n"
    assert api.asked[1].query == {"order": "asc", "after": "7", "limit": "100"}


def test_events_of_a_vm_go_on_where_the_list_ended(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms/web1", vm_view())
    api.on("GET", "/v1/events", page(event(9), event(8)))
    gone = Answer({"code": "problem.gone", "detail": "end of test"}, status=410)
    api.on("GET", "/v1/events/stream", stream(frame(event(9)), frame(event(11))), gone)
    ran = run("vm", "events", "web1", "-q", "--follow")
    assert ran.out == "8\n9\n11\n"
    asked = api.calls("GET", "/v1/events/stream")[0]
    assert asked.query == {"vm": "id-of-web1", "after": "9"}
