"""Each bad input: a clear error that names the field and what is allowed, and nothing lost or changed."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import (
    CephCreate,
    ClusterCreate,
    DiskCreate,
    JoinRequest,
    NicCreate,
    SearchQuery,
    SettingPut,
    StorageCreate,
    TokenCreate,
    VmChange,
    VmCreate,
    VmQuery,
    WatchdogRequest,
)
from virtha.control.views import Caller
from virtha.model.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
    Stale,
    Unauthenticated,
    VirthaError,
)
from virtha.model.facts import StorageReport
from virtha.model.ids import Revision
from virtha.model.machine import MachineType
from virtha.model.user import Role, SettingScope

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
GIB = 1 << 30
MIB = 1 << 20
Tell = Callable[[Any], None]

BAD_VMS: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("no name", {"name": ""}, "problem.invalid", "name", "missing"),
    ("path as name", {"name": "../x"}, "problem.invalid", "name", "letters, digits"),
    ("long name", {"name": "x" * 64}, "problem.invalid", "name", "1 to 63"),
    (
        "id as name",
        {"name": "7a0f2f4e-26fc-4a4c-8c13-000000000000"},
        "problem.invalid",
        "name",
        "id",
    ),
    ("taken", {"name": "taken"}, "problem.name_taken", "name", "another name"),
    ("memory", {"memory_bytes": 9 * GIB}, "problem.memory.beyond", "memory_bytes", "up to 8GiB"),
    ("tiny memory", {"memory_bytes": 1}, "problem.invalid", "memory_bytes", "16MiB"),
    ("no processors", {"vcpus": 0}, "problem.invalid", "vcpus", "1 to"),
    ("machine", {"machine": MachineType.S390_CCW}, "problem.invalid", "machine", "q35, pc"),
    ("architecture", {"architecture": "z80"}, "problem.invalid", "architecture", "x86_64"),
    ("image", {"image": "tinny"}, "problem.invalid", "image", "tiny"),
    ("cluster", {"cluster": "defualt"}, "problem.not_found", "cluster", "did you mean default"),
    ("storage", {"storage_domain": "nope"}, "problem.not_found", "storage_domain", "nope"),
    (
        "watchdog that does not fit",
        {"watchdog": WatchdogRequest(model="diag288", action="reset")},
        "problem.watchdog.model",
        "watchdog.model",
        "i6300esb, ib700",
    ),
    (
        "watchdog that no host accepts",
        {"watchdog": WatchdogRequest(model="itco", action="reset")},
        "problem.watchdog.model",
        "watchdog.model",
        "i6300esb, ib700",
    ),
    (
        "watchdog without action",
        {"watchdog": WatchdogRequest(model="i6300esb")},
        "problem.watchdog.action",
        "watchdog.action",
        "is missing",
    ),
    (
        "watchdog without model",
        {"watchdog": WatchdogRequest(action="reset")},
        "problem.watchdog.model",
        "watchdog.model",
        "is missing",
    ),
    *(
        (
            f"disk path {path}",
            {"disks": (DiskCreate(path=path, size_bytes=GIB),)},
            "problem.disk.outside",
            "disks[0].path",
            "relative path" if not path.startswith("images") else "image",
        )
        for path in (
            "../x",
            "/etc/passwd",
            "a/../../x",
            "a//b",
            "",
            "./x",
            ".hidden",
            "a\nb",
            "images/tiny.qcow2",
        )
    ),
    (
        "disk of another VM",
        {"disks": (DiskCreate(path="mine/disk.qcow2", size_bytes=GIB),)},
        "problem.disk.in_use",
        "disks[0].path",
        "belongs to VM taken",
    ),
    (
        "disk of nothing",
        {"disks": (DiskCreate(),)},
        "problem.invalid",
        "disks[0]",
        "image, size_bytes, path",
    ),
    (
        "disk twice",
        {"disks": (DiskCreate(path="a", size_bytes=GIB), DiskCreate(path="a", size_bytes=GIB))},
        "problem.invalid",
        "disks[1].path",
        "twice",
    ),
    (
        "disk smaller than its image",
        {"disks": (DiskCreate(image="tiny", size_bytes=MIB),)},
        "problem.invalid",
        "disks[0].size_bytes",
        "64MiB or more",
    ),
    (
        "bus",
        {"disks": (DiskCreate(size_bytes=GIB, bus="usb"),)},
        "problem.invalid",
        "disks[0].bus",
        "virtio",
    ),
    (
        "bridge",
        {"nics": (NicCreate(bridge="br0;rm"),)},
        "problem.invalid",
        "nics[0].bridge",
        "letters",
    ),
    (
        "group MAC",
        {"nics": (NicCreate(bridge="br0", mac="53:54:00:00:00:01"),)},
        "problem.invalid",
        "nics[0].mac",
        "even",
    ),
    (
        "MAC of another VM",
        {"nics": (NicCreate(bridge="br0", mac="52:54:00:00:00:01"),)},
        "problem.mac.in_use",
        "nics[0].mac",
        "taken",
    ),
]


@pytest.mark.req("W1", "W2")
@pytest.mark.parametrize(
    ("changes", "code", "field", "told"),
    [row[1:] for row in BAD_VMS],
    ids=[row[0] for row in BAD_VMS],
)
@pytest.mark.bad_input(
    "model that does not fit the machine",
    "missing action",
    "name taken",
    "disk path outside the domain",
    "disk of another VM",
    "memory beyond any host",
)
def test_a_vm_that_can_not_be_is_refused_and_leaves_nothing(
    tell: Tell, changes: dict[str, Any], code: str, field: str, told: str
) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm(
            "taken",
            disks=(DiskCreate(path="mine/disk.qcow2", size_bytes=GIB),),
            nics=(NicCreate(bridge="br0", mac="52:54:00:00:00:01"),),
        )
        before = await world.control.events.current_revision()
        orders = len(world.links.delivered)
        wanted = {"name": "web1", "memory_bytes": 512 * MIB, "image": "tiny", **changes}
        with pytest.raises(VirthaError) as bad:
            await world.control.vms.create(ADMIN, VmCreate(**wanted))
        assert (bad.value.code, bad.value.field) == (code, field)
        assert told in str(bad.value)
        assert await world.control.events.current_revision() == before
        assert len(world.links.delivered) == orders
        assert [view.vm.name for view in (await world.control.vms.list(VmQuery())).items] == [
            "taken"
        ]

    tell(story)


def test_a_change_of_machine_must_keep_its_watchdog_fitting(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm(watchdog=WatchdogRequest(model="ib700", action="reset"))
        changed = await world.control.vms.change(ADMIN, "web1", VmChange(machine=MachineType.PC))
        assert changed.vm.machine is MachineType.PC
        with pytest.raises(InvalidInput):
            await world.control.vms.change(ADMIN, "web1", VmChange(machine=MachineType.S390_CCW))
        with pytest.raises(InvalidInput) as beyond:
            await world.control.vms.change(ADMIN, "web1", VmChange(memory_bytes=9 * GIB))
        assert beyond.value.code == "problem.memory.beyond"

    tell(story)


async def _token(world: Any, **more: Any) -> Any:
    return await world.control.tokens.create(ADMIN, TokenCreate(**more))


@pytest.mark.bad_input("expired token", "used token", "wrong authority", "name taken")
def test_join_tells_unknown_expired_used_and_foreign_tokens_apart(tell: Tell) -> None:
    async def story(world: Any) -> None:
        good = await _token(world)
        short = await _token(world, expires_ms=1_000)
        many = await _token(world, uses_max=2)
        prefix, token_id, secret, fingerprint = good.secret.split(".")

        async def join(token: str, name: str = "h1", **more: Any) -> Any:
            return await world.control.join.join(
                JoinRequest(token=token, csr_pem=more.pop("csr", "csr"), name=name, **more),
                address="10.0.0.9",
            )

        async def refused(token: str, code: str, **more: Any) -> None:
            signed = world.authority.signed
            with pytest.raises(VirthaError) as error:
                await join(token, **more)
            assert error.value.code == code
            assert world.authority.signed == signed, "nothing was signed"

        wrong = secret[:-2] + ("AA" if secret[-2:] != "AA" else "BB")
        for token in (
            "",
            "nonsense",
            good.secret[:-1],
            f"{prefix}.{token_id}.{wrong}.{fingerprint}",
        ):
            await refused(token, "problem.token.unknown")
        await refused(f"{prefix}.{token_id}.{secret}.{'cd' * 32}", "problem.authority.wrong")
        world.clock.advance(1_000)
        await refused(short.secret, "problem.token.expired")
        await refused(good.secret, "problem.invalid", name="no name")
        await refused(good.secret, "problem.invalid", csr="rubbish")
        uuid = "AAAAAAAA-0000-0000-0000-000000000001"
        answer = await join(good.secret, libvirt_uuid=uuid)
        assert (answer.number, answer.cluster, answer.servers) == (1, "default", ("server1:8250",))
        await refused(good.secret, "problem.token.used", name="h2")
        await refused(many.secret, "problem.name_taken", name="h1")
        await refused(many.secret, "problem.conflict", name="h2", libvirt_uuid=uuid.lower())
        assert (await join(many.secret, "h2")).number == 2
        refusals = await world.events("join.refused")
        assert len(refusals) == 11
        assert all(event.fields["address"] == "10.0.0.9" for event in refusals)

    tell(story)


@pytest.mark.req("L1", "L6")
def test_a_removed_host_is_revoked_and_its_number_never_given_again(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        assert await world.control.hosts.certificate_allowed(host.id, f"0{host.serial.upper()}")
        assert not await world.control.hosts.certificate_allowed(host.id, "ff")
        await world.add_storage()
        await world.add_vm()
        vm_id, _ = await world.run_vm()
        with pytest.raises(Refused) as busy:
            await world.control.hosts.delete(ADMIN, "h1")
        assert busy.value.code == "problem.host.busy" and "web1" in str(busy.value)
        await host.stopped(vm_id, 1)
        with pytest.raises(Stale):
            await world.control.hosts.delete(ADMIN, "h1", Revision(1))
        await world.control.hosts.delete(ADMIN, "h1")
        assert world.links.disconnected == [(host.id, "wire.refused.revoked")]
        assert not await world.control.hosts.certificate_allowed(host.id, host.serial)
        with pytest.raises(Unauthenticated):
            await host.hello()
        assert (await world.join("h1")).id != host.id
        assert (await world.control.hosts.get("h1")).host.number == 2

    tell(story)


def test_settings_are_typed_scoped_and_known(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        settings = world.control.settings
        with pytest.raises(NotFound) as near:
            await settings.put(ADMIN, "grant.duraton", SettingPut(value="5s"))
        assert "did you mean grant.duration" in str(near.value)
        for value, told in (("5", "duration"), ("1s", "3s to 2m"), ("1h", "3s to 2m")):
            with pytest.raises(InvalidInput) as bad:
                await settings.put(ADMIN, "grant.duration", SettingPut(value=value))
            assert told in str(bad.value) and bad.value.field == "value"
        with pytest.raises(InvalidInput):
            await settings.put(
                ADMIN,
                "session.lifetime",
                SettingPut(value="1h"),
                scope=SettingScope.HOST,
                subject="h1",
            )
        with pytest.raises(NotFound):
            await settings.put(
                ADMIN,
                "grant.duration",
                SettingPut(value="20s"),
                scope=SettingScope.HOST,
                subject="h9",
            )
        await settings.put(ADMIN, "grant.duration", SettingPut(value="20000ms"))
        await settings.put(
            ADMIN, "grant.duration", SettingPut(value="30s"), scope=SettingScope.HOST, subject="h1"
        )
        shown = [
            (one.scope, one.value) for one in await settings.list() if one.key == "grant.duration"
        ]
        assert shown == [(SettingScope.GLOBAL, "20s"), (SettingScope.HOST, "30s")]
        await world.add_storage()
        await world.add_vm()
        _, host = await world.run_vm()
        assert host.orders[-1].body.grant.duration_ms == 30_000
        await settings.delete(ADMIN, "grant.duration", scope=SettingScope.HOST, subject="h1")
        with pytest.raises(NotFound):
            await settings.delete(ADMIN, "grant.duration", scope=SettingScope.HOST, subject="h1")

    tell(story)


def test_clusters_and_storage_keep_what_is_used(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        view = await world.add_storage()
        await world.add_vm()
        with pytest.raises(Refused):
            await world.control.clusters.delete(ADMIN, "default")
        with pytest.raises(Refused):
            await world.control.storage.delete(ADMIN, "ds1")
        with pytest.raises(Conflict):
            await world.control.storage.create(ADMIN, StorageCreate(name="ds1", path="/other"))
        for path in ("srv", "/srv/../etc", "/srv/", "/srv//x", "/"):
            with pytest.raises(InvalidInput):
                await world.control.storage.create(ADMIN, StorageCreate(name="ds2", path=path))
        for path in ("/srv/ds1", "/srv/ds1/below", "/srv"):
            with pytest.raises(Conflict):
                await world.control.storage.create(ADMIN, StorageCreate(name="ds2", path=path))
        await world.control.storage.create(ADMIN, StorageCreate(name="ds2", path="/srv/ds12"))
        with pytest.raises(InvalidInput) as several:
            await world.control.vms.create(
                ADMIN, VmCreate(name="web2", memory_bytes=GIB, image="tiny")
            )
        assert several.value.allowed == ("ds1", "ds2")
        assert (await world.control.storage.get("ds1")).usable_by == {"h1": True}
        assert (await world.control.storage.get("ds2")).usable_by == {"h1": None}
        assert view.domain.path == "/srv/ds1"
        with pytest.raises(Conflict):
            await world.control.clusters.create(ADMIN, ClusterCreate(name="default"))
        made = await world.control.clusters.create(ADMIN, ClusterCreate(name="second"))
        with pytest.raises(InvalidInput) as which:
            await world.control.vms.create(ADMIN, VmCreate(name="w", memory_bytes=GIB))
        assert which.value.field == "cluster"
        with pytest.raises(Stale):
            await world.control.clusters.delete(ADMIN, "second", Revision(made.revision - 1))
        await world.control.clusters.delete(ADMIN, "second", made.revision)

    tell(story)


@pytest.mark.parametrize("limit", [0, -1, 1_001])
def test_lists_are_bounded(tell: Tell, limit: int) -> None:
    async def story(world: Any) -> None:
        with pytest.raises(InvalidInput) as bad:
            await world.control.hosts.list(SearchQuery(limit=limit))
        assert bad.value.field == "limit"

    tell(story)


def test_lists_come_in_pages(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        for number in range(5):
            await world.add_vm(f"vm{number}")
        names: list[str] = []
        after = None
        while True:
            page = await world.control.vms.list(VmQuery(limit=2, after=after))
            names += [view.vm.name for view in page.items]
            after = page.next
            if after is None:
                break
        assert names == [f"vm{number}" for number in range(5)]

    tell(story)


CEPH = {"monitors": ("10.0.0.11", "[fd00::12]:3300"), "pool": "vms", "user": "virtha"}


@pytest.mark.req("F3")
@pytest.mark.bad_input
def test_a_ceph_pool_is_added_and_wrong_settings_are_named(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")

        async def add(name: str = "ceph2", **ceph: Any) -> Any:
            asked = StorageCreate(name=name, kind="ceph-rbd", ceph=CephCreate(**(CEPH | ceph)))
            return await world.control.storage.create(ADMIN, asked)

        for wrong, field in (
            ({"monitors": ()}, "ceph.monitors"),
            ({"monitors": ("10.0.0.1:0",)}, "ceph.monitors"),
            ({"monitors": ("10.0.0.1:x",)}, "ceph.monitors"),
            ({"monitors": ("mon a",)}, "ceph.monitors"),
            ({"monitors": ("fd00::1",)}, "ceph.monitors"),
            ({"monitors": ("a,b",)}, "ceph.monitors"),
            ({"monitors": tuple(f"10.0.0.{n}" for n in range(16))}, "ceph.monitors"),
            ({"pool": ""}, "ceph.pool"),
            ({"pool": "vms/one"}, "ceph.pool"),
            ({"pool": "vms:id=admin"}, "ceph.pool"),
            ({"user": "client.virtha"}, "ceph.user"),
            ({"user": ""}, "ceph.user"),
            ({"user": None, "keyring": "/etc/ceph/x"}, "ceph.user"),
            ({"keyring": "etc/ceph/x"}, "ceph.keyring"),
            ({"keyring": "/etc/../x"}, "ceph.keyring"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await add(**wrong)
            assert refused.value.field == field, wrong
        for asked, field in (
            (StorageCreate(name="x", kind="ceph-rbd"), "ceph"),
            (StorageCreate(name="x"), "path"),
            (StorageCreate(name="x", kind="ceph-rbd", path="/srv/x"), "path"),
            (StorageCreate(name="x", path="/srv/x", ceph=CephCreate(**CEPH)), "ceph"),
            (StorageCreate(name="x", path="/srv/x", kind="ceph"), "kind"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await world.control.storage.create(ADMIN, asked)
            assert refused.value.field == field
        view = await add("ceph1")
        assert (view.domain.kind, view.domain.path) == ("ceph-rbd", "rbd:vms@10.0.0.11")
        assert view.domain.ceph.monitors == CEPH["monitors"]
        with pytest.raises(Conflict) as twice:
            await add(monitors=("10.0.0.13", "10.0.0.11"))
        assert twice.value.field == "ceph.pool"
        await add(pool="vms2")
        await add("ceph3", monitors=("10.9.9.9",))

    tell(story)


@pytest.mark.req("F3")
def test_disks_on_a_ceph_pool_are_raw_and_have_plain_names(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        asked = StorageCreate(name="ceph1", kind="ceph-rbd", ceph=CephCreate(**CEPH))
        view = await world.control.storage.create(ADMIN, asked)
        report = StorageReport(storage_domain_id=view.domain.id, usable=True)
        await world.hosts["h1"].tell(report)

        async def make(**disk: Any) -> Any:
            one = VmCreate(name="web1", memory_bytes=GIB, disks=(DiskCreate(**disk),))
            return await world.control.vms.create(ADMIN, one)

        for wrong, field in (
            ({"image": "tiny"}, "disks[0].image"),
            ({"path": "vms/web1", "size_bytes": GIB}, "disks[0].path"),
            ({"path": "web1@snap"}, "disks[0].path"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await make(**wrong)
            assert refused.value.field == field
        await make(size_bytes=GIB)
        vm = (await world.control.vms.get("web1")).vm
        assert (vm.disks[0].path, vm.disks[0].format) == (f"{vm.id}.disk0", "raw")

    tell(story)
