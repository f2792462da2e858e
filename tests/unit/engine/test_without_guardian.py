"""A host whose guardian is down and whose agent is connected: no target, no reason to call us cut off, nothing to shoot."""

import pytest
from engine_driver import Play, vm
from engine_review_driver import named, playing

from virtha.engine.events import CancelStart, SessionChanged, StartCommand
from virtha.engine.machine import Verdict
from virtha.model.evidence import ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import VmId

pytestmark = pytest.mark.req("F1", "F4")


def guardian_dies(play: Play, name: str) -> None:
    host = play.hosts[name]
    host.guardian_down = True
    play.inbox.append(
        SessionChanged(host_id=host.id, process=ProcessKind.GUARDIAN, boot=host.boot, up=False)
    )


def test_it_is_no_target_and_says_why():
    play = named(playing(2, vms=[vm("v1")]))
    guardian_dies(play, "h2")
    play.until(lambda: play.verdict("h2") is Verdict.ISOLATED)
    play.hosts["h1"].cut()
    play.until(lambda: "recovery.blocked.no_host" in play.why_vm("v1"))
    assert "guardian" in str(play.engine.explain_vm(VmId("v1")))
    assert play.sent(StartCommand) == []
    assert play.offs() == ["h1"]


def test_it_does_not_keep_others_from_being_fenced():
    """Of three hosts one is down and one has no guardian: we are not cut off, for its agent speaks to us (J4)."""
    play = playing(3)
    guardian_dies(play, "h2")
    play.advance(1_000)
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") == ["h3"])


def test_a_session_that_may_be_stale_counts_for_nothing():
    """It stands, but nobody can have found out yet whether anything comes over it."""
    play = playing(3)
    guardian_dies(play, "h2")
    silent_ms = play.now
    play.advance(1_000)
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    assert play.now - silent_ms >= play.policy.detection.hung_after_ms
    play = playing(3)
    for host in play.hosts.values():
        host.bmc_dead = True
    play.hosts["h2"].hang()  # its sessions end
    play.advance(2_000)
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert play.offs() == [] and "fence.blocked.observer" in play.why("h1")


def test_a_start_that_was_ordered_there_is_taken_back():
    play = playing(4)
    for host in play.hosts.values():
        host.start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    start = play.sent(StartCommand)[0]
    assert isinstance(start, StartCommand)
    for host in play.hosts.values():
        host.start_result = Result.OK
    guardian_dies(play, start.host_id)
    took_ms = play.until(lambda: play.where("v1") != [])
    assert took_ms < play.policy.recovery.attempt_ms
    assert play.where("v1") != [start.host_id]
    assert len(play.sent(CancelStart)) == 1
