"""Never two writers: what the server may conclude from what hosts say (safety.md, G1, G2, G4, M2)."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.copies import LIST_MARGIN_MS
from virtha.control.requests import AdoptRequest, VmStart
from virtha.control.views import Caller
from virtha.model.domain import DomainReport, DomainState
from virtha.model.errors import NotFound, Refused
from virtha.model.facts import ForeignDomain, Inventory, Released, Result, StorageReport, VmReport
from virtha.model.host import HostState
from virtha.model.ids import BootId, ClusterId, Incarnation, VmId
from virtha.model.operation import OperationState
from virtha.model.orders import ReleaseVm, StartVm
from virtha.model.user import Role
from virtha.model.vm import Vm, VmState

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
GIB, MIB = 1 << 30, 1 << 20
Tell = Callable[[Any], None]


def report(vm_id: VmId, incarnation: int, state: VmState) -> VmReport:
    return VmReport(vm_id=vm_id, incarnation=Incarnation(incarnation), state=state)


def release(vm_id: VmId, incarnation: int) -> Released:
    return Released(vm_id=vm_id, incarnation=Incarnation(incarnation))


def domain(vm_id: VmId, state: DomainState) -> DomainReport:
    return DomainReport(vm_id=vm_id, name="web1", state=state)


async def status_of(world: Any, name: str = "web1") -> Any:
    return (await world.control.vms.get(name)).status


async def two_hosts(world: Any) -> tuple[Any, Any]:
    """With a VM that was never started, and room for it on both."""
    hosts = await world.join("h1"), await world.join("h2")
    await world.add_storage()
    await world.add_vm()
    return hosts


async def start(world: Any, **wanted: Any) -> Any:
    """The host that was told to."""
    await world.control.vms.start(ADMIN, "web1", VmStart(**wanted))
    return world.of(world.links.delivered[-1][0])


# G1: one start's release is not another's


async def unknown_then_refused(world: Any) -> tuple[Any, VmId]:
    """Start 1's outcome is unknown, its QEMU may run. Start 2 to the same host is refused."""
    await two_hosts(world)
    host = await start(world, host="h1")
    vm_id = host.orders[-1].body.vm.id
    await host.tell(report(vm_id, 1, VmState.UNKNOWN))
    await host.answer(result=Result.UNKNOWN)
    await start(world)
    await host.tell(release(vm_id, 2))
    await host.answer(result=Result.REFUSED, code="host.unfit.libvirt")
    return host, vm_id


@pytest.mark.req("A8")
def test_g1_a_refused_start_does_not_release_an_earlier_one_that_may_run(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host, _ = await unknown_then_refused(world)
        status = await status_of(world)
        assert (status.holders, status.state) == ((host.id,), VmState.UNKNOWN)
        host.vanish()
        with pytest.raises(Refused):
            await world.control.vms.start(ADMIN, "web1", VmStart())
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h2"))
        assert refused.value.code == "host.unfit.holder"

    tell(story)


@pytest.mark.req("A8")
def test_g1_the_earlier_copy_is_still_reported_protected_and_released(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host, vm_id = await unknown_then_refused(world)
        held = world.links.settings_of(host.id).vms
        assert [one.incarnation for one in held] == [1], "its sentinel must not think it superseded"
        await host.tell(report(vm_id, 1, VmState.RUNNING))
        assert (await status_of(world)).state is VmState.RUNNING
        # In the order in which the sentinel tells it.
        await host.tell(release(vm_id, 1), report(vm_id, 1, VmState.DOWN))
        status = await status_of(world)
        assert (status.state, status.holders) == (VmState.DOWN, ())
        await start(world, host="h2")
        assert (await status_of(world)).incarnation == 3, "a number is never given twice"

    tell(story)


@pytest.mark.req("A8")
def test_g1_a_start_given_up_hides_no_earlier_copy(tell: Tell) -> None:
    """Start 1's outcome is unknown; start 2 goes out, and its host is cut off until it is given up."""

    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world, host="h1")
        vm_id = host.orders[-1].body.vm.id
        await host.answer(result=Result.UNKNOWN)
        await start(world)
        await host.tell(report(vm_id, 1, VmState.RUNNING))
        assert (await status_of(world)).state is VmState.STARTING, "start 2 is on its way"
        host.vanish()
        world.clock.advance(700_000)
        assert await world.control.operations.expire() == 1
        settings = (await host.hello()).settings
        assert [one.incarnation for one in settings.vms] == [1]
        await host.tell(report(vm_id, 1, VmState.RUNNING))
        status = await status_of(world)
        assert (status.state, status.holders) == (VmState.RUNNING, (host.id,))

    tell(story)


def test_g1_both_releases_free_the_host_in_either_order(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world, host="h1")
        vm_id = host.orders[-1].body.vm.id
        await host.answer(result=Result.UNKNOWN)
        await start(world)
        await host.tell(release(vm_id, 1))
        assert (await status_of(world)).holders == (host.id,)
        await host.tell(release(vm_id, 2))
        assert (await status_of(world)).holders == ()

    tell(story)


def test_g1_a_record_of_the_later_start_ends_the_doubt_about_the_earlier(tell: Tell) -> None:
    """Its agent takes a start only when it knows that no earlier copy is there."""

    async def story(world: Any) -> None:
        host, vm_id = await unknown_then_refused(world)
        await host.tell(report(vm_id, 2, VmState.DOWN))
        assert (await status_of(world)).holders == ()

    tell(story)


@pytest.mark.parametrize(
    ("state", "late_ms", "later_boot", "free"),
    [
        (DomainState.SHUTOFF, LIST_MARGIN_MS, False, True),
        # libvirt hung in create, and may yet come to it while the grant lasts.
        (DomainState.SHUTOFF, -1, False, False),
        (DomainState.RUNNING, LIST_MARGIN_MS, False, False),
        (DomainState.SHUTOFF, -1, True, True),
    ],
)
def test_g2_a_list_without_it_ends_the_doubt_once_the_grant_is_over(
    tell: Tell, state: DomainState, late_ms: int, later_boot: bool, free: bool
) -> None:
    async def story(world: Any) -> None:
        host, vm_id = await unknown_then_refused(world)
        (copy,) = (await status_of(world)).copies
        if later_boot:
            await host.hello("h1-boot2")
        world.clock.now = copy.grant_ends_at_ms + late_ms  # also the played host's clock
        await host.tell(Inventory(revision=1, domains=(domain(vm_id, state),)))
        assert (await status_of(world)).holders == (() if free else (host.id,))

    tell(story)


def test_g1_a_start_of_a_former_boot_is_kept_until_somebody_says_that_it_is_over(
    tell: Tell,
) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world, host="h1")
        vm_id = host.orders[-1].body.vm.id
        await host.hello("h1-boot2")
        assert await world.control.hosts.resend(host.id) == 0, "it was for the boot before"
        assert (await status_of(world)).holders == (host.id,)
        await start(world)
        await host.tell(release(vm_id, 2))
        assert (await status_of(world)).holders == (host.id,), "start 1 was never answered"
        await host.tell(release(vm_id, 1))
        assert (await status_of(world)).holders == ()

    tell(story)


# A2: what was released is never ordered again


@pytest.mark.req("A8")
def test_g1_a_start_that_its_host_has_released_is_not_sent_again(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world)
        order = host.orders[-1]
        vm_id = order.body.vm.id
        await host.tell(release(vm_id, 1))
        assert await world.control.hosts.resend(host.id) == 0
        answer = await host.hello()
        assert answer.orders == ()
        ended = await world.control.operations.get(order.operation_id)
        assert ended.state is OperationState.FAILED and "gave the VM up" in ended.message
        status = await status_of(world)
        assert (status.state, status.holders) == (VmState.DOWN, ())
        other = "h2" if host.name == "h1" else "h1"
        assert (await start(world, host=other)).name == other

    tell(story)


def test_a_released_starts_own_answer_is_waited_for(tell: Tell) -> None:
    """It lies in the host's outbox: it says why, and 'gave it up' would not."""

    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world)
        order = host.orders[-1]
        await host.tell(release(order.body.vm.id, 1))
        host.sequence += 1  # written, not sent yet
        answer = await host.hello()
        host.sequence -= 1
        assert answer.orders == ()
        await host.answer(order, result=Result.REFUSED, code="order.refused.disk_active")
        ended = await world.control.operations.get(order.operation_id)
        assert ended.code == "order.refused.disk_active"

    tell(story)


def test_a_released_start_without_an_answer_is_given_up_in_time(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world)
        order = host.orders[-1]
        await host.tell(release(order.body.vm.id, 1))
        assert await world.control.operations.expire() == 0
        world.clock.advance(61_000)
        assert await world.control.operations.expire() == 1
        assert (await world.control.operations.get(order.operation_id)).is_over

    tell(story)


# C1: a start refused because the VM runs


@pytest.mark.req("A8")
@pytest.mark.parametrize("fields", [{"current": 1}, {}])
def test_a_start_refused_because_it_runs_counts_back(tell: Tell, fields: dict[str, int]) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        vm_id, host = await world.run_vm()
        await host.tell(report(vm_id, 1, VmState.CRASHED))
        await start(world)
        await host.answer(result=Result.REFUSED, code="order.refused.running", fields=fields)
        status = await status_of(world)
        assert (status.state, status.holders) == (VmState.UNKNOWN, (host.id,)), "not down: it runs"
        if not fields:
            return
        assert status.incarnation == 1
        held = world.links.settings_of(host.id).vms
        assert [one.incarnation for one in held] == [1], "else its next crash is not restarted"
        await host.tell(report(vm_id, 1, VmState.RUNNING))
        assert (await status_of(world)).state is VmState.RUNNING
        await host.stopped(vm_id, 1)
        assert (await status_of(world)).holders == ()

    tell(story)


# A3: after a restore


async def restore(world: Any, *, heard: bool = True) -> None:
    await world.control.installation.restored(path="/tmp/b.tar", by="root")
    for host in world.hosts.values() if heard else ():
        await host.hello()
        await host.tell(Inventory(revision=1, domains=()))


CLAIM = {"result": Result.REFUSED, "code": "order.refused.incarnation"}


def test_g4_a_host_named_by_the_storages_claim_becomes_a_holder(tell: Tell) -> None:
    """The backup is of incarnation 0; since then h2 started 1 to 5."""

    async def story(world: Any) -> None:
        h1, h2 = await two_hosts(world)
        await restore(world)
        await start(world, host="h1")
        vm_id = h1.orders[-1].body.vm.id
        await h1.tell(release(vm_id, 1))
        await h1.answer(**CLAIM, fields={"holder_host": h2.id, "incarnation": 5})
        status = await status_of(world)
        assert (status.holders, status.incarnation) == ((h2.id,), 5)
        for _ in range(6):  # counting on is what defeated the claim
            with pytest.raises(Refused) as refused:
                await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
            assert refused.value.code == "host.unfit.holder"
        # No release by a list: its sentinel may be about to start it again.
        world.clock.advance(600_000)
        h2.beat()
        await h2.tell(Inventory(revision=2, domains=()))
        assert (await status_of(world)).holders == (h2.id,)
        assert await start(world) is h2
        assert h2.orders[-1].body.grant.incarnation == 6
        await h2.started()
        await h2.stopped(vm_id, 6)
        assert (await status_of(world)).holders == ()

    tell(story)


def test_g4_an_unknown_host_named_by_the_claim_blocks_every_start(tell: Tell) -> None:
    """It joined after the backup was made: nobody can ask it."""

    async def story(world: Any) -> None:
        h1, _ = await two_hosts(world)
        await restore(world)
        await start(world, host="h1")
        await h1.tell(release(h1.orders[-1].body.vm.id, 1))
        await h1.answer(**CLAIM, fields={"holder_host": "stranger", "incarnation": 3})
        for name in ("h1", "h2", None):
            with pytest.raises(Refused, match="does not know") as refused:
                await world.control.vms.start(ADMIN, "web1", VmStart(host=name))
            assert refused.value.code == "host.unfit.holder" and refused.value.fix

    tell(story)


def test_g4_a_host_whose_own_record_is_higher_is_counted_up_to(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1, _ = await two_hosts(world)
        await restore(world)
        await start(world, host="h1")
        await h1.answer(**CLAIM, fields={"incarnation": 1, "current": 5})
        status = await status_of(world)
        assert (status.incarnation, status.holders) == (5, (h1.id,))
        assert await start(world) is h1

    tell(story)


@pytest.mark.parametrize("case", ["old boot", "from the outbox", "no hello"])
def test_m2_an_inventory_from_before_the_restore_opens_nothing(tell: Tell, case: str) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        await restore(world, heard=False)
        old = Inventory(revision=1, domains=())
        match case:
            case "old boot":
                await host.hello("h1-boot2")
                host.boot = BootId("h1-boot1")
                await host.tell(old)
                host.boot = BootId("h1-boot2")
            case "from the outbox":
                waiting = host.facts(old)
                await host.hello()
                await world.control.facts.record_facts(host.id, waiting)
            case _:
                await host.tell(old)
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart())
        assert refused.value.code == "start.blocked.inventory"
        await host.hello()
        await host.tell(Inventory(revision=2, domains=()))
        await start(world)

    tell(story)


def test_m2_an_inventory_that_comes_again_after_a_lost_session_counts(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        await restore(world, heard=False)
        await host.hello()
        made = host.facts(Inventory(revision=1, domains=()))
        await host.hello()  # the session broke before it was sent
        await world.control.facts.record_facts(host.id, made)
        await start(world)

    tell(story)


def test_m2_a_host_that_was_not_heard_can_not_be_removed_silently(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1, h2 = await two_hosts(world)
        await restore(world, heard=False)
        await h1.hello()
        await h1.tell(Inventory(revision=1, domains=()))
        h2.vanish()
        with pytest.raises(Refused) as refused:
            await world.control.hosts.delete(ADMIN, "h2")
        assert refused.value.code == "start.blocked.inventory" and "powered_off" in (
            refused.value.fix or ""
        )
        with pytest.raises(Refused) as refused:
            await world.control.hosts.delete(ADMIN, "h2", powered_off=True)
        assert refused.value.code == "problem.host.busy", "it answers, so it is not off"
        await world.control.hosts.presence_changed(h2.id, HostState.UNREACHABLE)
        await world.control.hosts.delete(ADMIN, "h2", powered_off=True)
        (event,) = await world.events("host.removed")
        assert event.fields["powered_off"] is True and event.user == "admin"
        await start(world)

    tell(story)


# B2, C7: adopting


def foreign(storage: str, state: str) -> ForeignDomain:
    vm = Vm(
        id=VmId("50000000-0000-4000-8000-000000000009"),
        name="old",
        cluster_id=ClusterId(""),
        memory_bytes=64 * MIB,
    )
    return ForeignDomain(vm=vm, name="old", state=state)


async def adopting(world: Any, state: str) -> Any:
    host = await world.join("h1")
    storage = (await world.add_storage()).domain.id
    await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(names=("old",)))
    await host.answer(foreign=(foreign(storage, state),))
    return host


@pytest.mark.req("A8")
def test_a_vm_that_was_off_when_it_was_scanned_is_held_too(tell: Tell) -> None:
    """Started between scan and order, it would be in ``foreign_vms``: the guardian kills those."""

    async def story(world: Any) -> None:
        host = await adopting(world, "shutoff")
        settings = world.links.settings_of(host.id)
        assert [one.vm.name for one in settings.vms] == ["old"] and settings.foreign_vms == ()
        await host.answer()
        vm_id = settings.vms[0].vm.id
        await host.tell(release(vm_id, 1))
        assert (await status_of(world, "old")).holders == ()

    tell(story)


@pytest.mark.req("A8")
@pytest.mark.parametrize("result", [Result.UNKNOWN, Result.FAILED])
def test_an_adoption_that_broke_off_can_be_undone(tell: Tell, result: Result) -> None:
    async def story(world: Any) -> None:
        host = await adopting(world, "running")
        await host.answer(result=result, message="set autostart: no answer")
        status = await status_of(world, "old")
        assert (status.state, status.holders) == (VmState.UNKNOWN, (host.id,))
        await world.control.vms.release(ADMIN, "old")
        assert isinstance(host.orders[-1].body, ReleaseVm)
        await host.answer()
        with pytest.raises(NotFound):
            await world.control.vms.get("old")

    tell(story)


def test_an_adoption_that_was_refused_leaves_no_record(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await adopting(world, "running")
        await host.answer(result=Result.REFUSED, code="order.refused.not_here")
        with pytest.raises(NotFound):
            await world.control.vms.get("old")

    tell(story)


# C9: a host whose guardian is silent


def test_g2_a_host_whose_guardian_is_silent_takes_no_start(tell: Tell) -> None:
    async def story(world: Any) -> None:
        roomy = await world.join("h1", memory_bytes=16 * GIB)
        other = await world.join("h2")
        await world.add_storage()
        await world.add_vm()
        world.clock.advance(5_000)
        other.beat()
        assert await start(world) is other
        roomy.beat()
        await world.add_vm("web2")
        await world.control.vms.start(ADMIN, "web2", VmStart())
        assert world.links.delivered[-1][0] == roomy.id

    tell(story)


def test_g2_an_old_beat_is_not_quoted_again(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await two_hosts(world)
        host = await start(world)
        world.clock.advance(5_000)
        assert await world.control.hosts.resend(host.id) == 0
        host.beat()
        assert await world.control.hosts.resend(host.id) == 1
        assert isinstance(host.orders[-1].body, StartVm)

    tell(story)


# C4: gone while nobody was told


def test_a_vm_that_a_full_list_shows_off_is_not_called_running(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        storage = (await world.add_storage()).domain.id
        vm_id = await world.add_vm()
        _, host = await world.run_vm()
        await host.tell(StorageReport(storage_domain_id=storage, usable=True))
        off, runs = domain(vm_id, DomainState.SHUTOFF), domain(vm_id, DomainState.RUNNING)
        await host.tell(Inventory(revision=2, domains=(off,)))
        status = await status_of(world)
        assert (status.state, status.holders) == (VmState.UNKNOWN, (host.id,))
        # The list was made in the middle of a restart that had been reported before it.
        await host.tell(Inventory(revision=3, domains=(runs,)))
        assert (await status_of(world)).state is VmState.RUNNING

    tell(story)
