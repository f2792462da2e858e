"""Which images a VM ran with, as its pool keeps it: object ``virtha.images.<vm id>``.

Per image, and by the number that Ceph gives each one, not by name: another image under the same name, and a disk that was added
since the VM last ran, are none that its former copies had open, so that whoever has it open now is none of them.
"""

from collections.abc import Iterable

import msgspec

from virtha.agent import ceph_records
from virtha.model.errors import Failed
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import VmId
from virtha.model.value import Value

IMAGES_MAX = 512
"""The newest; of one that was forgotten nobody is shut out."""


class Marks(Value, frozen=True, kw_only=True):
    vm_id: VmId
    images: tuple[str, ...] | None = None
    """Prefixes of their objects' names, which hold the image's number. None: none was ever kept."""
    read: bytes | None = None
    """What stands there."""

    def with_images(self, prefixes: Iterable[str]) -> "Marks":
        known = self.images or ()
        new = tuple(prefix for prefix in prefixes if prefix not in known)
        return msgspec.structs.replace(self, images=(*known, *new)[-IMAGES_MAX:])


def read_marks(domain: StorageDomain, vm_id: VmId) -> Marks:
    """Raises Failed where it can't be read: unknown is not none. OSError. Only in the domain's worker."""
    name = ceph_records.images_record(vm_id)
    data = ceph_records.read(_pool(domain), name)
    if data is None:
        return Marks(vm_id=vm_id)
    try:
        return Marks(vm_id=vm_id, images=msgspec.json.decode(data, type=tuple[str, ...]), read=data)
    except msgspec.MsgspecError as error:
        raise Failed(
            f"object {name} of {domain.path} can't be read: {error}",
            fix="remove it while the VM is down and nobody has its images open",
        ) from error


def write_marks(domain: StorageDomain, marks: Marks) -> None:
    """Over what was read, or not at all. Raises OSError."""
    data = msgspec.json.encode(marks.images or ())
    if data != marks.read:
        name = ceph_records.images_record(marks.vm_id)
        ceph_records.write(_pool(domain), name, data, over=marks.read)


def _pool(domain: StorageDomain) -> CephPool:
    assert isinstance(domain.ceph, CephPool)
    return domain.ceph
