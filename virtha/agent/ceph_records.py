"""What the agent keeps on a Ceph pool besides images: small objects, each written whole and only over what was read.

One connection for each thread and pool: nothing of a storage domain is touched outside its own worker.
"""

import base64
import binascii
import errno
import json
import re
import threading
from pathlib import Path
from typing import Any

from virtha.drivers.ceph_blocklist import CephBlocklist
from virtha.drivers.ceph_client import CephClient, CephUnusable
from virtha.drivers.ceph_library import MISMATCH
from virtha.drivers.ceph_slots import no_write, unusable
from virtha.model.errors import Failed, InvalidInput
from virtha.model.host import CephPool

PATIENCE_MS = 20_000
READ_MS = 15_000
BLOCK_S = 30 * 86_400.0
"""Far beyond what any packet of a dead process is on its way, or a frozen host stays unnoticed. No entry is without end, and
``profile rbd`` may remove none."""
RECORD_BYTES_MAX = 65_536
DOMAIN = "virtha.domain"
MARK = "virtha.mark"
_WARNINGS = ("OSD_FULL", "POOL_FULL", "OSD_NEARFULL", "POOL_NEAR_FULL", "OSD_BACKFILLFULL")
_kept = threading.local()


def ask(pool: CephPool, what: str, **words: Any) -> Any:
    """Of this thread's connection. Raises InvalidInput (a setting is wrong, it may not write), OSError."""
    client = _client_of(pool)
    try:
        return client.ask(what, patience_ms=PATIENCE_MS, **words)
    except CephUnusable as error:
        raise unusable(error, pool) from error
    except PermissionError as error:
        raise no_write(pool) from error
    except OSError as error:
        if error.errno != errno.ESHUTDOWN:
            raise
        raise Failed(
            "this host is shut out of the Ceph cluster: its address is on the blocklist",
            fix="after its next boot, and once none of its VMs' old copies runs, remove that entry: 'ceph osd blocklist ls', "
            "'ceph osd blocklist rm ADDRESS'",
        ) from error


def _client_of(pool: CephPool) -> CephClient:
    clients: dict[CephPool, CephClient] = _kept.__dict__.setdefault("clients", {})
    client = clients.get(pool)
    if client is None:
        client = clients[pool] = CephClient(pool)
    return client


def blocklist(pool: CephPool) -> CephBlocklist:
    """Over this thread's connection: whatever it waits for, this thread's other questions have then."""
    return CephBlocklist(pool, client=_client_of(pool))


def close_all() -> None:
    """This thread's connections; each is made anew when it is asked again."""
    for client in _kept.__dict__.pop("clients", {}).values():
        client.close()


def vm_record(vm_id: str) -> str:
    return f"virtha.vm.{vm_id}"


def images_record(vm_id: str) -> str:
    return f"virtha.images.{vm_id}"


def read(pool: CephPool, name: str) -> bytes | None:
    (found,) = ask(pool, "read", wanted=[(name, 0, RECORD_BYTES_MAX)], wait_ms=READ_MS)
    if found == errno.ENOENT:
        return None
    if isinstance(found, int):
        raise OSError(found, f"{name} can't be read")
    return bytes(found)


def write(pool: CephPool, name: str, data: bytes, *, over: bytes | None) -> None:
    """``over``: what was read there, None: nothing. Raises OSError (ESTALE) where that is not so any more: of two writers one
    wins, whole."""
    try:
        ask(
            pool,
            "write",
            name=name,
            offset=0,
            data=data,
            expected=[] if over is None else [(0, over)],
            exclusive=over is None,
            whole=True,
        )
    except OSError as error:
        if error.errno in (MISMATCH, errno.EEXIST, errno.ENOENT):
            raise OSError(errno.ESTALE, f"{name} was written by another meanwhile") from error
        raise


def remove(pool: CephPool, name: str) -> None:
    """Absent is done already."""
    try:
        ask(pool, "remove", name=name)
    except FileNotFoundError:
        return


def identity(pool: CephPool) -> tuple[str, int]:
    """Which cluster it is, and which pool of it: a copy has the same names and contents, and others of these."""
    fsid, number = ask(pool, "identity")
    return str(fsid), int(number)


def key_of(pool: CephPool) -> bytes | None:
    """Its user's key; None: none is needed. From a file of this host, which is no part of the storage. Raises Failed."""
    if pool.user is None:
        return None
    path = Path(pool.keyring_path)
    section = re.compile(rf"^\s*\[client\.{re.escape(pool.user)}\][^\[]*?^\s*key\s*=\s*(\S+)", re.M)
    try:
        found = section.search(path.read_text("utf-8", "replace"))
        if found is not None:
            return base64.b64decode(found[1], validate=True)
    except (OSError, binascii.Error) as error:
        raise Failed(f"the key in {path} can't be read: {error}") from error
    raise Failed(f"{path} has no key of client.{pool.user}")


def space(pool: CephPool) -> tuple[int, int, str]:
    """Size and what can be written yet, in bytes, and what Ceph warns of. 0 and 0 where no manager of it counts them."""
    told = json.loads(_command(pool, "df"))
    stats: dict[str, Any] = next(
        (one["stats"] for one in told["pools"] if one["name"] == pool.pool), {}
    )
    free = int(stats.get("max_avail", 0))
    used = int(stats.get("stored", stats.get("bytes_used", 0)))
    checks = json.loads(_command(pool, "health")).get("checks", {})
    warnings = [checks[name]["summary"]["message"] for name in _WARNINGS if name in checks]
    return used + free, free, "; ".join(warnings)


def block(pool: CephPool, address: str) -> None:
    """One client's one connection (IP:PORT/NONCE), for good: it is never used again. Raises OSError, InvalidInput where this user
    may not."""
    words = {"blocklistop": "add", "addr": address, "expire": BLOCK_S}
    try:
        _command(pool, "osd blocklist", **words)
    except InvalidInput as error:
        raise InvalidInput(
            f"client.{pool.user} may not shut out whoever has an image open",
            field="ceph.user",
            fix=f"allow it: ceph auth caps client.{pool.user} mon 'profile rbd' osd 'profile rbd pool={pool.pool}'",
        ) from error
    ask(pool, "newest_map")


def _command(pool: CephPool, prefix: str, **more: Any) -> str:
    words = {"prefix": prefix, "format": "json", **more}
    answer: str = ask(pool, "command", json_text=json.dumps(words))
    return answer
