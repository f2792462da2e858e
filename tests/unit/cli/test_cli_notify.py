"""`virtha notify`: what it sends is what the server reads, secrets never stand on the command line."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import NOON, event, page, plain

from virtha.control.requests import (
    ReceiverChange,
    ReceiverCreate,
    ReceiverTest,
    SilenceCreate,
    SubscriptionCreate,
)
from virtha.control.routing_views import (
    EventFates,
    RouteFate,
    RouteWeight,
    SilenceState,
    SilenceView,
)
from virtha.control.views import DeliveryView, ReceiverTestView, ReceiverView, SubscriptionView
from virtha.model.ids import DeliveryId, ReceiverId, Revision, SilenceId, SubscriptionId, VmId
from virtha.model.notification import (
    Delivery,
    DeliveryState,
    MailSettings,
    Receiver,
    ReceiverStatus,
    SnmpSettings,
    Subscription,
    WebhookSettings,
)
from virtha.model.routing import FateState, GroupBy, Matcher, QuietHours, Silence
from virtha.model.time import UtcMillis

Run = Callable[..., Ran]
DELIVERY = Delivery(
    id=DeliveryId("d-1"),
    number=1,
    receiver_id=ReceiverId("r-1"),
    event_revision=Revision(3),
    state=DeliveryState.REFUSED,
    attempts=2,
    created=NOON,
    next_at=NOON,
    expires=UtcMillis(NOON + 1),
    done_at=NOON,
    code="notify.queue.no_address",
    detail="550 nobody here",
)


def receiver_view(settings: Any, *secrets: str, name: str = "mail1") -> ReceiverView:
    return ReceiverView(
        receiver=Receiver(
            id=ReceiverId("r-1"),
            name=name,
            settings=settings,
            secrets=secrets,
            revision=Revision(7),
        ),
        kind=str(type(settings).__struct_config__.tag),
        status=ReceiverStatus(away_since=NOON, code="notify.queue.deadline", detail="silence"),
        reason_text="no answer within the deadline",
        deliveries={"pending": 3, "sent": 4},
        oldest_pending=NOON,
        subscriptions=("a",),
    )


MAIL = receiver_view(MailSettings(host="mail.example.org", sender="v@example.org"), "password")


def body_of(api: Api, method: str, kind: Any) -> Any:
    return msgspec.convert(api.calls(method)[-1].body, kind)


def test_adding_receivers(api: Api, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("POST", "/v1/receivers", Answer(MAIL, status=201))
    monkeypatch.setattr("sys.stdin", io.StringIO("password=pass=word \n\n"))
    ran = run(
        *("notify", "receiver", "add", "mail", "mail1", "--host", "m.example.org"),
        *("--sender", "v@example.org", "--user", "v", "--security", "tls", "--port", "465"),
        "--secrets-stdin",
    )
    assert ran.code == 0, ran.err
    sent = body_of(api, "POST", ReceiverCreate)
    assert isinstance(sent.settings, MailSettings)
    assert (sent.settings.port, sent.settings.user, sent.settings.security) == (465, "v", "tls")
    assert sent.secrets == {"password": "pass=word "}, "as it was typed"
    monkeypatch.setattr("sys.stdin", io.StringIO("community=public"))
    ran = run(
        *("notify", "receiver", "add", "snmp", "nms", "--host", "192.0.2.1"),
        *("--snmp-version", "2c", "--trap", "--secrets-stdin"),
    )
    sent = body_of(api, "POST", ReceiverCreate)
    assert isinstance(sent.settings, SnmpSettings)
    assert (sent.settings.version, sent.settings.inform) == ("2c", False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("notify", "receiver", "add", "webhook", "h", "--url", "https://h.example").code == 0
    assert isinstance(body_of(api, "POST", ReceiverCreate).settings, WebhookSettings)


@pytest.mark.parametrize(
    ("argv", "stdin", "says"),
    [
        (["add", "fax", "x"], "", "TYPE: 'fax' is no type"),
        (["add", "mail", "x", "--url", "https://h"], "", "--url: a receiver of type mail has none"),
        (["add", "webhook", "x", "--inform"], "", "--inform"),
        (["add", "mail", "x", "--port", "many"], "", "--port"),
        (["add", "mail", "x", "--security", "ssl"], "", "--security"),
        (["add", "mail", "x", "--authority", "/nowhere/ca.pem"], "", "--authority: can't read"),
        (["add", "mail", "x", "--secrets-stdin"], "", "--secrets-stdin: nothing came"),
        (["add", "mail", "x", "--secrets-stdin"], "pass-word\n", "line 1 names none"),
        (["add", "mail", "x", "--secrets-stdin"], "secret=hush", "allowed: password"),
        (["remove", "mail1"], "", "--yes"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    argv: list[str],
    stdin: str,
    says: str,
    api: Api,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    ran = run("notify", "receiver", *argv)
    assert (ran.code, says in ran.err, api.asked) == (2, True, []), ran.err
    assert "hush" not in ran.err and "pass-word" not in ran.err


def test_changing_a_receiver_sends_all_settings_of_what_was_read(api: Api, run: Run) -> None:
    api.on("GET", "/v1/receivers/mail1", Answer(MAIL, headers={"ETag": '"7"'}))
    api.on("PATCH", "/v1/receivers/mail1", MAIL)
    assert run("notify", "receiver", "set", "mail1", "--port", "25").code == 0
    asked = api.calls("PATCH")[0]
    assert asked.headers["if-match"] == '"7"'
    sent = body_of(api, "PATCH", ReceiverChange)
    assert (sent.settings.port, sent.settings.host) == (25, "mail.example.org")
    # Nobody signs in any more, or never did: the password goes with it.
    assert sent.secrets == {"password": None}
    assert run("notify", "receiver", "set", "mail1", "--disable").code == 0
    assert api.calls("PATCH")[1].body["enabled"] is False


def test_nothing_to_change(api: Api, run: Run) -> None:
    plain_view = receiver_view(MailSettings(host="m", sender="a@b"))
    api.on("GET", "/v1/receivers/mail1", plain_view)
    assert run("notify", "receiver", "set", "mail1").code == 2


def test_lists_and_shows(api: Api, run: Run) -> None:
    api.on("GET", "/v1/receivers", page(MAIL))
    api.on("GET", "/v1/receivers/mail1", MAIL)
    for words in (("receiver", "list"), ("receivers",)):
        line = run("notify", *words).out
        assert "mail1\tmail\tmail.example.org:587\taway\t3\t4\t0\t0\tno answer" in line
    shown = run("notify", "receiver", "show", "mail1").out
    assert "its words\tsilence" in shown and "secrets set\tpassword" in shown
    assert "messages pending\t3" in shown and "oldest that waits\t2026-01-01 12:00:00Z" in shown
    view = SubscriptionView(
        subscription=Subscription(
            id=SubscriptionId("s-1"),
            name="a",
            receiver_id=ReceiverId("r-1"),
            address="ops@example.org",
            codes=("vm.*",),
            vm_id=VmId("v-1"),
        ),
        receiver_name="mail1",
    )
    api.on("GET", "/v1/subscriptions", page(view))
    assert (
        "a\tmail1\tops@example.org\tvm.*\twarning\tvm v-1\t\tyes"
        in run("notify", "subscriptions").out
    )
    delivery = DeliveryView(
        delivery=DELIVERY,
        receiver_name="mail1",
        subscription_name=None,
        event=event(3, "vm.watchdog.fired", {"vm": "web1", "action": "reset"}),
        reason_text="its user has no e-mail address",
    )
    api.on("GET", "/v1/deliveries", page(delivery))
    api.on("GET", "/v1/deliveries/d-1", delivery)
    out = run("notify", "list", "--state", "refused", "--event", "3").out
    assert "refused\tmail1\tWatchdog of web1 fired, action reset\t2" in out
    assert api.calls("GET", "/v1/deliveries")[0].query == {
        "state": "refused",
        "event": "3",
        "limit": "100",
    }
    assert "its words\t550 nobody here" in run("notify", "show", "d-1").out


def test_subscribing_and_its_end(api: Api, run: Run) -> None:
    made = SubscriptionView(
        subscription=Subscription(
            id=SubscriptionId("s-1"), name="mail1-1", receiver_id=ReceiverId("r-1")
        ),
        receiver_name="mail1",
    )
    api.on("POST", "/v1/subscriptions", Answer(made, status=201))
    api.on("DELETE", "/v1/subscriptions/mail1-1", Answer(status=204))
    ran = run(
        *("notify", "subscribe", "mail1", "--address", "ops@example.org"),
        *("--code", "vm.*", "--code", "fence.*", "--severity", "error", "--vm", "web1"),
    )
    assert "mail1-1" in ran.out
    sent = body_of(api, "POST", SubscriptionCreate)
    assert (sent.codes, sent.severity, sent.vm) == (("vm.*", "fence.*"), "error", "web1")
    assert run("notify", "unsubscribe", "mail1-1").code == 2
    assert run("notify", "unsubscribe", "mail1-1", "--yes").code == 0


@pytest.mark.parametrize(("outcome", "code"), [("accepted", 0), ("away", 1)])
def test_a_test_ends_as_the_message_fared(outcome: str, code: int, api: Api, run: Run) -> None:
    answer = ReceiverTestView(
        delivery=DELIVERY,
        outcome=outcome,
        code="notify.queue.deadline",
        detail="no answer within 15s",
        reason_text="no answer within the deadline",
        duration_ms=1_500,
    )
    api.on("POST", "/v1/receivers/mail1/test", answer)
    ran = run("notify", "test", "mail1", "--address", "me@example.org")
    assert ran.code == code
    assert "no answer within 15s" in (ran.out if code == 0 else ran.err)
    assert "1.5s" in ran.out + ran.err
    assert body_of(api, "POST", ReceiverTest).address == "me@example.org"
    shown = run("notify", "test", "mail1", "-o", "json")
    assert json.loads(shown.out) == plain(answer)


def test_retrying_several(api: Api, run: Run) -> None:
    view = DeliveryView(delivery=DELIVERY, receiver_name="mail1", subscription_name="a")
    api.on("POST", "/v1/deliveries/d-1/retry", view)
    ran = run("notify", "retry", "d-1", "d-2")
    assert ran.code == 3 and "d-1 is sent again" in ran.out and "d-2" in ran.err


def test_fields_of_settings_are_shown_as_their_options(
    api: Api, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    problem = {"status": 400, "code": "problem.invalid", "detail": "is no certificate"}
    pem = tmp_path / "ca.pem"
    pem.write_text("no certificate")
    for field, option in (
        ("settings.authority_pem", "--authority"),
        ("settings.reply_to", "--reply-to"),
        ("settings.version", "--snmp-version"),
        ("secrets.password", "--secrets-stdin: secrets.password"),
        ("codes[0]", "--code: codes[0]"),
    ):
        api.on("POST", "/v1/receivers", Answer({**problem, "field": field}, status=400))
        ran = run("notify", "receiver", "add", "mail", "m", "--authority", str(pem))
        assert f"error: {option}: is no certificate" in ran.err


def test_users_have_an_address(api: Api, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("PATCH", "/v1/users/eve", {})
    assert run("user", "edit", "eve", "--email", "eve@example.org").code == 0
    assert run("user", "edit", "eve", "--email", "").code == 0
    assert [asked.body for asked in api.calls("PATCH")] == [
        {"email": "eve@example.org"},
        {"email": None},
    ]


ROUTE = SubscriptionView(
    subscription=Subscription(
        id=SubscriptionId("s-1"),
        name="calm",
        receiver_id=ReceiverId("r-1"),
        labels={"domain": "ds*"},
        solved=True,
        group_by=GroupBy.CAUSE,
        repeat_ms=14_400_000,
        quiet=(QuietHours(begins="22:00", ends="07:00", zone="Europe/Berlin"),),
    ),
    receiver_name="mail1",
    weight=RouteWeight(
        events=9,
        matched=0,
        messages=0,
        per_day=0,
        code="notify.route.matches_nothing",
        reason_text="none of the last 9 events would have gone this way",
    ),
)


def test_routes_are_sent_as_they_were_said(api: Api, run: Run) -> None:
    api.on("POST", "/v1/subscriptions", Answer(ROUTE, status=201))
    ran = run(
        *("notify", "route", "add", "mail1", "--address", "a@example.org", "--label", "domain=ds*"),
        *("--group", "cause", "--group-wait", "5s", "--repeat", "4h", "--same-again", "10m"),
        *("--quiet-hours", "mon-wed,sat 22:00-07:00 Europe/Berlin", "--no-solved"),
    )
    assert (
        ran.code == 0 and "none of the last 9 events" in ran.err and "virtha notify why" in ran.err
    )
    sent = body_of(api, "POST", SubscriptionCreate)
    assert (sent.group_by, sent.group_wait_ms, sent.repeat_ms) == (GroupBy.CAUSE, 5_000, 14_400_000)
    assert (sent.labels, sent.same_again_ms, sent.solved) == ({"domain": "ds*"}, 600_000, False)
    (span,) = sent.quiet
    assert span.days == ("mon", "tue", "wed", "sat") and span.zone == "Europe/Berlin"


def test_changing_a_route_takes_away_what_is_empty(api: Api, run: Run) -> None:
    api.on("GET", "/v1/subscriptions/calm", Answer(ROUTE, headers={"ETag": '"7"'}))
    api.on("PATCH", "/v1/subscriptions/calm", ROUTE)
    assert run("notify", "route", "set", "calm").code == 2
    words = ("--repeat", "never", "--quiet-hours", "", "--vm", "", "--label", "", "--disable")
    assert run("notify", "route", "set", "calm", *words).code == 0
    asked = api.calls("PATCH")[0]
    assert asked.headers["if-match"] == '"7"'
    assert asked.body == {
        "repeat_ms": None,
        "quiet": [],
        "vm": None,
        "labels": {},
        "enabled": False,
    }
    shown = run("notify", "route", "show", "calm").out
    assert "quiet hours\t22:00-07:00 Europe/Berlin" in shown and "grouped by\tcause" in shown


def test_silences_rules_and_why(api: Api, run: Run) -> None:
    silence = SilenceView(
        silence=Silence(
            id=SilenceId("q-1"),
            matcher=Matcher(codes=("vm.*",), vm_id=VmId("v-1")),
            reason="work",
            by="eve",
            begins=NOON,
            ends=UtcMillis(NOON + 1),
        ),
        state=SilenceState.ACTIVE,
        vm_name="web1",
    )
    api.on("POST", "/v1/silences", Answer(silence, status=201))
    assert run("notify", "silence", "add", "work", "--for", "2h", "--vm", "web1").code == 0
    sent = body_of(api, "POST", SilenceCreate)
    assert (sent.duration_ms, sent.matcher.vm, sent.reason) == (7_200_000, "web1", "work")
    assert run("notify", "silence", "add", "work", "--vm", "web1").code == 2
    api.on("GET", "/v1/silences", page(silence))
    assert "q-1\tactive\tvm.*, vm web1" in run("notify", "silence", "list").out
    fate = RouteFate(
        subscription="calm",
        subscription_id="s-1",
        receiver="mail1",
        state=FateState.PARKED,
        code="notify.why.silenced",
        reason_text="a silence fits",
        by="q-1",
        by_text="eve: work",
    )
    api.on("GET", "/v1/events/3/fates", EventFates(event=event(3, "vm.crashed"), routes=(fate,)))
    shown = run("notify", "why", "3").out
    assert "calm\tmail1\tparked\ta silence fits (eve: work)" in shown
