"""Alertmanager's API, version 2, against a small HTTPS receiver of the test's own: what is posted, and what an answer means.

That the body is one is held against what its API says (``api/v2/openapi.yaml``: ``postableAlerts``); a real one takes it in
``test_alertmanager_real.py``.
"""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from own_web_server import FINE, Answer, WebServer, status
from receiver_certificates import authority, context_of
from told_messages import EVENT, message

from virtha.drivers.webhook import AlertmanagerMessenger
from virtha.model.codes import SOLVED_BY
from virtha.model.ids import GroupId, HostId, Revision
from virtha.model.notification import AlertmanagerSettings, Message, MessageGroup
from virtha.model.routing import GroupNote
from virtha.model.time import UtcMillis
from virtha.ports.receivers import Outcome, Receipt

OURS = authority()
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def posted(
    *messages: Message,
    answer: Answer = FINE,
    at: list[int] | None = None,
    secrets: Mapping[str, str] | None = None,
    **settings: Any,
) -> tuple[WebServer, list[Receipt]]:
    """``at``: when each is sent, in UTC milliseconds; None: as it happens."""
    server = WebServer(answer)
    receipts = []

    async def story() -> None:
        async with server.running(context_of(OURS)) as port:
            given = AlertmanagerSettings(
                url=f"https://127.0.0.1:{port}/prefix/",
                authority_pem=OURS.certificate_pem(),
                private_addresses=True,
                **settings,
            )
            now_s = 0.0
            told = AlertmanagerMessenger(
                given, secrets or {}, deadline_ms=20_000, idle_ms=60_000, now_s=lambda: now_s
            )
            for one, now_ms in zip(messages, at or [EVENT.at] * len(messages), strict=True):
                now_s = now_ms / 1_000
                receipts.append(await told.send(one))
            await told.close()

    asyncio.run(story())
    return server, receipts


def alerts(server: WebServer, number: int = 0) -> list[dict[str, Any]]:
    found = json.loads(server.requests[number].body)
    assert isinstance(found, list)
    for one in found:
        # postableAlert: labels are required, all names and values are text, times are date-time.
        assert set(one) <= {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
        for name, value in (*one["labels"].items(), *one.get("annotations", {}).items()):
            assert (
                re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) and isinstance(value, str) and value
            )
        times = [one[name] for name in ("startsAt", "endsAt") if name in one]
        assert times == sorted(times) and all(MOMENT.fullmatch(time) for time in times)
    return found


def event(code: str, number: int, **changes: Any) -> Any:
    from msgspec.structs import replace

    return replace(EVENT, code=code, revision=Revision(number), **changes)


@pytest.mark.req("W7", "F4")
def test_a_problem_stands_until_its_end_ends_the_very_same_alert() -> None:
    begun = message(1)
    back = event("vm.restarted", 4712, host_id=HostId("h2"), at=UtcMillis(EVENT.at + 5_000))
    server, receipts = posted(begun, message(2, event=back, host="node-2"))
    assert [one.outcome for one in receipts] == [Outcome.ACCEPTED] * 2
    assert server.requests[0].line == "POST /prefix/api/v2/alerts HTTP/1.1"
    assert server.requests[0].headers["content-type"] == "application/json"
    assert "authorization" not in server.requests[0].headers
    (problem,) = alerts(server)
    assert problem["labels"] == {
        "alertname": "vm.crashed",
        "severity": "error",
        "installation": "Lab Zürich",
        "cluster": "main",
        "vm": "wéb-№1",
    }
    assert problem["annotations"]["summary"] == "QEMU of wéb-№1 died: signal 9"
    assert problem["annotations"]["message_id"] == "d1"
    assert (problem["startsAt"], problem["endsAt"]) == (
        "2026-01-31T12:00:00.250Z",
        "2026-02-07T12:00:00.250Z",
    )
    ended = alerts(server, 1)
    assert {one["labels"]["alertname"] for one in ended} == {
        "vm.crashed",
        "vm.panicked",
        "vm.stopped_unexpectedly",
        "vm.restart.blocked",
        "vm.restart.failed",
        "vm.guest_frozen",
        "vm.io_error.given_up",
        "vm.io_error.paused",
        "vm.io_error.resume_failed",
    }
    assert problem["labels"] in [one["labels"] for one in ended], "though it runs elsewhere now"
    assert {one["endsAt"] for one in ended} == {"2026-01-31T12:00:05.250Z"}


def test_what_has_no_end_stands_for_a_while() -> None:
    server, _ = posted(message(1, event=event("vm.watchdog.fired", 1)))
    (one,) = alerts(server)
    assert one["endsAt"] == "2026-01-31T12:15:00.250Z"


@pytest.mark.req("W7")
def test_a_group_is_one_post_and_a_problem_that_is_over_is_only_ended() -> None:
    end = event("vm.agent.connected", 3)
    others = (event("vm.agent.lost", 1), event("vm.crashed", 2))
    note = GroupNote(
        group_id=GroupId("g"),
        key="host:h1",
        kind="solved",
        reason="notify.told.well",
        revisions=(Revision(1), Revision(2), Revision(3)),
    )
    told = message(1, event=end, group=MessageGroup(note=note, others=others))
    server, _ = posted(told)
    found = {one["labels"]["alertname"]: one for one in alerts(server)}
    assert set(found) == {"vm.agent.lost", "vm.crashed"}
    assert "startsAt" not in found["vm.agent.lost"], "its end"
    assert found["vm.crashed"]["startsAt"]


@pytest.mark.req("W7", "F4")
def test_what_waited_in_the_queue_stands_from_when_it_is_sent() -> None:
    """Alertmanager takes an end that is past for the end of the problem, and tells nobody."""
    fired = message(1, event=event("vm.watchdog.fired", 1), created=EVENT.at)
    server, _ = posted(fired, at=[EVENT.at + 6 * 3_600_000])
    (one,) = alerts(server)
    assert one["endsAt"] == "2026-01-31T18:15:00.250Z"


def test_alerts_about_receivers_are_told_apart() -> None:
    """Two that are away were one alert, and the return of one ended it."""
    away = [
        message(n, event=event("notify.receiver_away", n, vm_id=None, fields=_of(f"mail{n}")))
        for n in (1, 2)
    ]
    back = event("notify.receiver_back", 3, vm_id=None, fields=_of("mail2"))
    server, _ = posted(*away, message(3, event=back))
    first, second, ended = (alerts(server, number)[0]["labels"] for number in range(3))
    assert first["receiver"] == "mail1" and first != second and second == ended


def _of(receiver: str) -> dict[str, str]:
    return {"receiver": receiver, "receiver_id": f"id of {receiver}"}


def test_what_is_told_again_stands_from_then_on() -> None:
    """Alertmanager would take an end that is past for the end of the problem."""
    days_later = UtcMillis(EVENT.at + 9 * 86_400_000)
    server, _ = posted(message(1), message(2), at=[EVENT.at, days_later])
    first, again = alerts(server)[0], alerts(server, 1)[0]
    assert first["labels"] == again["labels"] and first["startsAt"] == again["startsAt"]
    assert again["endsAt"] == "2026-02-16T12:00:00.250Z"


def test_an_alert_is_called_the_same_whichever_event_heads_its_message() -> None:
    """Here its object's name is in no field of it."""
    hold = event("hold.set", 1, vm_id=None, fields={})
    note = GroupNote(
        group_id=GroupId("g"),
        key="host:h1",
        kind="problem",
        reason="notify.told.first",
        revisions=(Revision(1), Revision(2)),
    )
    lost = event("host.unreachable", 2, vm_id=None, fields={})
    names = {"c1": "main", "h1": "node-1"}
    beside = MessageGroup(note=note, others=(hold,), names=names)
    server, _ = posted(
        message(1, event=hold, vm=None), message(2, event=lost, vm=None, group=beside)
    )
    (alone,) = alerts(server)
    assert alone["labels"] in [one["labels"] for one in alerts(server, 1)]


def test_with_a_host_its_alerts_end() -> None:
    server, _ = posted(message(1, event=event("host.removed", 1, vm_id=None)))
    ended = {one["labels"]["alertname"] for one in alerts(server)}
    assert {"host.proven_dead", "fence.failed"} <= ended
    assert not any(code.startswith(("vm.", "storage.")) for code in ended)


def test_with_a_vm_all_its_alerts_end() -> None:
    server, _ = posted(message(1, event=event("vm.deleted", 1)))
    assert {one["labels"]["alertname"] for one in alerts(server)} == {
        code for code in SOLVED_BY if code.startswith("vm.")
    }


@pytest.mark.parametrize(
    ("secrets", "settings", "header"),
    [
        ({"token": "t0ken"}, {}, "Bearer t0ken"),
        ({"password": "pass"}, {"user": "eve"}, f"Basic {b64encode(b'eve:pass').decode()}"),
    ],
)
def test_signing_in(secrets: dict[str, str], settings: dict[str, str], header: str) -> None:
    server, _ = posted(message(), secrets=secrets, **settings)
    assert server.requests[0].headers["authorization"] == header


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        (status(400, body="t0ken is bad"), Outcome.NEVER, "notify.webhook.refused"),
        (status(401), Outcome.NEVER, "notify.webhook.refused"),
        (status(503), Outcome.AWAY, "notify.busy"),
        (status(500), Outcome.LATER, "notify.webhook.later"),
        (status(302, "Location: /x\r\n"), Outcome.AWAY, "notify.webhook.redirected"),
    ],
)
def test_what_its_answers_mean(answer: bytes, outcome: Outcome, code: str) -> None:
    _, (receipt,) = posted(message(), answer=answer, secrets={"token": "t0ken"})
    assert (receipt.outcome, receipt.code) == (outcome, code)
    assert "t0ken" not in receipt.detail


def test_what_was_sent_to_sign_in_is_repeated_to_nobody() -> None:
    """As a proxy does that echoes the headers."""
    pair = b64encode(b"eve:hush-hush").decode()
    answer = status(401, body=f"no access: Authorization: Basic {pair}")
    _, (receipt,) = posted(message(), answer=answer, secrets={"password": "hush-hush"}, user="eve")
    assert pair not in receipt.detail and "no access" in receipt.detail


def test_a_token_that_no_header_can_hold_is_quoted_to_nobody() -> None:
    """As one was kept before such were refused: the error quotes it escaped, so that it isn't known for a secret."""
    _, (receipt,) = posted(message(), secrets={"token": "hu\\sh'x "})
    assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.unusable_settings")
    assert "hu" not in receipt.detail and "Bearer" not in receipt.detail
