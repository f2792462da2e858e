"""The engine's records: what is written is what the next leader reads, and what was there before the engine is kept."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from test_store_notifications import scripts_up_to

from virtha.drivers.machine_clock import MachineClock
from virtha.engine.events import (
    CopyGranted,
    DropHost,
    DropVm,
    Intent,
    SaveCluster,
    SaveHost,
    SaveVm,
)
from virtha.engine.records import (
    Brake,
    ClusterRecord,
    Drain,
    FeedProgress,
    Fence,
    FenceCount,
    FenceStep,
    HostRecord,
    Incident,
    OrderId,
    Start,
    VmRecord,
    VmStage,
)
from virtha.model.errors import Failed
from virtha.model.host import Cluster, Installation
from virtha.model.ids import BootId, ClusterId, HostId, Incarnation, InstallationId, Term, VmId
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis
from virtha.model.vm import PossibleCopy, Vm, VmStatus
from virtha.store import Store, open_store
from virtha.store.clusters import drop_cluster, save_cluster
from virtha.store.engine import (
    add_grant,
    drop_grant,
    engine_records,
    find_vm_record,
    grants_of,
    save_cluster_record,
    save_intent,
)
from virtha.store.installations import add_installation
from virtha.store.migrate import migrate
from virtha.store.vms import drop_vm, save_vm, save_vm_status

C1, C2 = ClusterId("c1"), ClusterId("c2")
H1, H2 = HostId("h1"), HostId("h2")
WEB, DB = VmId("web"), VmId("db")
BOOT = BootId("boot1")

CLUSTER = ClusterRecord(
    term=Term(3),
    orders=17,
    incidents=4,
    fence_counts=(FenceCount(host_id=H1, at_ms=7),),
    brake=Brake(tripped_ms=9, hosts=3),
    hold="maintenance night",
)
HOST = HostRecord(
    host_id=H1,
    boot=BOOT,
    boot_seen_ms=5,
    incident=Incident(
        number=4,
        boot=BOOT,
        silent_since_ms=1,
        began_ms=2,
        fence=Fence(
            action=PowerAction.OFF,
            level=0,
            attempt=1,
            step=FenceStep.READING,
            order_id=OrderId("3.16"),
            ordered_ms=3,
            began_ms=3,
            feeds=(FeedProgress(device=PowerDeviceId("bmc1"), accepted=True, off_since_ms=4),),
        ),
    ),
    drain=Drain.DRAINING,
    dead_boots=(BootId("boot0"),),
)
VM = VmRecord(
    vm_id=WEB,
    incarnation=Incarnation(6),
    copies=(PossibleCopy(host_id=H2, incarnation=Incarnation(6), boot=BOOT),),
    stage=VmStage.STARTING,
    start=Start(
        order_id=OrderId("3.17"),
        host_id=H2,
        boot=BOOT,
        incarnation=Incarnation(6),
        ordered_ms=8,
    ),
    proofs=(Proof(kind=ProofKind.NEW_BOOT, host_id=H1, boot=BootId("boot0"), at_ms=7, detail=""),),
)
GRANTED = CopyGranted(host_id=H1, boot=BOOT, vm_id=WEB, incarnation=Incarnation(7))


def run(tmp_path: Path, story: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/virtha.db", clock=MachineClock())
        try:
            async with store.write() as tx:
                made = Installation(id=InstallationId("i"))
                await add_installation(tx, made, timeline="t")
                for cluster_id in (C1, C2):
                    await save_cluster(tx, Cluster(id=cluster_id, name=cluster_id))
                for vm_id, cluster_id in ((WEB, C1), (DB, C2)):
                    vm = Vm(id=vm_id, name=vm_id, cluster_id=cluster_id, memory_bytes=1)
                    await save_vm(tx, vm)
                    await save_vm_status(tx, VmStatus(vm_id=vm_id))
            await story(store)
        finally:
            await store.close()

    asyncio.run(main())


async def save(store: Store, cluster_id: ClusterId, *intents: Intent) -> None:
    async with store.write() as tx:
        for intent in intents:
            if isinstance(intent, SaveCluster):
                await save_cluster_record(tx, cluster_id, intent.record, Millis(100))
            else:
                await save_intent(tx, cluster_id, intent)


def test_what_one_leader_writes_the_next_reads(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        async with store.read() as tx:
            empty = await engine_records(tx, C1)
        assert (empty.cluster, empty.clock, empty.hosts, empty.vms) == (None, 0, (), ())
        await save(
            store,
            C1,
            SaveCluster(record=CLUSTER),
            SaveHost(record=HOST),
            SaveHost(record=HostRecord(host_id=HostId("h0"))),
            SaveVm(record=VM),
        )
        async with store.read() as tx:
            found = await engine_records(tx, C1)
            other = await engine_records(tx, C2)
            assert await find_vm_record(tx, WEB) == VM
            assert await find_vm_record(tx, DB) is None
        assert (found.cluster, found.clock) == (CLUSTER, 100)
        assert found.hosts == (HostRecord(host_id=HostId("h0")), HOST), "sorted"
        assert found.vms == (VM,)
        assert other.cluster is None and other.hosts == () == other.vms, "another cluster's"

    run(tmp_path, story)


def test_records_are_replaced_dropped_and_go_with_their_cluster(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        later = VmRecord(vm_id=WEB, incarnation=Incarnation(6))
        await save(store, C1, SaveCluster(record=CLUSTER), SaveHost(record=HOST), SaveVm(record=VM))
        await save(store, C1, SaveVm(record=later), DropHost(host_id=H1))
        async with store.read() as tx:
            found = await engine_records(tx, C1)
        assert (found.hosts, found.vms) == ((), (later,))
        await save(store, C1, DropVm(vm_id=WEB), SaveHost(record=HOST))
        async with store.write() as tx:
            await save_cluster_record(tx, C1, None, Millis(200))
        async with store.read() as tx:
            found = await engine_records(tx, C1)
        assert (found.cluster, found.clock, found.vms) == (CLUSTER, 200, ()), (
            "only its clock went on"
        )
        async with store.write() as tx:
            await drop_vm(tx, WEB)
            await drop_cluster(tx, C1)
        async with store.read() as tx:
            found = await engine_records(tx, C1)
        assert (found.cluster, found.hosts) == (None, ())

    run(tmp_path, story)


def test_writing_them_moves_no_revision(tmp_path: Path) -> None:
    """Whoever follows the installation is not woken by what only the engine knows."""

    async def story(store: Store) -> None:
        before = store.changes.revision
        await save(store, C1, SaveCluster(record=CLUSTER), SaveHost(record=HOST), SaveVm(record=VM))
        assert store.changes.revision == before

    run(tmp_path, story)


def test_copies_granted_wait_in_their_order_until_a_write_knows_of_them(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        second = CopyGranted(host_id=H2, boot=BOOT, vm_id=WEB, incarnation=Incarnation(8))
        elsewhere = CopyGranted(host_id=H2, boot=BOOT, vm_id=DB, incarnation=Incarnation(1))
        async with store.write() as tx:
            for granted in (second, elsewhere, GRANTED, GRANTED):
                await add_grant(tx, granted)
        async with store.read() as tx:
            assert (await engine_records(tx, C1)).granted == (second, GRANTED), "twice is once"
            assert await grants_of(tx, DB) == (elsewhere,)
        async with store.write() as tx:
            await drop_grant(tx, second)
            await drop_grant(tx, second)
            await drop_vm(tx, DB)
        async with store.read() as tx:
            assert (await engine_records(tx, C1)).granted == (GRANTED,)
            assert await grants_of(tx, DB) == (), "it goes with its VM"

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("table", "named"),
    [("engine_cluster", "cluster c1"), ("engine_host", "host h1"), ("engine_vm", "VM web")],
)
@pytest.mark.parametrize("body", ["{", "{}", '{"term": "x", "host_id": 3, "vm_id": 3}'])
def test_a_record_that_cannot_be_read_is_named(
    tmp_path: Path, table: str, named: str, body: str
) -> None:
    async def story(store: Store) -> None:
        await save(store, C1, SaveCluster(record=CLUSTER), SaveHost(record=HOST), SaveVm(record=VM))
        async with store.write() as tx:
            await tx.connection.exec_driver_sql(f"UPDATE {table} SET body = ?", (body,))
        async with store.read() as tx:
            with pytest.raises(Failed) as failed:
                await engine_records(tx, C1)
        assert named in str(failed.value) and "restore a backup" in (failed.value.fix or "")

    run(tmp_path, story)


def test_an_installation_of_before_the_engine_keeps_all_it_had(tmp_path: Path) -> None:
    """Whatever was recorded by then has been acknowledged: its hosts have forgotten it."""
    database = tmp_path / "virtha.db"
    migrate(database, migrations=scripts_up_to(tmp_path, "0003"))
    with closing(sqlite3.connect(database)) as old, old:
        old.execute("INSERT INTO installation VALUES ('i', 'virtha', NULL, 41, 3, 't', 1, 0)")
        old.execute("INSERT INTO cluster VALUES ('c', 'default', '{}', 1)")
        old.execute("INSERT INTO host VALUES ('h', 'h1', 1, 'c', NULL, '{}', 2)")
        old.execute("INSERT INTO host_status VALUES ('h', 'up', 977, 't', '{}', 3)")
    backup = migrate(database)
    assert backup is not None and backup.name.startswith("virtha.db.before-0003-")
    with closing(sqlite3.connect(database)) as new:
        found = new.execute("SELECT host_id, fact_sequence, fact_acknowledged FROM host_status")
        assert found.fetchall() == [("h", 977, 977)]
        for table in ("engine_cluster", "engine_host", "engine_vm", "engine_grant"):
            assert new.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
        assert new.execute("PRAGMA foreign_key_check").fetchall() == []
