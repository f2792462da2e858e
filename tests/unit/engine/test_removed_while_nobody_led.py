"""Hosts that were removed while nobody led: whatever the order in which the next leader learns of hosts and VMs, somebody is
told, nobody is taken for out of the question for it (P1), and a machine that joins again answers for no other host."""

from collections.abc import Callable

import msgspec
import pytest
from engine_driver import Play, PlayedHost, vm
from engine_review_driver import playing
from test_removed_hosts import confirm

from virtha.engine.events import EngineEvent, HostConfigured, StartCommand, VmConfigured
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.ids import BootId, HostId, VmId

pytestmark = pytest.mark.req("F9", "X1")


def remove_while_nobody_leads(play: Play, *names: str) -> None:
    play.configs = [one for one in play.configs if one.host_id not in names]
    for name in names:
        play.hosts[name].beating = False


def told_later(play: Play, kind: type[EngineEvent]) -> Callable[[], None]:
    """The next leader is told of the others first; the result tells it of those."""
    later: list[EngineEvent] = []

    def keep_back() -> None:
        later.extend(one for one in play.inbox if isinstance(one, kind))
        play.inbox = [one for one in play.inbox if not isinstance(one, kind)]

    def tell() -> None:
        play.inbox += later
        for host in play.hosts.values():
            if host.alive:
                play._greet(host)
        play.tick()

    play.before_first_step = keep_back
    return tell


@pytest.mark.parametrize("kind", [VmConfigured, HostConfigured])
def test_in_whatever_order_hosts_and_vms_are_made_known_somebody_is_told(
    kind: type[EngineEvent],
):
    play = playing()
    remove_while_nobody_leads(play, "h1")
    tell = told_later(play, kind)
    play.new_leader()
    play.advance(1_000)
    tell()
    play.advance(120_000)
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.told().count("host.removed_unproven") == 1
    assert play.sent(StartCommand) == []
    play.hosts["h1"].cut()
    confirm(play)
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)


def test_a_vm_that_is_made_known_last_of_all_is_not_forgotten():
    """Its host was found to be removed by another VM before."""
    play = playing(vms=[vm("v1"), vm("v2"), vm("v3")])
    play.run("v3", "h1")
    remove_while_nobody_leads(play, "h1")
    late = next(one for one in play.vms if one.vm_id == "v3")
    play.vms.remove(late)
    play.new_leader()
    play.advance(10_000)
    play.inbox.append(VmConfigured(vm=late))
    play.advance(10_000)
    assert play.why_vm("v1") == play.why_vm("v3") == ["recovery.waiting.removed"]


def test_all_of_them_removed_is_told_as_well():
    play = playing()
    remove_while_nobody_leads(play, *play.hosts)
    play.new_leader()
    assert "host.removed_unproven" not in play.told()
    play.advance(60_000)
    assert play.told().count("host.removed_unproven") == 2
    assert play.why_vm("v1") == play.why_vm("v2") == ["recovery.waiting.removed"]


def test_a_host_that_is_made_known_after_the_others_is_as_it_was():
    play = playing()
    late = next(one for one in play.configs if one.host_id == "h1")
    play.configs.remove(late)
    play.new_leader()
    play.inbox.append(HostConfigured(host=late))
    play._greet(play.hosts["h1"])
    play._say(play.hosts["h1"], VmId("v1"))
    play.advance(60_000)
    assert play.verdict("h1") is Verdict.ALIVE and play.offs() == []
    assert play.vm_record("v1").stage is VmStage.SETTLED and play.why_vm("v1") == []
    assert play.engine.records().cluster.removed == ()


def test_a_host_that_our_order_struck_and_that_was_removed_speaks_against_the_proof():
    """P1: the addresses of h1 and h2 are swapped. h1 hangs, the order strikes h2, and h2 is removed before the next leader:
    that finds h1 to read *off* and nobody else silent. h1 may thaw."""
    play = playing()
    one, other = play.hosts["h1"], play.hosts["h2"]
    one.bmc_strikes, other.bmc_strikes = other, one
    one.hang()
    play.until(lambda: play.offs() == ["h1"])
    assert not other.powered
    remove_while_nobody_leads(play, "h2")
    play.new_leader()
    play.advance(120_000)
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN
    assert play.where("v1") == ["h1"] and play.sent(StartCommand) == []
    play.new_leader()
    play.advance(5_000)
    assert len(play.engine.records().cluster.removed) == 1, "noted once, not by each leader"


def joined_again(play: Play, *, boot: str) -> PlayedHost:
    """The machine of h1 comes as h9, with an identity of its own."""
    host = PlayedHost(9)
    host.boots = 0
    play.hosts["h9"] = host
    play.configs.append(
        msgspec.structs.replace(play._config(host), host_id=HostId("h9"), name="h1")
    )
    host.__class__ = _named_boot(boot)
    play.inbox.append(HostConfigured(host=play.configs[-1]))
    return host


def _named_boot(boot: str) -> type[PlayedHost]:
    class Again(PlayedHost):
        @property
        def boot(self) -> BootId:
            return BootId(boot)

    return Again


def test_a_machine_that_joins_again_in_the_same_boot_is_a_holder_and_nothing_starts():
    """It runs v1 on; the question about its former host stays the operator's, and an answer harms nobody."""
    play = playing()
    remove_while_nobody_leads(play, "h1")
    play.hosts["h1"].running.clear()
    play.new_leader()
    again = joined_again(play, boot="h1b1")
    again.running[VmId("v1")] = play.vm_record("v1").incarnation
    play._greet(again)
    play._say(again, VmId("v1"))
    play.advance(120_000)
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", "h9"}
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.told().count("host.removed_unproven") == 1
    confirm(play)
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.where("v1") == ["h9"]
    assert play.vm_record("v1").stage is VmStage.SETTLED and play.why_vm("v1") == []


def test_a_machine_that_joins_again_after_a_reboot_answers_for_no_other_host():
    play = playing()
    remove_while_nobody_leads(play, "h1")
    play.hosts["h1"].cut()
    play.new_leader()
    play._greet(joined_again(play, boot="h9b1"))
    play.advance(120_000)
    assert play.where("v1") == [] and play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.told().count("host.removed_unproven") == 1
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)
