"""A VM that stays down is somebody's business: the checker fires where only ``explain`` would say why, and only there."""

import pytest

from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.play import Player

RUNNING = "hosts h1 h2\nvm web on=h1 ha\nstart web\nadvance 20s\n"
PAUSED = f"{RUNNING}io-error web\nbreak-storage errors\nadvance 5m\n"
CUT = "engine\nhosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 20s\nbmc h1 dead\npower-cut h1\n"
HELD_BACK = ("fence.began", "fence.level_failed", "fence.failed", "fence.withheld")


def played(lines: str) -> Player:
    player = Player()
    for step in parse(f"# a story\n{lines}").steps:
        player.do(step)
    return player


def left_out(player: Player, *codes: str) -> Player:
    """As of an agent or engine that does not say that."""
    history = player.world.server.history
    history[:] = [entry for entry in history if entry.code not in codes]
    return player


def test_what_was_told_of_is_no_violation() -> None:
    player = played(PAUSED)
    assert not player.world.running_on(player.world.ids["web"])
    player.told.at_end()


def test_a_pause_of_which_nobody_is_told_is_a_violation() -> None:
    player = left_out(played(PAUSED), "vm.io_error.paused")
    with pytest.raises(Violation, match="web is down since 20000 and nobody was told"):
        player.told.at_end()


def test_somebody_has_two_minutes_to_tell_it() -> None:
    left_out(
        played(PAUSED.replace("advance 5m", "advance 119s")), "vm.io_error.paused"
    ).told.at_end()


def test_what_was_told_of_the_run_before_does_not_count() -> None:
    story = f"{PAUSED}heal-all\nresume web\nadvance 30s\nio-error web\nbreak-storage errors\nadvance 5m\n"
    player = played(story)
    history = player.world.server.history
    last = max(at for at, entry in enumerate(history) if entry.code == "vm.io_error.paused")
    player.told.at_end()
    del history[last:]
    assert [entry.code for entry in history].count("vm.io_error.paused") == 1
    with pytest.raises(Violation, match="nobody was told"):
        player.told.at_end()


def test_the_moment_between_a_dump_and_the_pause_after_it_is_no_run() -> None:
    story = RUNNING.replace(" ha", " ha watchdog=i6300esb:dump")
    player = played(f"{story}fire web\nadvance 5m\n")
    assert player.world.server.history[-1].code == "vm.paused"
    player.told.at_end()


def test_that_a_host_is_gone_says_nothing_of_its_vms() -> None:
    player = played(f"{CUT}advance 5m\n")
    assert "fence.failed" in [entry.code for entry in player.world.server.history]
    player.told.at_end()
    with pytest.raises(Violation, match="nobody was told"):
        left_out(player, *HELD_BACK).told.at_end()


@pytest.mark.parametrize("deed", ["guest-shutdown web", "virsh destroy web", "virsh suspend web"])
def test_what_somebody_did_is_known_to_them(deed: str) -> None:
    player = played(f"{RUNNING}{deed}\nadvance 10m\n")
    assert not player.world.running_on(player.world.ids["web"])
    player.told.at_end()


def test_a_vm_that_nobody_protects_is_nobodys_alarm() -> None:
    player = left_out(played(PAUSED.replace(" ha", "")), "vm.io_error.paused")
    player.told.at_end()


def test_a_leader_has_its_two_minutes_from_its_beginning() -> None:
    """What an earlier one left untold is no excuse for longer."""
    story = f"{CUT}advance 100s\nstop-server\nadvance 1s\nstart-server\n"
    left_out(played(f"{story}advance 110s\n"), *HELD_BACK).told.at_end()
    player = left_out(played(f"{story}advance 140s\n"), *HELD_BACK)
    with pytest.raises(Violation, match="nobody was told"):
        player.told.at_end()


def test_a_start_that_a_host_refuses_is_told_of_as_the_operation_that_failed() -> None:
    """The record that the host keeps of it says nothing to anybody (random worlds 1974 and 6640)."""
    story = "hosts h1 h2 h3\nvm web on=h1 ha\nstop-libvirt h1\nstart web\nadvance 10s\nheal-all\nadvance 3m\n"
    player = played(story)
    player.told.at_end()
    with pytest.raises(Violation, match="web is down since 0 and nobody was told"):
        left_out(player, "operation.failed").told.at_end()
