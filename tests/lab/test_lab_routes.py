"""A host with six guests dies, twice: who asked for it is told once that it did and once that all is well; at night nobody is
woken for it, and a silence hides it. Each decision is explained."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from fenced import fenced
from told_receivers import MailWitness, ToldMail, add_mail_receiver, forget_receivers

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.node import wait_until
from virtha.lab.story import Story
from virtha.model.codes import render

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(1_800)]
PATIENCE_S = 300.0
VMS = tuple(f"web{number}" for number in range(6))
CALM, NIGHT = "calm@example.org", "night@example.org"


@pytest.fixture
def mails(story: Story) -> Iterator[MailWitness]:
    """Of two routes: each failure of a host in one message, and the same but at night; it is night."""
    now = datetime.now(UTC)
    night = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=4):%H:%M}"
    grouped = ("--group", "cause", "--severity", "warning", "--group-interval", "1h")
    with MailWitness(story.lab) as made:
        add_mail_receiver(story, made)
        add = ("notify", "route", "add", "mail1")
        story.lab.virtha(*add, "--name", "calm", "--address", CALM, *grouped)
        story.lab.virtha(
            *(*add, "--name", "night", "--address", NIGHT, *grouped, "--quiet-hours", night)
        )
        try:
            yield made
        finally:
            forget_receivers(story, "mail1")


@pytest.mark.req("W7", "F4", "X1", "X4")
def test_a_host_with_six_guests_dies_and_people_are_told_once(
    story: Story, mails: MailWitness
) -> None:
    with fenced(story):
        for name in VMS:
            story.create_vm(name, host="h1")
        for name in VMS:
            story.wait_agent(name)
        print("h1 dies")
        before, mark = story.revision(), mails.mark()
        dead = _dies_and_returns(story, "h1")
        well = _wait_for(mails, CALM, "host.incident_over", after=mark)
        first, *others = _to(mails, CALM, mark)
        assert others == [well], [_said(one) for one in others]
        _is_about_the_host(first, "h1")
        assert well.mail["X-Virtha-Kind"] == "solved"
        assert render("notify.told.well", {}) in _said(well)
        assert well.mail["References"] == first.mail["References"], "one conversation"
        _each_is_explained(story, before, int(well.mail["X-Virtha-Event"]))
        _nobody_is_woken(story, mails, dead)
        assert _to(mails, CALM, mark) == [first, well], "and nothing after it"

        print("h2 dies under a silence")
        mark = mails.mark()
        silence = _silenced(story)
        _wait_for(mails, CALM, "notify.silence.set", after=mark)  # who silenced what is told itself
        mark = mails.mark()
        hidden = _dies_and_returns(story, "h2", again=True)
        with _hold(story) as held:
            assert [_said(one) for one in mails.since(mark)] == []
            assert _fate(story, hidden, "calm")["code"] == "notify.why.solved_untold"
            fate = _fate(story, held, "calm")
            assert fate["code"] == "notify.why.silenced"
            assert fate["by_text"].endswith(": new switch"), "who, and why"
            assert render("notify.why.solved_untold", {}) in _why(story, hidden)
            assert "a silence fits" in (why := _why(story, held)) and "new switch" in why
            story.lab.virtha("notify", "silence", "end", silence)
            told = _wait_for(mails, CALM, "hold.set", after=mark)
            assert int(told.mail["X-Virtha-Event"]) == held
            assert mails.since(mark) == [told], "what was over by the silence's end stays untold"


def _dies_and_returns(story: Story, host: str, *, again: bool = False) -> int:
    """All of its guests run elsewhere then, and it is back; the number of the event that says that it is dead. ``again``: another host
    died with them shortly before, so that they wait for somebody who frees them (M5)."""
    revision = story.revision()
    faults.kill_host(story.lab, host, silent=True)
    dead = _event(story, "host.judged_dead", revision)
    if again:
        wait_until(
            lambda: len(story.api.events(after=revision, code="vm.quarantined")) == len(VMS),
            "all guests are held back",
            timeout_s=PATIENCE_S,
        )
        assert [story.lab.copies_of(name) for name in VMS] == [[]] * len(VMS)
        story.lab.virtha("vm", "free", *VMS)
    for name in VMS:
        _wait_elsewhere(story, name, host)
        story.wait_agent(name)
    faults.boot_host(story.lab, host)
    _event(story, "host.returned", revision)
    over = _event(story, "host.incident_over", revision)
    print(f"{host}: {over['message']}")
    return int(dead["revision"])


def _wait_elsewhere(story: Story, name: str, host: str) -> None:
    def runs() -> bool:
        copies = story.lab.copies_of(name)
        assert len(copies) <= 1, copies
        return bool(copies) and copies != [host]

    wait_until(runs, f"{name} runs elsewhere", timeout_s=PATIENCE_S)


def _event(story: Story, code: str, after: int) -> Json:
    found: list[Json] = []

    def came() -> bool:
        found.extend(story.api.events(after=after, code=code))
        return bool(found)

    wait_until(came, f"event {code}", timeout_s=PATIENCE_S, pause_s=0.2)
    return found[0]


def _to(mails: MailWitness, address: str, after: int = 0) -> list[ToldMail]:
    return [one for one in mails.since(after) if one.mail["To"] == address]


def _wait_for(mails: MailWitness, address: str, code: str, *, after: int = 0) -> ToldMail:
    return mails.wait(
        lambda told: told.mail["To"] == address and told.mail["X-Virtha-Code"] == code,
        f"a mail of {code} to {address}",
        after=after,
        timeout_s=PATIENCE_S,
    )


def _said(told: ToldMail) -> str:
    body = told.mail.get_body(("plain",))
    assert body is not None
    return f"{told.mail['Subject']}\n{body.get_content()}".replace("\r\n", "\n")


def _is_about_the_host(told: ToldMail, host: str) -> None:
    said = _said(told)
    print(said)
    assert told.mail["X-Virtha-Kind"] == "problem"
    assert host in said.split("Failed host:")[1].splitlines()[0]
    for name in VMS:
        assert f"  {name}: " in said, "each of its guests, and how far it is on its way back"


def _nobody_is_woken(story: Story, mails: MailWitness, dead: int) -> None:
    """What waits is told when the night is over: as it ends here."""
    woken = [_said(one) for one in _to(mails, NIGHT) if one.mail["X-Virtha-Severity"] != "alert"]
    assert woken == []
    assert _fate(story, dead, "night")["code"] == "notify.why.quiet_hours"
    assert _fate(story, dead, "calm")["code"] == "notify.why.told"
    said = _why(story, dead)
    assert "quiet hours" in said and "told" in said
    story.lab.virtha("notify", "route", "set", "night", "--quiet-hours", "")
    morning = _wait_for(mails, NIGHT, "host.incident_over")
    assert "host.judged_dead" not in morning.mail["X-Virtha-Code"]
    assert _fate(story, dead, "night")["code"] == "notify.why.told"
    story.lab.virtha("notify", "route", "remove", "night", "--yes")


def _each_is_explained(story: Story, after: int, until: int) -> None:
    """Of all that happened to the host and its guests: what became of it at each route, and why."""
    grave = story.api.events(after=after, severity="warning")
    codes = [one["code"] for one in grave if int(one["revision"]) <= until]
    assert {"host.judged_dead", "host.proven_dead", "fence.began"} <= set(codes), codes
    back = story.api.events(after=after, code="vm.recovered")
    assert len(back) == len(VMS)
    for event in back:
        for route in ("calm", "night"):
            assert _fate(story, int(event["revision"]), route)["reason_text"], event
    for revision in (int(one["revision"]) for one in grave if int(one["revision"]) <= until):
        for route in ("calm", "night"):
            fate = _fate(story, revision, route)
            assert fate["state"] is not None and fate["reason_text"], (revision, fate)


def _why(story: Story, revision: int) -> str:
    said = story.lab.virtha("notify", "why", str(revision))
    print(said)
    return said


def _fate(story: Story, revision: int, route: str) -> Json:
    fates = story.api.get(f"/v1/events/{revision}/fates")["routes"]
    (found,) = [one for one in fates if one["subscription"] == route]
    return dict(found)


def _silenced(story: Story) -> str:
    story.lab.virtha("notify", "silence", "add", "new switch", "--for", "1h", "--code", "*")
    (made,) = story.api.get("/v1/silences")["items"]
    return str(made["silence"]["id"])


@contextlib.contextmanager
def _hold(story: Story) -> Iterator[int]:
    """Something that goes on, by its number: told when the silence ends, after all that would be told by then."""
    revision = story.revision()
    story.lab.virtha("hold", "new switch")
    try:
        found = int(_event(story, "hold.set", revision)["revision"])
        wait_until(
            lambda: _fate(story, found, "calm")["state"] is not None,
            "the routes have come to it",
            timeout_s=PATIENCE_S,
        )
        yield found
    finally:
        story.lab.virtha("unhold")
