"""The process that talks to one Ceph pool: ``python -m virtha.drivers.ceph_process``. Asked and answered over its pipes by
`ceph_client.py`, one question at a time; it ends with whoever started it, whatever hangs.

Frames: 4 bytes of length, then msgpack. First the settings; then questions. An answer is a value, or an error.
"""

import ctypes
import errno
import os
import queue
import re
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from virtha.drivers.ceph_library import Rados, Rbd, unsettled

LENGTH = struct.Struct("<I")
MONITOR_OP_S = 10
UNSETTLED_MAX = 10_000
"""Questions that the storage never answered, each of some kilobytes at most: beyond, this process ends and the next begins anew."""
GREETING_S = 1.0
"""So long a monitor may take to greet, before anything else is asked of it."""
_MLOCK_CURRENT, _MLOCK_FUTURE, _MLOCK_ONFAULT = 1, 2, 4
_BANNER = b"ceph v"
_PORTS = (3300, 6789)


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    """What to connect to. ``user`` None: without cephx."""

    monitors: tuple[str, ...]
    pool: str
    namespace: str
    user: str | None
    keyring: str
    connect_s: int
    op_s: int
    options: dict[str, str]


class Ask(msgspec.Struct, frozen=True):
    """One of ``_Served``'s methods and its arguments."""

    what: str
    words: dict[str, Any]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """``number``: of an error, 0: none. ``field``: of the settings, which of them is wrong."""

    value: Any = None
    number: int = 0
    text: str = ""
    field: str = ""


class _Served:
    def __init__(self, settings: Connect) -> None:
        options = {
            "mon_host": ",".join(settings.monitors),
            "client_mount_timeout": str(settings.connect_s),
            "rados_mon_op_timeout": str(MONITOR_OP_S),
            "rados_osd_op_timeout": str(settings.op_s),
            "log_file": "",
            "log_to_stderr": "false",
            "err_to_stderr": "false",
            "admin_socket": "",
            "rbd_cache": "false",
            **({"keyring": settings.keyring} if settings.user is not None else _no_keys()),
            **settings.options,
        }
        self._namespace = settings.namespace
        self._rados = Rados(
            options,
            user=settings.user or "admin",
            pool=settings.pool,
            namespace=settings.namespace,
        )
        self._rbd: Rbd | None = None

    @property
    def _images(self) -> Rbd:
        if self._rbd is None:
            self._rbd = Rbd(self._rados)
        return self._rbd

    def identity(self) -> tuple[str, int]:
        return self._rados.fsid(), self._rados.pool_id()

    def check_pool(self) -> None:
        self._rados.check_pool()

    def addresses(self) -> str:
        return self._rados.addresses()

    def read(self, wanted: list[tuple[str, int, int]], wait_ms: int) -> list[bytes | int]:
        return self._rados.read_all(
            [(name, at, size) for name, at, size in wanted], wait_ms=wait_ms
        )

    def write(
        self,
        name: str,
        offset: int,
        data: bytes,
        expected: list[tuple[int, bytes]],
        exclusive: bool,
        whole: bool,
    ) -> None:
        self._rados.write(name, offset, data, expected=expected, exclusive=exclusive, whole=whole)

    def remove(self, name: str) -> None:
        self._rados.remove(name)

    def command(self, json_text: str) -> str:
        return self._rados.command(json_text)

    def newest_map(self) -> None:
        self._rados.newest_map()

    def images(self) -> list[str]:
        return self._images.names()

    def create_image(self, name: str, size_bytes: int) -> None:
        self._images.create(name, size_bytes)

    def rename_image(self, name: str, to: str) -> None:
        self._images.rename(name, to)

    def note_image(self, name: str, key: str, value: str) -> None:
        self._images.note(name, key, value)

    def noted_image(self, name: str, key: str) -> str | None:
        return self._images.noted(name, key)

    def remove_image(self, name: str) -> None:
        self._images.remove(name)

    def resize_image(self, name: str, size_bytes: int) -> None:
        self._images.resize(name, size_bytes)

    def look(self, name: str, head_bytes: int, objects_max: int, wait_ms: int) -> dict[str, Any]:
        """Of an image; ``versions`` of ``objects_max`` of its objects, evenly over the whole of it."""
        found = self._images.look(name, head_bytes)
        count = found["objects"]
        step = max(1, -(-count // max(1, objects_max)))
        names = [f"{found['prefix']}.{number:016x}" for number in range(0, count, step)]
        found["versions"] = self._rados.versions(
            names, pool_id=found["data_pool"], namespace=self._namespace, wait_ms=wait_ms
        )
        return found


def _no_keys() -> dict[str, str]:
    kinds = ("cluster", "service", "client")
    return {f"auth_{kind}_required": "none" for kind in kinds}


def _wrong_setting(error: OSError, settings: Connect) -> str:
    """Which setting it is that connecting failed by, where monitors greet. Ceph says "timed out" of a wrong key, too."""
    if "pool" in str(error):
        return "pool"
    return "user" if settings.user is None else "keyring"


def _any_monitor(monitors: Sequence[str]) -> bool:
    """All are tried at once: those that are down, or behind a firewall, hold up nobody."""
    greeted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for one in monitors:
        threading.Thread(target=lambda one=one: greeted.put(_is_monitor(one)), daemon=True).start()
    return any(greeted.get() for _ in monitors)


def _keyring_fault(settings: Connect) -> str:
    """What is wrong with the file of keys, before anybody is asked; empty: nothing."""
    try:
        with Path(settings.keyring).open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError as error:
        return f"{settings.keyring} can't be read: {error.strerror}"
    if re.search(rf"^\s*\[client\.{re.escape(settings.user or '')}\]", text, re.MULTILINE) is None:
        return f"{settings.keyring} has no key of client.{settings.user}"
    return ""


def _is_monitor(text: str) -> bool:
    """Whether something there greets as Ceph does."""
    host, _, port = re.sub(r"^v[12]:", "", text).rpartition(":")
    if not port.isdigit() or (":" in host and not host.startswith("[")):
        host, port = re.sub(r"^v[12]:", "", text), ""
    for port_number in [int(port)] if port else _PORTS:
        with (
            suppress(OSError),
            socket.create_connection((host.strip("[]"), port_number), timeout=GREETING_S) as there,
        ):
            there.settimeout(GREETING_S)
            if there.recv(64).startswith(_BANNER):
                return True
    return False


def serve(questions: "queue.SimpleQueue[bytes]", answers: BinaryIO) -> None:
    served: _Served | None = None
    settings = msgspec.msgpack.decode(questions.get(), type=Connect)
    fault = _keyring_fault(settings) if settings.user is not None else ""
    try:
        if fault:
            _tell(answers, Told(number=errno.EACCES, text=fault, field="keyring"))
            return
        if not _any_monitor(settings.monitors):
            _tell(answers, Told(number=errno.EHOSTUNREACH, text="silent", field="monitors"))
            return
        served = _Served(settings)
    except OSError as error:
        wrong = _wrong_setting(error, settings)
        _tell(answers, Told(number=error.errno or errno.EIO, text=str(error.strerror), field=wrong))
        return
    _tell(answers, Told(value=served.identity()))
    while unsettled() < UNSETTLED_MAX:
        _tell(answers, _answer(served, msgspec.msgpack.decode(questions.get(), type=Ask)))


def _answer(served: _Served, ask: Ask) -> Told:
    try:
        try:
            return Told(value=getattr(served, ask.what)(**ask.words))
        except FileNotFoundError:
            served.check_pool()  # of a pool that is gone everything is "missing"
            raise
    except OSError as error:
        return Told(number=error.errno or errno.EIO, text=str(error.strerror))


def _tell(answers: BinaryIO, told: Told) -> None:
    data = msgspec.msgpack.encode(told)
    answers.write(LENGTH.pack(len(data)) + data)
    answers.flush()


def _listen(source: BinaryIO, questions: "queue.SimpleQueue[bytes]") -> None:
    """A thread of its own: nothing that hangs keeps this process after the one that asks."""
    while True:
        head = source.read(LENGTH.size)
        if len(head) < LENGTH.size:
            os._exit(0)
        questions.put(source.read(LENGTH.unpack(head)[0]))


def _lock_memory() -> None:
    """As the guardian does it, but only what is used: each of Ceph's threads has a stack of megabytes."""
    ctypes.CDLL(None).mlockall(_MLOCK_CURRENT | _MLOCK_FUTURE | _MLOCK_ONFAULT)


def main(words: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints is no answer
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, questions), daemon=True).start()
    if "locked" in words:
        _lock_memory()
    try:
        serve(questions, answers)
    finally:
        answers.flush()
        os._exit(0)  # no goodbye: that may hang, too


if __name__ == "__main__":
    main(sys.argv[1:])
