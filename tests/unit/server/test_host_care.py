"""What operators say about hosts, on the real store with a real engine: maintenance, and the word that one is dead (P6)."""

from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, PlayedHost, tell, two_hosts_and_a_vm, while_turning

from virtha.control.host_care import TICKET_VALID_MS
from virtha.control.requests import DeathConfirmation, MaintenanceChange, VmStart
from virtha.control.views import Caller, DeathTicket
from virtha.model.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    Unavailable,
    VirthaError,
)
from virtha.model.ids import HostId, VmId
from virtha.model.user import Role
from virtha.store.engine import find_host_record, hosts_in_maintenance

OTHER = Caller(name="other", role=Role.OPERATOR)


async def h1_is_silent(world: LedWorld, silent_ms: int) -> VmId:
    """web1 ran on h1, of which nothing is heard."""
    vm_id = await two_hosts_and_a_vm(world)
    world.hosts["h1"].vanish()
    await world.pass_time(silent_ms, beating=("h2",))
    return vm_id


def starts_on(host: PlayedHost) -> int:
    return len(host.starts())


# P6


@pytest.mark.req("F9")
def test_the_operators_word_frees_the_vms_of_a_silent_host_once(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_is_silent(world, 90_000)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        assert starts_on(h2) == 0
        care = world.control.host_care
        ticket = await care.ask_about_death(ADMIN, "h1")
        assert (ticket.host, ticket.boot, ticket.vms) == ("h1", "h1-boot1", ("web1",))
        for wrong in (
            DeathConfirmation(ticket=ticket.ticket, name="h2"),
            DeathConfirmation(ticket=ticket.ticket, name="h1", force_reason="  "),
        ):
            with pytest.raises(InvalidInput):
                await care.confirm_death(ADMIN, "h1", wrong)
        await world.settle()
        assert starts_on(h2) == 0, "nothing was said yet"
        said = DeathConfirmation(ticket=ticket.ticket, name="h1")
        await while_turning(world, care.confirm_death(ADMIN, "h1", said))
        await world.settle()
        assert starts_on(h2) == 1
        assert (await world.vm()).status.holders == (h2.id,)
        with pytest.raises(Refused) as again:
            await care.confirm_death(ADMIN, "h1", said)
        assert again.value.code == "problem.token.unknown"
        assert h1.id == ticket.host_id
        (told,) = await world.events("host.death_confirmed")
        assert (told.host_id, told.cluster_id) == (h1.id, world.feed.cluster_id)
        assert (told.user, told.fields["by"], told.fields["incident"]) == ("admin", "admin", 1)

    tell(tmp_path, story)


def test_whatever_speaks_against_it_is_named_and_only_a_reason_overrides_it(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_is_silent(world, 20_000)
        care = world.control.host_care
        ticket = await care.ask_about_death(ADMIN, "h1")
        said = DeathConfirmation(ticket=ticket.ticket, name="h1")
        with pytest.raises(Refused) as refused:
            await while_turning(world, care.confirm_death(ADMIN, "h1", said))
        assert refused.value.code == "confirm.refused.life_seen" and refused.value.fix
        assert starts_on(world.hosts["h2"]) == 0
        assert await world.events("host.death_confirmed") == [], "it was not believed"
        ticket = await care.ask_about_death(ADMIN, "h1")
        forced = DeathConfirmation(ticket=ticket.ticket, name="h1", force_reason="I hold its plug")
        await while_turning(world, care.confirm_death(ADMIN, "h1", forced))
        await world.settle()
        assert starts_on(world.hosts["h2"]) == 1
        (told,) = await world.events("host.death_confirmed")
        assert told.fields["force_reason"] == "I hold its plug"

    tell(tmp_path, story)


def test_a_ticket_is_one_users_for_one_host_for_ten_minutes(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_is_silent(world, 90_000)
        care = world.control.host_care

        async def code_of(caller: Caller, ref: str, ticket: DeathTicket | str, name: str) -> str:
            text = ticket if isinstance(ticket, str) else ticket.ticket
            with pytest.raises(VirthaError) as wrong:
                await care.confirm_death(caller, ref, DeathConfirmation(ticket=text, name=name))
            return wrong.value.code

        first = await care.ask_about_death(ADMIN, "h1")
        assert await code_of(OTHER, "h1", first, "h1") == "problem.token.unknown"
        assert await code_of(ADMIN, "h2", first, "h2") == "problem.token.unknown"
        assert await code_of(ADMIN, "h1", "guessed", "h1") == "problem.token.unknown"
        second = await care.ask_about_death(ADMIN, "h1")
        assert await code_of(ADMIN, "h1", first, "h1") == "problem.token.unknown", "replaced"
        world.clock.now += TICKET_VALID_MS
        assert await code_of(ADMIN, "h1", second, "h1") == "problem.token.unknown"
        with pytest.raises(Refused) as alive:
            await care.ask_about_death(ADMIN, "h2")
        assert alive.value.code == "confirm.refused.other_incident"
        with pytest.raises(NotFound):
            await care.ask_about_death(ADMIN, "h9")

    tell(tmp_path, story)


def test_a_host_that_returned_since_the_operator_looked_is_not_taken_for_dead(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await h1_is_silent(world, 90_000)
        h1 = world.hosts["h1"]
        care = world.control.host_care
        ticket = await care.ask_about_death(ADMIN, "h1")
        await h1.hello()
        await h1.tell_all(vm_id)
        await world.settle()
        with pytest.raises(Conflict):
            await care.confirm_death(
                ADMIN, "h1", DeathConfirmation(ticket=ticket.ticket, name="h1")
            )
        await world.settle()
        assert (await world.vm()).status.holders == (h1.id,)
        assert starts_on(world.hosts["h2"]) == 0

    tell(tmp_path, story)


def test_without_a_leader_nothing_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: LedWorld) -> None:
        await h1_is_silent(world, 90_000)
        care = world.control.host_care
        ticket = await care.ask_about_death(ADMIN, "h1")
        world.engines._feeds.clear()
        with pytest.raises(Unavailable, match="nobody leads"):
            await care.confirm_death(
                ADMIN, "h1", DeathConfirmation(ticket=ticket.ticket, name="h1")
            )

    tell(tmp_path, story)


# Maintenance


def test_a_host_in_maintenance_takes_no_start_and_stays_so_over_a_restart(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        await world.add_vm()
        await world.settle()
        care = world.control.host_care
        assert not (await care.maintenance("h1")).on
        change = MaintenanceChange(on=True, drain=False)
        view = await while_turning(world, care.set_maintenance(ADMIN, "h1", change))
        assert view == await care.maintenance("h1")
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        assert "maintenance" in str(refused.value)
        await world.run_vm("web1", "h2")
        await world.restart()
        found = await world.control.host_care.maintenance("h1")
        assert (found.on, found.by, found.drain) == (True, "admin", False)
        off = MaintenanceChange(on=False)
        await while_turning(world, world.control.host_care.set_maintenance(ADMIN, "h1", off))
        assert not (await world.control.host_care.maintenance("h1")).on
        told = [*await world.events("host.maintenance.begun")]
        told += await world.events("host.maintenance.ended")
        assert [(one.host_id, one.user) for one in told] == [(world.hosts["h1"].id, "admin")] * 2
        async with world.store.read() as tx:
            assert await hosts_in_maintenance(tx, world.feed.cluster_id) == frozenset()
            assert await find_host_record(tx, HostId("nobody")) is None

    tell(tmp_path, story)


def test_a_host_that_is_to_be_emptied_says_what_is_left(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await two_hosts_and_a_vm(world)
        care = world.control.host_care
        view = await while_turning(
            world, care.set_maintenance(ADMIN, "h1", MaintenanceChange(on=True))
        )
        found = await care.maintenance("h1")
        assert view == found and (found.drain, found.vms) == (True, ("web1",))
        assert len(await world.events("host.drain_began")) == 1
        with pytest.raises(NotFound):
            await care.set_maintenance(ADMIN, "h9", MaintenanceChange(on=True))

    tell(tmp_path, story)
