"""What the operator's word proves, and what it is refused for (P6)."""

import pytest
from engine_driver import Play
from engine_review_driver import playing

from virtha.engine.events import (
    DeathConfirmed,
    Poison,
    StartCommand,
    StorageFence,
)
from virtha.engine.machine import Verdict
from virtha.model.ids import BootId, HostId
from virtha.model.policy import (
    FencingAction,
    FencingPolicy,
)

H1 = HostId("h1")


def confirm(play: Play, *, force: str | None = None, boot: str = "h1b1", incident: int = 1) -> None:
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h1"),
            boot=BootId(boot),
            incident=incident,
            by="admin",
            force_reason=force,
        )
    )
    play.tick()


def unproven(*, ceph: bool = False, **settings: object) -> Play:
    play = playing(fencing=FencingPolicy(action=FencingAction.NOTHING), **settings)
    if ceph:
        play.tell_ceph("rbd1")
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    return play


def test_an_operators_word_is_proof_and_fences_all_the_same():
    """P6. What it shut out is that host, by what it told while it lived, and its VM does not wait for that."""
    play = unproven(ceph=True)
    play.advance(60_000)
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=1_000)
    play.until(lambda: play.shut_out == {("cluster-1", "10.0.0.1")})
    play.advance(60_000)
    assert len(play.sent(Poison)) == 1 and len(play.sent(StorageFence)) == 1


@pytest.mark.parametrize(
    ("boot", "incident"), [("h1b0", 1), ("h1b1", 2)], ids=["other boot", "other incident"]
)
def test_an_operators_word_about_something_else_is_refused(boot: str, incident: int):
    play = unproven()
    play.advance(60_000)
    confirm(play, boot=boot, incident=incident)
    play.advance(5_000)
    assert play.sent(StartCommand) == []
    assert play.notices[-1].fields["why"] == "confirm.refused.other_incident"


def test_an_operators_word_is_refused_while_life_was_seen_unless_forced():
    play = unproven()
    confirm(play)
    assert play.sent(StartCommand) == []
    assert play.notices[-1].fields["why"] == "confirm.refused.life_seen"
    confirm(play, force="I stand in front of it")
    play.until(lambda: play.where("v1") != [], within_ms=1_000)


def said(play: Play) -> str:
    """To an incident of more than a minute: proven, or why not."""
    incident = play.host_record("h1").incident
    assert incident is not None
    play.inbox.append(
        DeathConfirmed(host_id=H1, boot=incident.boot, incident=incident.number, by="admin")
    )
    play.tick()
    if play.verdict("h1") is Verdict.DEAD_PROVEN:
        return "proven"
    refused = [one for one in play.notices if one.code == "host.confirmation_refused"]
    return str(refused[-1].fields["why"])


@pytest.mark.parametrize(
    ("doubt", "answer"),
    [
        ("power", "confirm.refused.power_on"),
        ("disks", "confirm.refused.life_seen"),
        ("none", "proven"),
    ],
)
def test_what_speaks_against_the_operators_word(doubt: str, answer: str):
    play = playing(fencing=FencingPolicy(action=FencingAction.NOTHING))
    host = play.hosts["h1"]
    host.hang()
    host.bmc_dead = doubt != "power"
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.advance(70_000)
    host.disks_change = doubt == "disks"
    play.advance(5_000)
    host.disks_change = False
    play.advance(5_000)
    if doubt == "none":
        host.cut()
    assert said(play) == answer
