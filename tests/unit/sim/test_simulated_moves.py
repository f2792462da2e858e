"""Simulated live migrations: what two hypervisors do by themselves, and checkers that see it when they do it wrong."""

import pytest

from virtha.engine.events import MigrateCommand, SettleMigration
from virtha.engine.records import OrderId
from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.orders import MigrationWord
from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.migration import BYTES_PER_MS, LiveMigration, Phase
from virtha.sim.play import Player

RUNNING = "engine\nhosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\n"


def played(lines: str, player: Player | None = None) -> Player:
    player = player or Player()
    for step in parse(f"# a story\n{lines}").steps:
        player.do(step)
    return player


def web(player: Player) -> VmId:
    return player.world.ids["web"]


def phases(player: Player) -> list[Phase]:
    """Of all migrations from now on."""
    seen: list[Phase] = []
    before = player.world.migrations.on_phase

    def note(vm_id: VmId, phase: Phase) -> None:
        seen.append(phase)
        before(vm_id, phase)

    player.world.migrations.on_phase = note
    return seen


def test_one_passes_all_phases_in_their_order_and_stands_still_for_a_moment():
    player = played(RUNNING)
    seen = phases(player)
    played("migrate web to=h2\nadvance 5s\n", player)
    assert seen == [Phase.BEGUN, Phase.COPYING, Phase.STANDS, Phase.RUNS, Phase.OVER]
    assert player.world.running_on(web(player)) == ["h2"]


@pytest.mark.parametrize("gib", [1, 4])
def test_its_memory_takes_its_time(gib: int):
    player = played(
        f"engine\nhosts h1 h2\nvm web on=h1 ha memory={gib}GiB\nstart web\nadvance 10s\n"
    )
    seen = phases(player)
    played("migrate web to=h2\n", player)
    needed_ms = (gib << 30) // BYTES_PER_MS
    player.world.kernel.advance(needed_ms)
    assert Phase.STANDS not in seen
    player.world.kernel.advance(1_000)
    assert Phase.OVER in seen


def test_the_disks_writers_follow_each_other():
    player = played(f"{RUNNING}migrate web to=h2\nadvance 5s\nmigrate web to=h1\nadvance 5s\n")
    writers = player.world.storage.disk(web(player)).writers
    assert [(one.host, one.incarnation) for one in writers] == [("h1", 1), ("h2", 2), ("h1", 3)]


def test_an_incoming_grant_is_no_right_to_start():
    player = played(f"{RUNNING}freeze h1 agent\nmigrate web to=h2\nadvance 1s\n")
    h2 = player.world.hosts["h2"]
    assert h2.grants[web(player)].incoming
    played("virsh start web on=h2\n", player)
    assert player.world.running_on(web(player)) == ["h1"]


def test_the_guest_goes_on_where_it_was():
    """Its uptime counts on, so nobody takes its arrival for a boot."""
    player = played(f"{RUNNING}advance 60s\nmigrate web to=h2\nadvance 5s\n")
    h2 = player.world.hosts["h2"]
    qemu = h2.libvirt.domain(web(player)).qemu
    assert qemu is not None
    assert h2.clock() - qemu.guest_boot_ms > 60_000


# Checkers: each of these is a hypervisor, a gate or a server that does what it must not


def test_a_source_that_its_libvirt_lets_run_on_unasked_is_a_violation():
    """What libvirt did before it was taught to stand still: no answer, so it goes on by itself."""
    player = played(f"{RUNNING}in-migration web runs cut net h1\nmigrate web to=h2\nadvance 5s\n")
    with pytest.raises(Violation, match=r"h1 .* writes while h2"):
        player.world.hosts["h1"].libvirt.go_on(web(player))


def test_a_target_that_begins_before_the_source_stands_still_is_a_violation():
    player = played(f"{RUNNING}busy web yes\nmigrate web to=h2\nadvance 2s\n")
    (migration,) = player.world.migrations._last.values()
    with pytest.raises(Violation, match="while h1 runs it"):
        player.move_truth.committed(migration)


def test_a_target_that_begins_before_the_sources_writes_have_landed_is_a_violation():
    player = played(
        f"{RUNNING}in-migration web copying cut storage h1\nmigrate web to=h2\nadvance 3s\n"
    )
    (migration,) = player.world.migrations._last.values()
    assert migration.phase is Phase.COPYING, "it waits for its I/O"
    player.world.hosts["h1"].libvirt.stand_still(web(player))
    with pytest.raises(Violation, match="before h1's writes"):
        player.move_truth.committed(migration)


def test_a_copy_that_bears_an_old_number_is_a_violation():
    player = played(
        f"{RUNNING}in-migration web stands stop-libvirt h2\nmigrate web to=h2\nadvance 3s\n"
    )
    (migration,) = player.world.migrations._last.values()
    assert isinstance(migration, LiveMigration)
    h2 = player.world.hosts["h2"]
    h2.expect(web(player), Incarnation(1), until_ms=1 << 40)
    with pytest.raises(Violation, match="not above"):
        player.move_truth.committed(migration)


def move(player: Player, source: str, target: str) -> MigrateCommand:
    return MigrateCommand(
        order_id=OrderId("9.1"),
        vm_id=web(player),
        source=HostId(source),
        target=HostId(target),
        source_boot=BootId(f"{source}-boot-1"),
        target_boot=BootId(f"{target}-boot-1"),
        source_incarnation=Incarnation(1),
        incarnation=Incarnation(2),
        deadline_ms=60_000,
    )


def test_moving_a_vm_that_nobody_wants_moved_is_a_violation():
    player = played(RUNNING)
    lead = player.world.server.lead
    with pytest.raises(Violation, match="nobody wanted that"):
        player.move_truth.command_given(lead, move(player, "h1", "h2"))
    player.move_truth.emptied.add("h1")
    player.move_truth.command_given(lead, move(player, "h1", "h2"))


def test_moving_a_vm_while_a_third_host_has_it_is_a_violation():
    player = played(f"{RUNNING}maintenance h2 on\n")
    with pytest.raises(Violation, match="while h1 has it"):
        player.move_truth.command_given(player.world.server.lead, move(player, "h2", "h3"))


def test_letting_one_side_run_while_the_other_has_something_left_is_a_violation():
    player = played(
        f"{RUNNING}in-migration web stands stop-libvirt h2\nmigrate web to=h2\nadvance 3s\n"
    )
    word = SettleMigration(
        order_id=OrderId("9.1"),
        vm_id=web(player),
        host_id=HostId("h1"),
        boot=BootId("h1-boot-1"),
        incarnation=Incarnation(1),
        word=MigrationWord.RUN,
    )
    with pytest.raises(Violation, match="while h2 has some of it"):
        player.move_truth.command_given(player.world.server.lead, word)


def test_letting_a_source_run_after_the_target_wrote_is_a_violation():
    player = played(
        f"{RUNNING}in-migration web runs cut net h1\nmigrate web to=h2\nadvance 3s\nvirsh destroy web on=h2\n"
    )
    word = SettleMigration(
        order_id=OrderId("9.1"),
        vm_id=web(player),
        host_id=HostId("h1"),
        boot=BootId("h1-boot-1"),
        incarnation=Incarnation(1),
        word=MigrationWord.RUN,
    )
    with pytest.raises(Violation, match="its disks are h2's"):
        player.move_truth.command_given(player.world.server.lead, word)


# The language


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("migrate db", "no VM 'db'"),
        ("migrate web to=h9", "no host 'h9'"),
        ("busy web perhaps", "busy 'perhaps'"),
        ("in-migration web halfway hang h1", "no phase 'halfway'"),
        ("in-migration web runs advance 5s", "'advance' can't happen there"),
        ("maintenance h9 on", "no host 'h9'"),
        ("maintenance h1 maybe", "maintenance 'maybe'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(line: str, told: str):
    player = played(RUNNING)
    with pytest.raises(InvalidInput, match=told) as refused:
        played(f"{line}\n", player)
    assert refused.value.field == "line 2"
    assert refused.value.allowed


@pytest.mark.bad_input
def test_moves_need_an_engine():
    player = played("hosts h1 h2\nvm web on=h1 ha\nstart web\nadvance 5s\n")
    with pytest.raises(InvalidInput, match="needs an engine"):
        played("migrate web to=h2\n", player)
