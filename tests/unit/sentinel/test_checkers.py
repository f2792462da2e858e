"""The checkers must be able to see what they look for."""

import pytest

from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.play import Player

STORY = """# two hosts, one VM
hosts h1 h2
vm web on=h1 ha watchdog=i6300esb:reset
start web
advance 5s
"""


def played(extra: str = "") -> Player:
    player = Player()
    player.play(parse(STORY + extra))
    return player


def test_two_writers_are_seen() -> None:
    player = played()
    host, vm_id = player.world.hosts["h2"], player.world.ids["web"]
    host.grant(vm_id, player.world.server.vms[vm_id].incarnation, until_ms=60_000)
    host.libvirt.start_paused(vm_id)
    player.checkers.one_writer()
    with pytest.raises(Violation, match=r"runs on|writes while"):
        host.libvirt.run(vm_id)
    with pytest.raises(Violation, match="runs on"):
        player.checkers.one_writer()


def test_a_start_by_a_host_that_holds_nothing_is_seen() -> None:
    player = played("shutdown web\nadvance 5s\n")
    with pytest.raises(Violation, match="does not hold it"):
        player.checkers.start_is_granted(player.world.hosts["h1"], player.world.ids["web"])


def test_a_lost_firing_is_seen() -> None:
    player = played("fire web\nadvance 10s\n")
    server = player.world.server
    server.history = [entry for entry in server.history if entry.code != "vm.watchdog.fired"]
    with pytest.raises(Violation, match="fired 1 times, 0 are told"):
        player.checkers.at_end()


def test_an_invented_firing_is_seen() -> None:
    player = played("fire web\nadvance 10s\n")
    server = player.world.server
    server.history += [entry for entry in server.history if entry.code == "vm.watchdog.fired"]
    with pytest.raises(Violation, match="more are told"):
        player.checkers.at_end()


def test_a_vm_that_is_down_without_a_reason_is_seen() -> None:
    player = played("virsh destroy web\nadvance 5s\n")
    known = player.world.server.vms[player.world.ids["web"]]
    assert known.report is not None
    known.report = type(known.report)(
        vm_id=known.report.vm_id, incarnation=known.report.incarnation, state=known.report.state
    )
    with pytest.raises(Violation, match="without an open reason"):
        player.checkers.at_end()


def test_an_untrue_report_is_seen() -> None:
    player = played()
    player.world.hosts["h1"].libvirt.end_silently(player.world.ids["web"], "crashed")
    with pytest.raises(Violation):
        player.checkers.at_end()
