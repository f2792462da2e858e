"""What we push to a real Alertmanager: Debian's, in a process of its own. What it makes of it is asked by its API, and by what it tells."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace
from own_alertmanager import EACH_ALONE, PASSWORD, USER, OwnAlertmanager
from receiver_certificates import authority
from told_messages import EVENT, message

from virtha.drivers.webhook import AlertmanagerMessenger
from virtha.model.event import Event
from virtha.model.ids import GroupId, HostId, Revision, VmId
from virtha.model.notification import AlertmanagerSettings, Message, MessageGroup
from virtha.model.routing import GroupNote
from virtha.model.time import UtcMillis, format_utc
from virtha.ports.receivers import Outcome, Receipt

pytestmark = pytest.mark.req("W7", "F4")
WEEK_MS = 7 * 86_400_000
CRASHED = {
    "alertname": "vm.crashed",
    "severity": "error",
    "installation": "Lab Zürich",
    "cluster": "main",
    "vm": "wéb-№1",
}


def now() -> UtcMillis:
    return UtcMillis(time.time_ns() // 1_000_000)


def event(code: str, number: int = 1, **changes: Any) -> Event:
    """Of now: an Alertmanager goes by the clock."""
    return replace(EVENT, code=code, revision=Revision(number), **{"at": now(), **changes})


def of_host(code: str, number: int, **fields: str) -> Event:
    return event(code, number, vm_id=None, fields={"host": "node-1", **fields})


def told(one: Event, number: int = 1, **more: Any) -> Message:
    return message(number, event=one, vm=None if one.vm_id is None else "wéb-№1", **more)


class Pushing:
    """Our messenger, as it is made for a receiver."""

    def __init__(self, alertmanager: OwnAlertmanager, **settings: Any) -> None:
        given = {"url": alertmanager.url, "private_addresses": True, **settings}
        secrets = given.pop("secrets", {})
        self._messenger = AlertmanagerMessenger(
            AlertmanagerSettings(**given), secrets, deadline_ms=20_000, idle_ms=60_000
        )

    async def send(self, one: Message) -> Receipt:
        return await self._messenger.send(one)

    async def accepted(self, *messages: Message) -> None:
        for one in messages:
            receipt = await self.send(one)
            assert (receipt.outcome, receipt.code) == (Outcome.ACCEPTED, "notify.accepted"), receipt

    async def close(self) -> None:
        await self._messenger.close()


@asynccontextmanager
async def pushing(alertmanager: OwnAlertmanager, **settings: Any) -> AsyncIterator[Pushing]:
    made = Pushing(alertmanager, **settings)
    try:
        yield made
    finally:
        await made.close()


Play = Callable[[OwnAlertmanager, Pushing], Awaitable[None]]


def play(story: Play) -> None:
    """With one that tells of each alert by itself, by plain HTTP and without signing in."""

    async def whole() -> None:
        with OwnAlertmanager(group_by=EACH_ALONE) as alertmanager:
            async with pushing(alertmanager) as ours:
                await story(alertmanager, ours)

    asyncio.run(whole())


def said(alertmanager: OwnAlertmanager) -> list[tuple[str, str]]:
    """What it told people, in that order: the alert's name, and firing or resolved."""
    return [
        (alert["labels"]["alertname"], alert["status"])
        for note in alertmanager.told
        for alert in note["alerts"]
    ]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_problem_is_an_alert_until_its_end_however_often_it_is_sent() -> None:
    async def story(alertmanager: OwnAlertmanager, ours: Pushing) -> None:
        crashed = event("vm.crashed", 4711)
        before = now()
        await ours.accepted(told(crashed))
        (alert,) = await alertmanager.until_active("vm.crashed")
        assert alert["labels"] == CRASHED
        assert alert["annotations"]["summary"] == "QEMU of wéb-№1 died: signal 9"
        assert alert["annotations"]["event"] == "4711"
        assert alert["annotations"]["message_id"] == "d1"
        assert "restarted as its policy says" in alert["annotations"]["description"]
        assert alert["startsAt"] == format_utc(crashed.at)
        assert before + WEEK_MS <= moment(alert["endsAt"]) * 1_000 <= now() + WEEK_MS
        # Sent again: the acceptance wasn't written before a kill, or it is a repeat.
        await ours.accepted(told(crashed), told(crashed, 2))
        (again,) = alertmanager.active()
        assert again["fingerprint"] == alert["fingerprint"]
        assert again["startsAt"] == alert["startsAt"] and again["endsAt"] > alert["endsAt"]
        await alertmanager.until(lambda: said(alertmanager) == [("vm.crashed", "firing")])
        # It runs again, elsewhere: the very same alert is over.
        back = event("vm.restarted", 4712, host_id=HostId("h2"))
        await ours.accepted(message(3, event=back, host="node-2"))
        await alertmanager.until_active()
        ended = [("vm.crashed", "firing"), ("vm.crashed", "resolved")]
        await alertmanager.until(lambda: len(said(alertmanager)) >= 2)
        assert said(alertmanager) == ended, "of ends that it knows no problem of it says nothing"
        over = alertmanager.told[-1]["alerts"][0]
        assert over["labels"] == CRASHED and over["endsAt"] == format_utc(back.at)
        # The end sent again ends nothing else; the next crash is an alert anew.
        await ours.accepted(message(3, event=back, host="node-2"))
        later = event("vm.crashed", 4713)
        await ours.accepted(told(later, 4))
        (anew,) = await alertmanager.until_active("vm.crashed")
        assert anew["startsAt"] == format_utc(later.at)
        await alertmanager.until(lambda: len(said(alertmanager)) >= 3)
        assert said(alertmanager) == [*ended, ("vm.crashed", "firing")]

    play(story)


def test_two_problems_of_one_host_are_two_alerts_with_an_end_each() -> None:
    async def story(alertmanager: OwnAlertmanager, ours: Pushing) -> None:
        lost = [
            of_host("host.lease.lost", number, domain=domain)
            for number, domain in ((1, "ds1"), (2, "ds2"), (3, "ds3"))
        ]
        await ours.accepted(*(told(one, int(one.revision)) for one in lost))
        found = await alertmanager.until_active(*["host.lease.lost"] * 3)
        assert [(one["labels"]["host"], one["labels"]["domain"]) for one in found] == [
            ("node-1", "ds1"),
            ("node-1", "ds2"),
            ("node-1", "ds3"),
        ]
        await ours.accepted(told(of_host("host.lease.held_again", 4, domain="ds2"), 4))
        await alertmanager.until(lambda: len(alertmanager.active()) == 2)
        assert [one["labels"]["domain"] for one in alertmanager.active()] == ["ds1", "ds3"]
        # The host is back: no part is named, so the server looks up which there were.
        back = of_host("host.returned", 5)
        over = {back.revision: (lost[0], lost[2])}
        await ours.accepted(told(back, 5, over=over))
        await alertmanager.until_active()

    play(story)


def test_the_group_of_a_hosts_failure_is_its_alerts_until_all_is_well() -> None:
    async def story(alertmanager: OwnAlertmanager, ours: Pushing) -> None:
        def of_vm(code: str, number: int, vm: int) -> Event:
            return event(code, number, vm_id=VmId(f"v{vm}"), fields={"vm": f"web{vm}"})

        dead = of_host("host.judged_dead", 1)
        missed = [of_vm("vm.recovery_failed", number, number) for number in (2, 3)]
        group = grouped("problem", "notify.told.first", dead, *missed)
        await ours.accepted(told(dead, group=group))
        names = ("host.judged_dead", "vm.recovery_failed", "vm.recovery_failed")
        found = await alertmanager.until_active(*names)
        assert [one["labels"].get("vm") for one in found] == [None, "web2", "web3"]
        assert [one["labels"].get("host") for one in found] == ["node-1", None, None]
        # One VM runs again, of the other it is known no sooner than of the host.
        some = of_vm("vm.recovered", 4, 2)
        await ours.accepted(told(some, 2))
        await alertmanager.until_active("host.judged_dead", "vm.recovery_failed")
        well, rest = of_host("host.incident_over", 6), of_vm("vm.recovered", 5, 3)
        group = grouped("solved", "notify.told.well", well, rest)
        await ours.accepted(told(well, 3, group=group))
        await alertmanager.until_active()
        await alertmanager.until(lambda: len(said(alertmanager)) >= 6)
        assert sorted(said(alertmanager)) == sorted(
            (name, status) for name in names for status in ("firing", "resolved")
        )

    play(story)


def test_where_it_groups_nobody_is_told_the_end_of_what_never_was() -> None:
    """It tells of each end in a group that it told of, though it never knew a problem of it: eight of a VM that runs again, and at
    each start of any other."""

    async def story() -> None:
        with OwnAlertmanager(group_by=()) as alertmanager:
            async with pushing(alertmanager) as ours:
                await ours.accepted(told(event("vm.crashed", 1)))
                await alertmanager.until(lambda: len(said(alertmanager)) == 1)
                other = event("vm.started", 2, vm_id=VmId("v2"), fields={"vm": "web2"})
                await ours.accepted(told(other, 2, had={other.revision: ()}))
                back = event("vm.restarted", 3)
                await ours.accepted(told(back, 3, had={back.revision: ("vm.crashed",)}))
                await alertmanager.until(lambda: len(said(alertmanager)) >= 2)
                assert said(alertmanager) == [("vm.crashed", "firing"), ("vm.crashed", "resolved")]

    asyncio.run(story())


def grouped(kind: str, reason: str, head: Event, *others: Event) -> MessageGroup:
    note = GroupNote(
        group_id=GroupId("g"),
        key="host:h1",
        kind=kind,
        reason=reason,
        revisions=(head.revision, *(one.revision for one in others)),
    )
    return MessageGroup(note=note, others=others, names={"c1": "main", "h1": "node-1"})


def test_names_of_any_kind_are_taken() -> None:
    names = ('a"b\\c{d="e"}', "x" * 5_000, "line\nbreak\ttab", "‮right to left", "{{ .Labels }}")

    async def story(alertmanager: OwnAlertmanager, ours: Pushing) -> None:
        for number, name in enumerate(names, 1):
            one = event("vm.crashed", number, vm_id=VmId(f"v{number}"), fields={"vm": name})
            await ours.accepted(message(number, event=one, vm=name))
        found = await alertmanager.until_active(*["vm.crashed"] * len(names))
        assert {"{{ .Labels }}", 'a"b\\c{d="e"}'} <= {one["labels"]["vm"] for one in found}
        await alertmanager.until(lambda: len(said(alertmanager)) == len(names))

    play(story)


def test_one_that_is_away_is_told_later_and_one_that_began_anew_by_the_next_repeat() -> None:
    """It keeps alerts in its memory alone: with its process what stands is forgotten, until it is told again."""

    async def story(alertmanager: OwnAlertmanager, ours: Pushing) -> None:
        crashed = told(event("vm.crashed"))
        await ours.accepted(crashed)
        (alert,) = await alertmanager.until_active("vm.crashed")
        alertmanager.stop()
        away = await ours.send(crashed)
        assert away.outcome is Outcome.AWAY
        assert away.code in ("notify.connection_lost", "notify.unreachable")
        away = await ours.send(crashed)
        assert (away.outcome, away.code) == (Outcome.AWAY, "notify.unreachable")
        assert f"127.0.0.1', {alertmanager.port}" in away.detail
        alertmanager.start()
        assert alertmanager.active() == [], "it would be in no need of repeats"
        await ours.accepted(crashed)
        (again,) = await alertmanager.until_active("vm.crashed")
        assert again["fingerprint"] == alert["fingerprint"]
        assert again["startsAt"] == alert["startsAt"]

    play(story)


def test_it_is_signed_in_to_over_tls_and_else_it_is_told_nothing() -> None:
    signer, stranger = authority(), authority()

    async def story() -> None:
        with OwnAlertmanager(signer=signer) as alertmanager:
            trusted: dict[str, Any] = {"authority_pem": signer.certificate_pem(), "user": USER}
            refused = (Outcome.NEVER, "notify.webhook.refused")
            no_trust = (Outcome.AWAY, "notify.certificate")
            # It answers what is no TLS and closes at once, with what it has not read: the answer may be lost to that.
            closed = (Outcome.AWAY, "notify.connection_lost")
            for changes, expected in (
                ({"secrets": {"password": "not-it"}}, {refused}),
                ({"user": None}, {refused}),
                ({"authority_pem": stranger.certificate_pem()}, {no_trust}),
                ({"url": alertmanager.url.replace("https", "http")}, {refused, closed}),
            ):
                wrong = {**trusted, "secrets": {"password": PASSWORD}, **changes}
                if wrong["user"] is None:
                    wrong["secrets"] = {}
                async with pushing(alertmanager, **wrong) as ours:
                    receipt = await ours.send(told(event("vm.crashed")))
                assert (receipt.outcome, receipt.code) in expected, receipt
                assert PASSWORD not in receipt.detail and "not-it" not in receipt.detail
            assert alertmanager.active() == []
            async with pushing(alertmanager, **trusted, secrets={"password": PASSWORD}) as ours:
                await ours.accepted(told(event("vm.crashed")))
                await alertmanager.until_active("vm.crashed")
                await ours.accepted(told(event("vm.restarted", 2)))
                await alertmanager.until_active()

    asyncio.run(story())
