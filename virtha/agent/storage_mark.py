"""A mark at random on each storage domain, by which the server tells whether two hosts see one and the same.

The header can't tell it: hosts on which nothing is mounted each find an empty directory and write the same ids into it. The mark is made
by whoever looks first, also on a domain from before there were marks, and is never replaced; whoever sees the same storage reads the same.
"""

import errno
import re
import secrets
from pathlib import Path

from msgspec import UNSET

from virtha.agent import ceph_records
from virtha.agent.files import Files, read_bounded
from virtha.agent.storage import create_once
from virtha.model.errors import Failed
from virtha.model.host import StorageDomain

MARK = ".virtha/mark"
"""Below a domain's path."""
_BYTES = 16
_FORM = re.compile(rb"[0-9a-f]{%d}" % (2 * _BYTES))


def mark_of(domain: StorageDomain, files: Files) -> str:
    """Only in the domain's worker, once ``check_header`` found it ours. Raises Failed, OSError; InvalidInput where a setting of Ceph's
    is wrong."""
    found = _read(domain)
    if found is None:
        _make(domain, secrets.token_hex(_BYTES).encode(), files)
        found = _read(domain)  # perhaps another's: whose was there first
    if found is None:
        raise Failed(f"the mark of {domain.path} is gone as soon as it is made")
    if _FORM.fullmatch(found) is None:
        raise Failed(
            f"the mark of {domain.path} ({_place(domain)}) is damaged",
            fix="remove it: the next look makes it anew",
        )
    return found.decode()


def _place(domain: StorageDomain) -> str:
    return MARK if domain.ceph is UNSET else f"object {ceph_records.MARK}"


def _read(domain: StorageDomain) -> bytes | None:
    if domain.ceph is not UNSET:
        return ceph_records.read(domain.ceph, ceph_records.MARK)
    try:
        return read_bounded(Path(domain.path, MARK), 4 * _BYTES)
    except FileNotFoundError:
        return None
    except ValueError:
        return b""  # longer than any: damaged


def _make(domain: StorageDomain, mark: bytes, files: Files) -> None:
    if domain.ceph is UNSET:
        create_once(Path(domain.path, MARK), mark, files)
        return
    try:
        ceph_records.write(domain.ceph, ceph_records.MARK, mark, over=None)
    except OSError as error:
        if error.errno != errno.ESTALE:  # another was quicker
            raise
