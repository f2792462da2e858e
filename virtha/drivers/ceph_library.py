"""Ceph's own client libraries, librados and librbd, as far as virtha needs them. Only for the process of its own that
`ceph_process.py` is: a call may hang for ever, and where the library meets what it did not expect it ends its process.

They are called by their C interface and not through Debian's python3-rados, which is bound to the system's Python.
Every error is an OSError with Ceph's number and what was being done.
"""

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from time import monotonic, sleep
from typing import Any, ClassVar

FULL_TRY = 64
"""LIBRADOS_OPERATION_FULL_TRY: a cluster that is full takes what overwrites, and need not be waited for."""
_CREATE_EXCLUSIVE = 1
_MISMATCH_MAX = -4_095
"""An extent that is not what was expected is told as -4095 less the place of the first byte that differs."""
MISMATCH = errno.EILSEQ
"""What such a comparison is told as here."""
_POLL_S = 0.002
EXCLUSIVE_LOCK = 1 << 2
LAYERING, OBJECT_MAP, FAST_DIFF, DEEP_FLATTEN = 1 << 0, 1 << 3, 1 << 4, 1 << 5
FEATURES = LAYERING | EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | DEEP_FLATTEN


class _ImageInfo(ctypes.Structure):
    _fields_ = (
        ("size", c_uint64),
        ("obj_size", c_uint64),
        ("num_objs", c_uint64),
        ("order", c_int),
        ("block_name_prefix", ctypes.c_char * 24),
        ("parent_pool", c_int64),
        ("parent_name", ctypes.c_char * 96),
    )


class _Watcher(ctypes.Structure):
    _fields_ = (("addr", c_char_p), ("id", c_int64), ("cookie", c_uint64))


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise OSError(errno.ENOPKG, f"{name} is missing: install librados2 and librbd1") from error


class Rados:
    """One connection, to one pool and namespace. Methods may hang."""

    def __init__(self, options: Mapping[str, str], *, user: str, pool: str, namespace: str) -> None:
        """Raises OSError, whose text begins with what was tried: ``connect``, ``pool``."""
        self._library = _load("librados.so.2")
        self._cluster, self.io = c_void_p(), c_void_p()
        self._pool = pool
        self._declare()
        library = self._library
        _check(
            library.rados_create2(byref(self._cluster), b"ceph", f"client.{user}".encode(), 0),
            "create",
        )
        for name, value in options.items():
            _check(
                library.rados_conf_set(self._cluster, name.encode(), value.encode()),
                f"option {name}",
            )
        _check(library.rados_connect(self._cluster), "connect")
        _check(library.rados_ioctx_create(self._cluster, pool.encode(), byref(self.io)), "pool")
        library.rados_ioctx_set_namespace(self.io, namespace.encode())

    def _declare(self) -> None:
        library = self._library
        library.rados_create_write_op.restype = c_void_p
        library.rados_release_write_op.argtypes = [c_void_p]
        library.rados_write_op_assert_exists.argtypes = [c_void_p]
        library.rados_write_op_create.argtypes = [c_void_p, c_int, c_char_p]
        library.rados_write_op_cmpext.argtypes = [c_void_p, c_char_p, c_size_t, c_uint64, c_void_p]
        library.rados_write_op_write.argtypes = [c_void_p, c_char_p, c_size_t, c_uint64]
        library.rados_write_op_write_full.argtypes = [c_void_p, c_char_p, c_size_t]
        library.rados_write_op_operate.argtypes = [c_void_p, c_void_p, c_char_p, c_void_p, c_int]
        library.rados_aio_create_completion2.argtypes = [c_void_p, c_void_p, POINTER(c_void_p)]
        library.rados_aio_read.argtypes = [
            *(c_void_p, c_char_p, c_void_p, c_char_p, c_size_t, c_uint64)
        ]
        library.rados_aio_stat.argtypes = [c_void_p, c_char_p, c_void_p, c_void_p, c_void_p]
        library.rados_aio_get_version.restype = c_uint64
        for name in ("is_complete", "get_return_value", "release", "get_version"):
            getattr(library, f"rados_aio_{name}").argtypes = [c_void_p]
        library.rados_remove.argtypes = [c_void_p, c_char_p]
        library.rados_buffer_free.argtypes = [c_void_p]
        library.rados_ioctx_create2.argtypes = [c_void_p, c_int64, POINTER(c_void_p)]
        library.rados_ioctx_destroy.argtypes = [c_void_p]
        library.rados_ioctx_get_id.argtypes = [c_void_p]
        library.rados_ioctx_get_id.restype = c_int64
        library.rados_pool_lookup.argtypes = [c_void_p, c_char_p]
        library.rados_pool_lookup.restype = c_int64

    # About the cluster

    def fsid(self) -> str:
        buffer = ctypes.create_string_buffer(37)
        _check(self._library.rados_cluster_fsid(self._cluster, buffer, 37), "fsid")
        return buffer.value.decode("ascii")

    def pool_id(self) -> int:
        return int(self._library.rados_ioctx_get_id(self.io))

    def check_pool(self) -> None:
        """Raises OSError (EIDRM) where the pool that was connected to is gone; one of its name may be there: another one.

        Whoever was told ENOENT asks this before it believes that an object is missing: of a pool that is deleted every
        object is "missing", and the library has looked for a newer map by then.
        """
        number = int(self._library.rados_pool_lookup(self._cluster, self._pool.encode()))
        if number != self.pool_id():
            raise OSError(errno.EIDRM, f"pool '{self._pool}' was deleted, or made anew")

    def addresses(self) -> str:
        """Its own, as its peers see them."""
        found = c_char_p()
        _check(self._library.rados_getaddrs(self._cluster, byref(found)), "addresses")
        try:
            return (found.value or b"").decode("ascii")
        finally:
            self._library.rados_buffer_free(found)

    def command(self, json_text: str) -> str:
        """Asks the monitors."""
        words = (c_char_p * 1)(json_text.encode())
        out, said = c_void_p(), c_void_p()
        out_size, said_size = c_size_t(), c_size_t()
        status = self._library.rados_mon_command(
            *(self._cluster, words, c_size_t(1), b"", c_size_t(0)),
            *(byref(out), byref(out_size), byref(said), byref(said_size)),
        )
        try:
            text = ctypes.string_at(said, said_size.value) if said.value else b""
            answer = ctypes.string_at(out, out_size.value) if out.value else b""
        finally:
            for buffer in (out, said):
                if buffer.value:
                    self._library.rados_buffer_free(buffer)
        if status < 0:
            raise OSError(-status, text.decode("utf-8", "replace") or os.strerror(-status))
        return answer.decode("utf-8", "replace")

    def newest_map(self) -> None:
        """Returns once this client has the newest map of the OSDs: what it asks then is answered by no older one."""
        _check(self._library.rados_wait_for_latest_osdmap(self._cluster), "map")

    # Objects

    def write(
        self,
        name: str,
        offset: int,
        data: bytes,
        *,
        expected: Sequence[tuple[int, bytes]] = (),
        exclusive: bool = False,
        whole: bool = False,
    ) -> None:
        """All or nothing, and on every copy when it returns. ``expected``: bytes that must stand at these offsets, looked
        at in the same step; ``exclusive``: no such object may be there; else it must be. ``whole``: nothing else
        remains of it. Raises OSError: ``MISMATCH``, EEXIST, ENOENT and others."""
        library = self._library
        operation = library.rados_create_write_op()
        try:
            if exclusive:
                library.rados_write_op_create(operation, _CREATE_EXCLUSIVE, None)
            else:
                library.rados_write_op_assert_exists(operation)
            results = [c_int() for _ in expected]
            for (at, wanted), result in zip(expected, results, strict=True):
                library.rados_write_op_cmpext(operation, wanted, len(wanted), at, byref(result))
            if whole:
                library.rados_write_op_write_full(operation, data, len(data))
            else:
                library.rados_write_op_write(operation, data, len(data), offset)
            status = library.rados_write_op_operate(
                operation, self.io, name.encode(), None, FULL_TRY
            )
        finally:
            library.rados_release_write_op(operation)
        _check(status, f"write {name}")

    def remove(self, name: str) -> None:
        _check(self._library.rados_remove(self.io, name.encode()), f"remove {name}")

    def read_all(
        self, wanted: Sequence[tuple[str, int, int]], *, wait_ms: int
    ) -> list[bytes | int]:
        """Of each (name, offset, size) what stands there, or the number of its error; all at once. ETIMEDOUT: it did not
        answer in that time. Raises OSError where the pool is gone (EIDRM), or this client is on the blocklist (ESHUTDOWN)."""
        reads = [_Read(self._library, self.io, name, offset, size) for name, offset, size in wanted]
        _wait(reads, wait_ms)
        found = [read.result() for read in reads]
        if errno.ENOENT in found:
            self.check_pool()
        if errno.ESHUTDOWN in found:
            raise OSError(errno.ESHUTDOWN, "this client is shut out")
        return found

    def versions(
        self, names: Sequence[str], *, pool_id: int, namespace: str, wait_ms: int
    ) -> list[int]:
        """Of each object, 0 where it is missing; a negative number where it did not answer."""
        looks: list[_Stat] = []
        with self._other_pool(pool_id, namespace, looks) as io:
            looks += [_Stat(self._library, io, name) for name in names]
            _wait(looks, wait_ms)
            return [look.result() for look in looks]

    @contextmanager
    def _other_pool(
        self, pool_id: int, namespace: str, looks: "Sequence[_Asked]"
    ) -> Iterator[c_void_p]:
        io = c_void_p()
        _check(self._library.rados_ioctx_create2(self._cluster, pool_id, byref(io)), "data pool")
        self._library.rados_ioctx_set_namespace(io, namespace.encode())
        try:
            yield io
        finally:
            if all(look.settled for look in looks):
                self._library.rados_ioctx_destroy(io)


class _Asked:
    """One question under way. Until the storage has answered it, it is kept, with what the library may write into yet,
    whatever becomes of whoever asked."""

    _kept: "ClassVar[dict[int, _Asked]]" = {}

    def __init__(self, library: Any) -> None:
        self._library = library
        self._completion = c_void_p()
        _check(library.rados_aio_create_completion2(None, None, byref(self._completion)), "ask")

    def _began(self, status: int, what: str) -> None:
        """Raises OSError where it was not taken: then nothing is under way."""
        if status < 0:
            self._library.rados_aio_release(self._completion)
        _check(status, what)
        _Asked._kept[id(self)] = self

    @property
    def done(self) -> bool:
        return bool(self._library.rados_aio_is_complete(self._completion))

    @property
    def settled(self) -> bool:
        return id(self) not in _Asked._kept

    def _status(self) -> int:
        """ETIMEDOUT, negative: it is unknown. After the library's own time, too, what comes late may land where it was to."""
        return (
            int(self._library.rados_aio_get_return_value(self._completion))
            if self.done
            else -errno.ETIMEDOUT
        )

    def _release(self, status: int) -> None:
        if status != -errno.ETIMEDOUT:
            del _Asked._kept[id(self)]
            self._library.rados_aio_release(self._completion)


def unsettled() -> int:
    """How many questions of this process have never been answered. While none is being asked: those that were answered since
    nobody waits for any more."""
    for asked in [one for one in _Asked._kept.values() if one.done]:
        asked._release(asked._status())
    return len(_Asked._kept)


class _Read(_Asked):
    def __init__(self, library: Any, io: c_void_p, name: str, offset: int, size: int) -> None:
        super().__init__(library)
        self._buffer = ctypes.create_string_buffer(size)
        self._began(
            library.rados_aio_read(io, name.encode(), self._completion, self._buffer, size, offset),
            f"read {name}",
        )

    def result(self) -> bytes | int:
        """Once."""
        status = self._status()
        self._release(status)
        return self._buffer.raw[:status] if status >= 0 else -status


class _Stat(_Asked):
    def __init__(self, library: Any, io: c_void_p, name: str) -> None:
        super().__init__(library)
        self._size, self._time = c_uint64(), ctypes.c_long()
        self._began(
            library.rados_aio_stat(
                io, name.encode(), self._completion, byref(self._size), byref(self._time)
            ),
            f"stat {name}",
        )

    def result(self) -> int:
        """Once."""
        status = self._status()
        version = int(self._library.rados_aio_get_version(self._completion)) if not status else 0
        self._release(status)
        return version if status in (0, -errno.ENOENT) else status


def _wait(asked: Sequence[_Asked], wait_ms: int) -> None:
    until = monotonic() + wait_ms / 1_000
    for one in asked:
        while not one.done and monotonic() < until:
            sleep(_POLL_S)


class Rbd:
    """Images of that pool and namespace."""

    def __init__(self, rados: Rados) -> None:
        self._io = rados.io
        self._library = library = _load("librbd.so.1")
        library.rbd_open_read_only.argtypes = [c_void_p, c_char_p, POINTER(c_void_p), c_char_p]
        library.rbd_open.argtypes = [c_void_p, c_char_p, POINTER(c_void_p), c_char_p]
        for name in ("close", "resize", "stat", "read", "get_modify_timestamp", "watchers_list"):
            getattr(library, f"rbd_{name}").argtypes = None
        library.rbd_close.argtypes = [c_void_p]
        library.rbd_read.argtypes = [c_void_p, c_uint64, c_size_t, c_char_p]
        library.rbd_read.restype = ctypes.c_ssize_t
        library.rbd_get_data_pool_id.argtypes = [c_void_p]
        library.rbd_get_data_pool_id.restype = c_int64
        library.rbd_resize.argtypes = [c_void_p, c_uint64]
        library.rbd_create2.argtypes = [c_void_p, c_char_p, c_uint64, c_uint64, POINTER(c_int)]
        library.rbd_remove.argtypes = [c_void_p, c_char_p]
        library.rbd_list.argtypes = [c_void_p, c_char_p, POINTER(c_size_t)]
        library.rbd_rename.argtypes = [c_void_p, c_char_p, c_char_p]
        library.rbd_metadata_set.argtypes = [c_void_p, c_char_p, c_char_p]
        library.rbd_metadata_get.argtypes = [c_void_p, c_char_p, c_char_p, POINTER(c_size_t)]
        library.rbd_list_lockers.restype = ctypes.c_ssize_t

    def names(self) -> list[str]:
        size = c_size_t(1 << 16)
        while True:
            buffer = ctypes.create_string_buffer(size.value)
            status = self._library.rbd_list(self._io, buffer, byref(size))
            if status != -errno.ERANGE:
                _check(status, "list images")
                return [name.decode() for name in buffer.raw[:status].split(b"\0") if name]

    def create(self, name: str, size_bytes: int) -> None:
        """Raises OSError: EEXIST where there is one of that name, which stays as it is."""
        order = c_int(0)
        _check(
            self._library.rbd_create2(self._io, name.encode(), size_bytes, FEATURES, byref(order)),
            f"create image {name}",
        )

    def rename(self, name: str, to: str) -> None:
        """Raises OSError: EEXIST where there is one of that name, which stays as it is."""
        what = f"rename image {name}"
        _check(self._library.rbd_rename(self._io, name.encode(), to.encode()), what)

    def note(self, name: str, key: str, value: str) -> None:
        """A word about an image, kept with it."""
        with self._open(name, write=True) as image:
            _check(self._library.rbd_metadata_set(image, key.encode(), value.encode()), "note")

    def noted(self, name: str, key: str) -> str | None:
        with self._open(name) as image:
            size = c_size_t(4_096)
            value = ctypes.create_string_buffer(size.value)
            status = self._library.rbd_metadata_get(image, key.encode(), value, byref(size))
            if status == -errno.ENOENT:
                return None
            _check(status, "note")
            return value.value.decode("utf-8", "replace")

    def remove(self, name: str) -> None:
        """Raises OSError: ENOENT, EBUSY where somebody has it open."""
        _check(self._library.rbd_remove(self._io, name.encode()), f"remove image {name}")

    def resize(self, name: str, size_bytes: int) -> None:
        with self._open(name, write=True) as image:
            _check(self._library.rbd_resize(image, size_bytes), f"resize image {name}")

    def look(self, name: str, head_bytes: int) -> dict[str, Any]:
        """Size, when it was last written (ns), first bytes, who has it open for writing, and where its data lies."""
        library = self._library
        with self._open(name) as image:
            info, written = _ImageInfo(), _TimeSpec()
            _check(library.rbd_stat(image, byref(info), c_size_t(ctypes.sizeof(info))), "stat")
            _check(library.rbd_get_modify_timestamp(image, byref(written)), "time")
            features = c_uint64()
            _check(library.rbd_get_features(image, byref(features)), "features")
            head = ctypes.create_string_buffer(head_bytes)
            read = _check(library.rbd_read(image, 0, min(head_bytes, info.size), head), "read")
            return {
                "size_bytes": info.size,
                "written_ns": written.seconds * 1_000_000_000 + written.nanoseconds,
                "head": head.raw[:read],
                "exclusive": bool(features.value & EXCLUSIVE_LOCK),
                "watchers": self._watchers(image),
                "lock_owners": self._lock_owners(image),
                "objects": info.num_objs,
                "prefix": info.block_name_prefix.decode("ascii"),
                "data_pool": int(library.rbd_get_data_pool_id(image)),
            }

    def _watchers(self, image: c_void_p) -> list[tuple[str, int, int]]:
        """(address, client's number, cookie)."""
        size = c_size_t(16)
        while True:
            found = (_Watcher * size.value)()
            status = self._library.rbd_watchers_list(image, found, byref(size))
            if status != -errno.ERANGE:
                break
        _check(status, "watchers")
        told = [
            (one.addr.decode("ascii"), int(one.id), int(one.cookie)) for one in found[: size.value]
        ]
        self._library.rbd_watchers_list_cleanup(found, c_size_t(size.value))
        return told

    def _lock_owners(self, image: c_void_p) -> list[str]:
        """Addresses of whoever has the image's lock: such a client may have lost its watch, or died with it, and write yet."""
        exclusive, size = c_int(), 256
        while True:
            texts = [ctypes.create_string_buffer(size) for _ in range(4)]
            sizes = [c_size_t(size) for _ in texts]
            pairs = [one for pair in zip(texts, map(byref, sizes), strict=True) for one in pair]
            count = self._library.rbd_list_lockers(image, byref(exclusive), *pairs)
            if count != -errno.ERANGE:
                break
            size = 2 * max(one.value for one in sizes)
        if not _check(count, "lock"):
            return []
        addresses = texts[-1].raw[: sizes[-1].value].split(b"\0")[:count]
        return [one.decode("ascii") for one in addresses]

    @contextmanager
    def _open(self, name: str, *, write: bool = False) -> Iterator[c_void_p]:
        image = c_void_p()
        call = self._library.rbd_open if write else self._library.rbd_open_read_only
        _check(call(self._io, name.encode(), byref(image), None), f"open image {name}")
        try:
            yield image
        finally:
            self._library.rbd_close(image)


def _check(status: int, what: str) -> int:
    if status >= 0:
        return status
    number = MISMATCH if status <= _MISMATCH_MAX else -status
    raise OSError(number, f"{what}: {os.strerror(number)}")
