"""One look at a storage domain: whether this host can use it, what is in it, and how much room there is."""

import os
from pathlib import Path

from msgspec import UNSET

from virtha.agent import ceph_records
from virtha.agent.files import Files
from virtha.agent.order_storage import IMAGE_SUFFIXES
from virtha.agent.storage import HEADER, check_header, takes_direct_io
from virtha.agent.storage_mark import mark_of
from virtha.model.errors import Failed
from virtha.model.host import StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.size import format_size
from virtha.model.value import Value

IMAGES_MAX = 1_000
LOW_PARTS = 20
"""Nearly full: less than one part of so many is free. Ceph stops all writes with as much left on one of its disks."""
LOW_BYTES = 4 << 30
"""Or less than this: a guest's dump, or a few growing disks, fill it before anybody has read of it."""
LOW_PARTS_OF_SMALL = 10
"""But that is a matter of large ones: no domain is nearly full with more than one part of so many free."""


class Probed(Value, frozen=True, kw_only=True):
    size_bytes: int
    free_bytes: int
    mark: str
    direct_io: bool = True
    images: tuple[tuple[Path, tuple[int, int]], ...] = ()
    """Files with their (mtime, size)."""
    warning: str = ""
    """The storage's own word, where it has one."""


def probe(domain: StorageDomain, installation_id: InstallationId, files: Files) -> Probed:
    """Only in the domain's worker. Raises Refused (foreign), Failed, OSError; InvalidInput where a setting of Ceph's is wrong."""
    check_header(domain, installation_id)
    if domain.ceph is not UNSET:
        mark = mark_of(domain, files)
        size, free, warning = ceph_records.space(domain.ceph)
        return Probed(size_bytes=size, free_bytes=free, mark=mark, warning=warning)
    space = os.statvfs(domain.path)
    _check_writable(domain, read_only=bool(space.f_flag & os.ST_RDONLY))
    return Probed(
        size_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize,
        mark=mark_of(domain, files),
        direct_io=takes_direct_io(domain),
        images=_images(domain),
    )


def low_space(size_bytes: int, free_bytes: int) -> str:
    """In words; empty where there is room, or nobody counts it."""
    bound = max(size_bytes // LOW_PARTS, min(LOW_BYTES, size_bytes // LOW_PARTS_OF_SMALL))
    if size_bytes == 0 or free_bytes >= bound:
        return ""
    return f"nearly full: {format_size(free_bytes)} of {format_size(size_bytes)} are free"


def _check_writable(domain: StorageDomain, *, read_only: bool) -> None:
    """No VM can be started there, for its start is written down there first; what runs loses what it writes. Raises Failed."""
    if read_only:
        raise Failed(
            f"{domain.path} is mounted read-only",
            fix="see the kernel's log for why, then: mount -o remount,rw",
        )
    if not os.access(Path(domain.path, HEADER).parent, os.W_OK):
        raise Failed(
            f"{domain.path} can't be written",
            fix="is it exported read-only, or without rights for root (root_squash)?",
        )


def _images(domain: StorageDomain) -> tuple[tuple[Path, tuple[int, int]], ...]:
    found = []
    for entry in sorted(Path(domain.path, "images").iterdir())[:IMAGES_MAX]:
        if entry.suffix in IMAGE_SUFFIXES and entry.is_file() and not entry.is_symlink():
            status = entry.stat()
            found.append((entry, (status.st_mtime_ns, status.st_size)))
    return tuple(found)
