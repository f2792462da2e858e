"""What only a person ends, on the real store with a real engine: quarantine, giving up, and the brake on power orders."""

from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, PlayedHost, tell, two_hosts_and_a_vm, while_turning

from virtha.control.requests import DeathConfirmation, VmStart
from virtha.engine.records import VmStage
from virtha.model.errors import NotFound, Refused, Unavailable
from virtha.model.facts import Result
from virtha.model.ids import VmId

SILENT_MS = 90_000
LOOKS_MAX = 100


async def two_hosts_die_with_web1(world: LedWorld) -> tuple[VmId, PlayedHost]:
    """One after the other, by the operator's word. The host that is left could take it."""
    await world.join("h3")
    vm_id = await two_hosts_and_a_vm(world)
    await is_said_to_be_dead(world, "h1", ("h2", "h3"))
    where = (await world.vm()).status.holders
    (second,) = (host for host in world.hosts.values() if host.id in where)
    await second.started(second.starts()[-1])
    await world.settle()
    (left,) = {"h2", "h3"} - {second.name}
    await is_said_to_be_dead(world, second.name, (left,))
    assert (await world.record(vm_id)).stage is VmStage.QUARANTINED
    return vm_id, world.hosts[left]


async def is_said_to_be_dead(world: LedWorld, name: str, beating: tuple[str, ...]) -> None:
    world.hosts[name].vanish()
    await world.pass_time(SILENT_MS, beating=beating)
    care = world.control.host_care
    ticket = await care.ask_about_death(ADMIN, name)
    said = DeathConfirmation(ticket=ticket.ticket, name=name)
    await while_turning(world, care.confirm_death(ADMIN, name, said))
    await world.settle()


@pytest.mark.req("F9", "X1")
def test_a_quarantined_vm_starts_again_when_a_person_frees_it_and_not_before(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id, left = await two_hosts_die_with_web1(world)
        await world.restart()
        await left.hello()
        await left.tell_all()
        await world.settle()
        await world.pass_time(SILENT_MS, beating=(left.name,))
        assert world.all_starts() == [], "a restart of the server frees nothing"
        free = world.control.freeing.free_vm
        await while_turning(world, free(ADMIN, "web1"))
        await world.settle()
        assert [host_id for host_id, _ in world.all_starts()] == [left.id]
        assert (await world.record(vm_id)).deaths == ()
        (told,) = await world.events("vm.freed")
        assert (told.vm_id, told.fields["by"]) == (vm_id, "admin")
        with pytest.raises(Refused) as again:
            await free(ADMIN, "web1")
        assert again.value.code == "problem.vm.state" and "explain" in again.value.fix
        with pytest.raises(NotFound):
            await free(ADMIN, "web9")

    tell(tmp_path, story)


@pytest.mark.req("F9", "X1")
def test_a_vm_whose_starts_all_failed_is_tried_anew_when_a_person_frees_it(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        await is_said_to_be_dead(world, "h1", ("h2",))
        h2 = world.hosts["h2"]
        failed = 0
        for _ in range(LOOKS_MAX):
            for order in h2.starts()[failed:]:
                await h2.answer(order, Result.FAILED, code="start.failed")
                failed += 1
            await world.settle()
            if (await world.record(vm_id)).stage is VmStage.GIVEN_UP:
                break
            await world.pass_time(10_000, beating=("h2",))
        (told,) = await world.events("vm.recovery_given_up")
        assert told.fields["attempts"] == failed > 0
        await while_turning(world, world.control.freeing.free_vm(ADMIN, "web1"))
        await world.settle()
        assert len(h2.starts()) == failed + 1
        assert (await world.record(vm_id)).attempts == 0

    tell(tmp_path, story)


@pytest.mark.req("F9", "X1")
def test_a_quarantined_vm_that_a_person_starts_keeps_its_deaths(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id, left = await two_hosts_die_with_web1(world)
        starting = world.control.vms.start(ADMIN, "web1", VmStart(host=left.name))
        await while_turning(world, starting)
        await world.settle()
        (order,) = left.starts()
        await left.started(order)
        await world.settle()
        record = await world.record(vm_id)
        assert record.stage is VmStage.SETTLED and len(record.deaths) == 2
        with pytest.raises(Refused):
            await world.control.freeing.free_vm(ADMIN, "web1")

    tell(tmp_path, story)


def test_nobody_frees_a_vm_whose_cluster_is_led_by_nobody(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id, _ = await two_hosts_die_with_web1(world)
        world.engines._feeds.clear()
        with pytest.raises(Unavailable, match="nobody leads"):
            await world.control.freeing.free_vm(ADMIN, "web1")
        assert (await world.record(vm_id)).stage is VmStage.QUARANTINED

    tell(tmp_path, story)


@pytest.mark.req("F9")
def test_the_brake_is_shown_and_lifted_by_a_person(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        for number in range(1, 6):
            await world.join(f"h{number}")
        await two_hosts_and_a_vm(world)
        freeing = world.control.freeing
        assert not (await freeing.brake("default")).on
        with pytest.raises(Refused) as off:
            await freeing.lift_brake(ADMIN, "default")
        assert "not on" in str(off.value)
        for name in ("h1", "h3", "h4"):
            world.hosts[name].vanish()
        await world.pass_time(20_000, beating=("h2", "h5"))
        view = await freeing.brake("default")
        assert (view.cluster, view.on, view.hosts) == ("default", True, 3)
        lifted = await while_turning(world, freeing.lift_brake(ADMIN, "default"))
        assert lifted == await freeing.brake("default") and not (await freeing.brake("default")).on
        (told,) = await world.events("fence.brake.lifted")
        assert told.fields["by"] == "admin"
        await world.pass_time(5_000, beating=("h2", "h5"))
        assert not (await freeing.brake("default")).on, "those that had fallen trip it no more"
        with pytest.raises(NotFound):
            await freeing.brake("other")

    tell(tmp_path, story)
