"""Two images of one name (``web.qcow2`` beside ``web.raw``): both are listed, and which of them a disk is made of is said."""

from collections.abc import Callable
from typing import Any

import pytest
from able_host import GIB

from virtha.control.requests import DiskCreate, VmCreate
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput
from virtha.model.facts import Image, StorageReport
from virtha.model.orders import CreateDisk
from virtha.model.user import Role

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]
QCOW2, RAW, OTHER = (
    Image(
        name=path.rpartition(".")[0].removeprefix("images/"),
        path=path,
        format=kind,
        size_bytes=1,
        virtual_size_bytes=size,
    )
    for path, kind, size in (
        ("images/web.qcow2", "qcow2", 2 * GIB),
        ("images/web.raw", "raw", GIB),
        ("images/web.raw.qcow2", "qcow2", 3 * GIB),
    )
)


async def _seen(world: Any, *images: Image) -> Any:
    host = await world.join("h1")
    view = await world.add_storage()
    await host.tell(
        StorageReport(
            storage_domain_id=view.domain.id,
            usable=True,
            size_bytes=100 * GIB,
            free_bytes=50 * GIB,
            images=images,
        )
    )
    return host


def test_both_are_listed(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await _seen(world, RAW, OTHER, QCOW2)
        assert await world.control.storage.images("ds1") == (QCOW2, RAW, OTHER)

    tell(story)


@pytest.mark.bad_input("image name of two files")
def test_a_name_of_two_is_refused_and_one_with_its_suffix_is_taken(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _seen(world, QCOW2, RAW, OTHER)
        before = len(host.orders)
        with pytest.raises(InvalidInput) as caught:
            await world.control.vms.create(
                ADMIN, VmCreate(name="web1", memory_bytes=GIB, image="web")
            )
        assert caught.value.field == "image" and caught.value.fix
        assert caught.value.allowed == ("web.qcow2", "web.raw")
        assert len(host.orders) == before
        # A file's whole name goes before what another would have for its name without a suffix.
        for number, (name, image) in enumerate(
            {"web.qcow2": QCOW2, "web.raw": RAW, "web.raw.qcow2": OTHER}.items()
        ):
            vm_id = await world.add_vm(f"web{number}", image=name)
            (disk,) = (await world.control.vms.get(vm_id)).vm.disks
            assert (disk.size_bytes, disk.format.value) == (image.virtual_size_bytes, image.format)
            made = [order.body for order in host.orders if isinstance(order.body, CreateDisk)]
            assert made[-1].image == name

    tell(story)


def test_the_host_is_told_which_file_was_meant(tell: Tell) -> None:
    """Another of that name may lie there by the time when it copies."""

    async def story(world: Any) -> None:
        host = await _seen(world, RAW)
        await world.add_vm("web1", image="web")
        made = [order.body for order in host.orders if isinstance(order.body, CreateDisk)]
        assert [one.image for one in made] == ["web.raw"]
        wanted = DiskCreate(name="data", image="web.qcow2")
        with pytest.raises(InvalidInput, match=r"no image 'web\.qcow2'"):
            await world.control.vms.devices.add_disk(ADMIN, "web1", wanted)

    tell(story)
