"""A whole agent with a storage domain on a real Ceph of one node; its hypervisor is simulated, other hosts' QEMUs are real."""

import asyncio
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ceph_guest import OLD_HOST, Guest
from heartbeat_places import CephPlace
from msgspec.structs import replace
from own_ceph import OwnCeph

sys.path.append(str(Path(__file__).parents[1] / "unit" / "agent"))

from agent_bench import CLUSTER, DOMAIN, HOST, INSTALLATION, WEB1, Bench, prepared, runs, stop

from virtha.agent import ceph_images, ceph_records
from virtha.agent.ceph_images import look
from virtha.agent.ceph_marks import read_marks, write_marks
from virtha.agent.disk_proof import DiskProver
from virtha.agent.lease_files import OpenedDomain
from virtha.agent.slot_worker import SlotWorker
from virtha.agent.storage import (
    VmHeader,
    claim_incarnation,
    open_slots,
    prepare_storage,
    read_vm_header,
)
from virtha.drivers.machine_clock import MachineClock
from virtha.model.errors import Failed, Refused
from virtha.model.facts import Result, StorageReport
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, HostId, Incarnation, InstallationId, StorageDomainId, Term
from virtha.model.orders import CreateDisk, DiskCheck, ForgetVm, PrepareStorage, StartVm
from virtha.model.policy import IoErrorPolicy, Policy
from virtha.model.slot import BlockFault, Mailbox, Poison, Slot, Unreadable
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.model.vm import Disk, DiskFormat, Vm
from virtha.sentinel.lease_events import DomainAttached, LeaseEvent, RenewDone, RenewSlot

pytestmark = [pytest.mark.req("F3"), pytest.mark.lab, pytest.mark.long]


@pytest.fixture
def place(own_ceph: OwnCeph) -> Iterator[CephPlace]:
    made = CephPlace(own_ceph, namespace=uuid4().hex)
    own_ceph.run("rbd", "namespace", "create", f"vms/{made.pool.namespace}")
    yield made
    made.close()
    ceph_records.close_all()


@pytest.fixture
def bench(place: CephPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path, monkeypatch)
    made.storage = domain(place)
    return made


def domain(place: CephPlace, domain_id: StorageDomainId = DOMAIN) -> StorageDomain:
    return StorageDomain(
        id=domain_id,
        name="ceph1",
        cluster_id=CLUSTER,
        kind="ceph-rbd",
        path=place.pool.shown,
        ceph=place.pool,
    )


def disk(bench: Bench, image: str = "web1-root") -> Disk:
    return replace(bench.disk(image, size_bytes=64 << 20), format=DiskFormat.RAW)


def vm(bench: Bench) -> Vm:
    return bench.vm(disks=(disk(bench),), watchdog=None)


class KeptSecrets:
    """As libvirt has them."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def keep_secret(self, secret_id: str, name: str, value: bytes) -> None:
        self.values[secret_id] = value


def test_a_disk_is_made_started_from_and_deleted(bench: Bench, place: CephPlace) -> None:
    secrets = KeptSecrets()

    async def story() -> None:
        bench.agent.host.secrets = secrets
        assert (await prepared(bench)).result is Result.OK
        order = bench.order(CreateDisk(disk=disk(bench)))
        assert (await bench.give(order)).result is Result.OK
        assert look(place.pool, "web1-root")["size_bytes"] == 64 << 20
        again = await bench.do(CreateDisk(disk=disk(bench)))
        assert (again.result, again.code) == (Result.REFUSED, "problem.disk.in_use")
        wrong = await bench.do(CreateDisk(disk=disk(bench, "web1-data"), image="tiny"))
        assert (wrong.result, wrong.code) == (Result.REFUSED, "problem.invalid")
        await bench.configured(vm(bench), revision=2)
        await bench.listed()
        assert (await bench.start(vm(bench))).result is Result.OK
        header = read_vm_header(bench.storage, WEB1)
        assert header is not None
        assert (header.incarnation, header.host_id) == (1, HOST)
        assert (await bench.do(stop())).result is Result.OK
        gone = await bench.do(ForgetVm(vm_id=WEB1, disks=(disk(bench),)))
        assert gone.result is Result.OK, gone
        assert read_vm_header(bench.storage, WEB1) is None
        await bench.until(lambda: secrets.values != {})

    bench.run(story)
    assert place.client().ask("images", patience_ms=60_000) == []
    assert secrets.values == {DOMAIN: ceph_records.key_of(place.pool)}
    reports = [fact.body for fact in bench.facts() if isinstance(fact.body, StorageReport)]
    assert reports[-1].usable, reports


def by_the_engine(bench: Bench, vm: Vm, incarnation: int) -> StartVm:
    """As it orders one with proof for every former holder."""
    return StartVm(
        vm=vm,
        grant=bench.grant(vm.id, incarnation),
        by="engine",
        disk_check=DiskCheck.SKIP_PROVEN,
    )


def claim_of(incarnation: int, host: str = "h2") -> VmHeader:
    return VmHeader(
        installation_id=INSTALLATION,
        vm_id=WEB1,
        incarnation=Incarnation(incarnation),
        host_id=HostId(host),
        boot=BootId("b"),
    )


def ran_elsewhere(bench: Bench, place: CephPlace, *images: str) -> None:
    """What its start on another host left on the pool."""
    claim_incarnation(bench.storage, claim_of(1), bench.files)
    prefixes = [look(place.pool, image)["prefix"] for image in images]
    write_marks(bench.storage, read_marks(bench.storage, WEB1).with_images(prefixes))


async def made(bench: Bench) -> None:
    await prepared(bench)
    await bench.do(CreateDisk(disk=disk(bench)))
    await bench.configured(vm(bench), revision=2)
    await bench.listed()


def writing(place: CephPlace, image: str = "web1-root", address: str = OLD_HOST) -> Guest:
    guest = place.opened(Guest(place, image, address))
    guest.write(1, at="1M")
    assert "wrote" in guest.answer()
    return guest


def still_writes(guest: Guest) -> bool:
    guest.write(2, at="1M")
    return "wrote" in guest.answer()


@pytest.mark.req("G4")
def test_whoever_has_the_image_open_yet_is_shut_out_before_a_start(
    bench: Bench, place: CephPlace
) -> None:
    """A dead host's QEMU, as far as the proof says; here it lives, and can write no more."""

    async def story() -> None:
        await made(bench)
        ran_elsewhere(bench, place, "web1-root")
        old = writing(place)
        outcome = await bench.do(by_the_engine(bench, vm(bench), 2))
        assert outcome.result is Result.OK, outcome
        assert look(place.pool, "web1-root")["watchers"] == []
        assert not still_writes(old)

    bench.run(story)


@pytest.mark.req("G4")
def test_who_lost_its_watch_and_has_the_lock_is_shut_out_too(
    bench: Bench, place: CephPlace
) -> None:
    """Frozen for longer than Ceph keeps its watch: it thaws with a write in hand."""

    async def story() -> None:
        await made(bench)
        ran_elsewhere(bench, place, "web1-root")
        old = writing(place)
        old.freeze()
        await bench.until(lambda: look(place.pool, "web1-root")["watchers"] == [])
        (owner,) = look(place.pool, "web1-root")["lock_owners"]
        assert owner.startswith(OLD_HOST)
        outcome = await bench.do(by_the_engine(bench, vm(bench), 2))
        assert outcome.result is Result.OK, outcome
        assert owner in place.ceph.ceph("osd", "blocklist", "ls")
        old.write(2, at="1M")
        old.thaw()
        assert "wrote" not in old.answer()

    bench.run(story)


@pytest.mark.req("G4")
def test_a_start_that_was_overtaken_shuts_out_nobody(
    bench: Bench, place: CephPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This agent stood still after its claim; by now the VM runs elsewhere, with its image open."""
    running: list[Guest] = []
    real = ceph_images.take_over

    async def late(*words: Any) -> None:
        claim_incarnation(bench.storage, claim_of(3, "h3"), bench.files)
        running.append(writing(place))
        await real(*words)

    monkeypatch.setattr("virtha.agent.order_power.take_over", late)

    async def story() -> None:
        await made(bench)
        ran_elsewhere(bench, place, "web1-root")
        outcome = await bench.do(by_the_engine(bench, vm(bench), 2))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        assert outcome.fields["holder_host"] == "h3"
        assert still_writes(running[0])

    bench.run(story)


@pytest.mark.req("F9")
def test_a_start_by_a_person_shuts_out_nobody_and_waits_for_who_leaves(
    bench: Bench, place: CephPlace
) -> None:
    async def story() -> None:
        await made(bench)
        ran_elsewhere(bench, place, "web1-root")
        other = writing(place)
        short = replace(bench.grant(WEB1, 2), duration_ms=11_000)
        refused = await bench.do(StartVm(vm=vm(bench), grant=short, by="ann"))
        assert (refused.result, refused.code) == (Result.REFUSED, "problem.disk.in_use")
        assert "a start without proof shuts out nobody" in refused.message
        assert read_vm_header(bench.storage, WEB1) == claim_of(1)
        assert still_writes(other)
        order = bench.order(StartVm(vm=vm(bench), grant=bench.grant(WEB1, 3), by="ann"))
        bench.agent.on_order(order)
        await asyncio.to_thread(other.leave)
        await bench.until(lambda: bench.outcomes(order) != [])
        assert bench.outcomes(order)[-1].result is Result.OK, bench.outcomes(order)

    bench.run(story)


def test_of_an_image_that_the_vm_never_ran_with_nobody_is_shut_out(
    bench: Bench, place: CephPlace
) -> None:
    """The VM ran before, with another image of the pool; and one of the same name that is not that one any more."""

    async def story() -> None:
        await made(bench)
        ran_elsewhere(bench, place, "web1-root")
        client = place.client()
        client.ask("remove_image", name="web1-root", patience_ms=60_000)
        client.ask("create_image", name="web1-root", size_bytes=64 << 20, patience_ms=60_000)
        other = writing(place)
        refused = await bench.do(by_the_engine(bench, vm(bench), 2))
        assert (refused.result, refused.code) == (Result.REFUSED, "problem.disk.in_use")
        assert "this VM never ran with it" in refused.message
        assert read_vm_header(bench.storage, WEB1) == claim_of(1)
        assert still_writes(other)

    bench.run(story)


def test_an_image_that_is_there_is_never_taken_for_ours(bench: Bench, place: CephPlace) -> None:
    """Also by an order that comes again after its agent died in the middle of it."""

    async def story() -> None:
        await prepared(bench)
        client = place.client()
        client.ask("create_image", name="web1-root", size_bytes=64 << 20, patience_ms=60_000)
        writing(place).leave()
        order = bench.order(CreateDisk(disk=disk(bench)))
        bench.agent.host.outcomes.begin(order.operation_id, order.step)
        refused = await bench.give(order)
        assert (refused.result, refused.code) == (Result.REFUSED, "problem.disk.in_use")
        assert "never overwritten" in refused.message
        reader = place.opened(Guest(place, "web1-root"))
        assert reader.holds(1, at="1M")

    bench.run(story)
    assert place.client().ask("images", patience_ms=60_000) == ["web1-root"]


@pytest.mark.parametrize("left", ["nothing", "unnamed", "named"])
def test_a_disk_whose_making_broke_off_is_made_once(
    bench: Bench, place: CephPlace, left: str
) -> None:
    async def story() -> None:
        await prepared(bench)
        client, order = place.client(), bench.order(CreateDisk(disk=disk(bench)))
        maker = f"{order.operation_id}.{order.step}"
        bench.agent.host.outcomes.begin(order.operation_id, order.step)
        unnamed = f"virtha.new.{maker}"
        if left != "nothing":
            client.ask("create_image", name=unnamed, size_bytes=1 << 20, patience_ms=60_000)
        if left == "named":
            words = {"key": ceph_images.MADE_BY, "value": maker, "patience_ms": 60_000}
            client.ask("note_image", name=unnamed, **words)
            client.ask("resize_image", name=unnamed, size_bytes=64 << 20, patience_ms=60_000)
            client.ask("rename_image", name=unnamed, to="web1-root", patience_ms=60_000)
        assert (await bench.give(order)).result is Result.OK
        assert look(place.pool, "web1-root")["size_bytes"] == 64 << 20

    bench.run(story)
    assert place.client().ask("images", patience_ms=60_000) == ["web1-root"]


@pytest.mark.req("G4")
def test_claims_rise_and_one_of_two_at_once_wins(bench: Bench, place: CephPlace) -> None:
    prepare_storage(bench.storage, INSTALLATION, bench.files)

    def claim(incarnation: int, host: str) -> VmHeader:
        return VmHeader(
            installation_id=INSTALLATION,
            vm_id=WEB1,
            incarnation=Incarnation(incarnation),
            host_id=HostId(host),
            boot=BootId("b"),
        )

    claim_incarnation(bench.storage, claim(2, "h1"), bench.files)
    claim_incarnation(bench.storage, claim(2, "h1"), bench.files)
    for lower in (claim(1, "h1"), claim(2, "h2")):
        with pytest.raises(Refused, match="is not above"):
            claim_incarnation(bench.storage, lower, bench.files)
    name = ceph_records.vm_record(WEB1)
    read = ceph_records.read(place.pool, name)
    claim_incarnation(bench.storage, claim(3, "h2"), bench.files)
    with pytest.raises(OSError, match="by another meanwhile"):
        ceph_records.write(place.pool, name, b"late", over=read)
    with pytest.raises(OSError, match="by another meanwhile"):
        ceph_records.write(place.pool, name, b"first", over=None)
    found = read_vm_header(bench.storage, WEB1)
    assert found == claim(3, "h2")


@pytest.mark.bad_input
@pytest.mark.req("G7")
def test_a_foreign_pool_and_a_copy_of_one_are_refused(bench: Bench, place: CephPlace) -> None:
    storage = bench.storage
    with pytest.raises(Failed, match=r"object virtha\.domain is missing"):
        claim_incarnation(storage, _claim(), bench.files)
    prepare_storage(storage, INSTALLATION, bench.files)
    prepare_storage(storage, INSTALLATION, bench.files)
    with pytest.raises(Refused, match="belongs to another installation"):
        prepare_storage(storage, InstallationId("other"), bench.files)
    with pytest.raises(Refused, match="is storage domain ceph1, not"):
        prepare_storage(domain(place, StorageDomainId("other")), INSTALLATION, bench.files)
    header = ceph_records.read(place.pool, ceph_records.DOMAIN)
    assert header is not None
    mirrored = header.replace(place.ceph.fsid.encode(), str(uuid4()).encode())
    ceph_records.write(place.pool, ceph_records.DOMAIN, mirrored, over=header)
    with pytest.raises(Refused, match="a copy") as refused:
        prepare_storage(storage, INSTALLATION, bench.files)
    assert refused.value.code == "order.refused.storage_foreign"


def _claim() -> VmHeader:
    return VmHeader(
        installation_id=INSTALLATION,
        vm_id=WEB1,
        incarnation=Incarnation(1),
        host_id=HOST,
        boot=BootId("b"),
    )


@pytest.mark.bad_input
def test_a_wrong_setting_is_told_by_the_order(bench: Bench, place: CephPlace) -> None:
    async def story() -> None:
        for change, words in (
            ({"pool": "nowhere"}, "ceph.pool: there is no pool 'nowhere'"),
            ({"keyring": "/nowhere"}, "ceph.keyring: /nowhere can't be read"),
        ):
            wrong = replace(bench.storage, ceph=replace(place.pool, **change))
            order = PrepareStorage(domain=wrong, installation_id=INSTALLATION)
            refused = await bench.do(order)
            assert (refused.result, refused.code) == (Result.REFUSED, "problem.invalid")
            assert words in refused.message

    bench.run(story)


def test_a_host_has_its_place_once_it_is_prepared(bench: Bench) -> None:
    async def story() -> None:
        assert (await prepared(bench)).result is Result.OK
        slots = open_slots(bench.storage, INSTALLATION)
        try:
            found = slots.read_mailbox(0)
        finally:
            slots.close()
        assert isinstance(found, Mailbox)
        assert found.host_id == HOST

    bench.run(story)


@pytest.mark.req("F1")
def test_a_guardians_worker_renews_and_poisons_there(bench: Bench, place: CephPlace) -> None:
    """What it opens is noted with where the pool is: the next guardian of the boot finds it without settings."""
    prepare_storage(bench.storage, INSTALLATION, bench.files)
    opened: list[OpenedDomain] = []
    told: queue.SimpleQueue[LeaseEvent] = queue.SimpleQueue()
    rounds: queue.SimpleQueue[SlotRound] = queue.SimpleQueue()
    slots = open_slots(bench.storage, INSTALLATION, locked=True)
    place.opened(slots)
    others = open_slots(bench.storage, INSTALLATION, locked=True)
    place.opened(others)
    for index, host in enumerate((HOST, HostId("h2"))):
        slots.prepare(index, host)
    worker = SlotWorker(
        DOMAIN,
        0,
        slots,
        others=others,
        path=bench.storage.path,
        ceph=place.pool,
        host_id=HOST,
        boot=BootId("b"),
        now=MachineClock().monotonic_ms,
        tell=told.put,
        tell_round=rounds.put,
    )
    worker.read_own(opened.append, lambda: None)
    attached = told.get(timeout=60)
    assert isinstance(attached, DomainAttached)
    assert attached.direct_io
    assert [(one.path, one.ceph) for one in opened] == [(place.pool.shown, place.pool)]
    slot = Slot(
        installation_id=INSTALLATION,
        domain_id=DOMAIN,
        index=0,
        host_id=HOST,
        boot=BootId("b"),
        counter=1,
    )
    poison = Poison(boot=BootId("b2"), server="s1", term=Term(1), incident="7")
    duty = LeaseDuty(
        domain_id=DOMAIN, places={HOST: 0, HostId("h2"): 1}, poisons={HostId("h2"): poison}
    )
    worker.renew(RenewSlot(domain_id=DOMAIN, number=1, slot=slot), duty, read_period_ms=0)
    done = told.get(timeout=60)
    assert isinstance(done, RenewDone)
    assert done.written
    assert isinstance(done.mailbox, Mailbox)
    seen = rounds.get(timeout=60)
    assert seen.slots == {HOST: slot, HostId("h2"): Unreadable(fault=BlockFault.EMPTY)}
    mailbox = seen.mailboxes[HostId("h2")]
    assert isinstance(mailbox, Mailbox)
    assert mailbox.poison == poison


QUICK = Policy(io_error=IoErrorPolicy(check_interval_ms=500, delay_ms=0))


async def paused_on_ceph(bench: Bench) -> None:
    """Nothing is asked of its storage for its first second."""
    await made(bench)
    await bench.configured(vm(bench), revision=3, policy=QUICK)
    assert (await bench.start(vm(bench))).result is Result.OK


def waits_for(bench: Bench) -> str:
    record = bench.agent.loop.record(WEB1)
    assert record is not None
    told = [one for one in record.reasons if one.code == "io_error.waiting.storage"]
    return str(told[0].fields["detail"]) if told else ""


@pytest.mark.req("S6")
def test_a_vm_that_an_io_error_paused_goes_on_when_the_pool_takes_writes_again(
    bench: Bench, place: CephPlace
) -> None:
    async def story() -> None:
        await paused_on_ceph(bench)
        place.ceph.hang()
        try:
            bench.hypervisor.libvirt.io_error(WEB1)
            await bench.until(lambda: waits_for(bench) not in ("", "it is being asked"))
            assert not runs(bench)
        finally:
            place.ceph.go_on()
        await bench.until(lambda: runs(bench))
        await bench.until(lambda: "vm.io_error.resumed" in bench.codes())
        answers = ceph_records.read(place.pool, f"virtha.answers.{HOST}")
        assert answers is not None and str(HOST).encode() in answers

    bench.run(story)


@pytest.mark.req("S6")
def test_on_a_full_pool_it_stays_paused(bench: Bench, place: CephPlace) -> None:
    """It takes no write, also where nobody counts what is free."""

    async def story() -> None:
        await paused_on_ceph(bench)
        place.ceph.fill()
        try:
            objection = await DiskProver(bench.agent.host).objection(WEB1, True)
            assert objection is not None
            assert "ceph1" in objection
        finally:
            place.ceph.empty()
        prover = DiskProver(bench.agent.host)
        while await prover.objection(WEB1, True) is not None:
            await asyncio.sleep(0.5)  # what was under way when it was full comes to its end

    bench.run(story)


@pytest.mark.req("S6", "G4")
@pytest.mark.parametrize("what", ["image", "later", "reader"])
def test_without_its_image_or_below_a_later_claim_or_unable_to_write_it_stays_paused(
    bench: Bench, place: CephPlace, what: str
) -> None:
    async def story() -> None:
        await paused_on_ceph(bench)
        prover = DiskProver(bench.agent.host)
        assert await prover.objection(WEB1, False) is None
        if what == "image":
            place.client().ask("remove_image", name="web1-root", patience_ms=60_000)
        elif what == "later":
            claim_incarnation(bench.storage, claim_of(2), bench.files)
        else:
            user = {"user": "blind", "keyring": str(place.ceph.keyring("blind"))}
            blind = replace(bench.storage, ceph=replace(place.pool, **user))
            await bench.configured(vm(bench), revision=4, policy=QUICK, storage_domains=(blind,))
        told = await prover.objection(WEB1, False)
        assert told is not None
        assert what != "later" or "incarnation 2" in told

    bench.run(story)
