"""QEMU's guest agent through libvirt, which syncs (``guest-sync``) before each command itself.

A guest answers when it likes, or not at all: each call has a deadline and runs beside everything else.
"""

import base64
import binascii
import time
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt
import libvirt_qemu
import msgspec
import structlog

from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.model.ids import VmId
from virtha.ports.hypervisor import HypervisorFailed, HypervisorTimeout

Answer = TypeVar("Answer")

_log = structlog.get_logger(__name__)

_FILE_BYTES_MAX = 1 << 20
_CHUNK_BYTES = 48 << 10


class LibvirtGuestAgent:
    def __init__(self, host: LibvirtHost) -> None:
        self._host = host

    async def ping(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        """Sync, then ping. False: nobody answers in time, has no channel, or the VM doesn't run.

        Raises DomainMissing and HypervisorUnavailable.
        """

        def ping(domain: "libvirt.virDomain") -> bool:
            return _command(domain, "guest-ping", {}, _Deadline(deadline_ms)) is not None

        return await self._within("ping the guest agent of", vm_id, ping, deadline_ms) or False

    async def read_file(self, vm_id: VmId, path: str, *, deadline_ms: int) -> bytes | None:
        """Up to 1 MiB. None: no agent, no such file, or the guest forbids it.

        Raises DomainMissing and HypervisorUnavailable.
        """

        def read(domain: "libvirt.virDomain") -> bytes | None:
            return _read_file(domain, path, _Deadline(deadline_ms))

        return await self._within(f"read {path} in", vm_id, read, deadline_ms)

    async def freeze(self, vm_id: VmId, *, deadline_ms: int) -> int:
        """How many file systems it holds now. Raises HypervisorFailed and the like: they may be frozen all the same."""

        def freeze(domain: "libvirt.virDomain") -> int:
            count = _command(domain, "guest-fsfreeze-freeze", {}, _Deadline(deadline_ms))
            if not isinstance(count, int):
                raise HypervisorFailed(f"the guest agent says {count!r} to a freeze")
            return count

        return await self._host.with_guest("freeze", vm_id, freeze, deadline_ms=deadline_ms)

    async def thaw(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        def thaw(domain: "libvirt.virDomain") -> bool:
            deadline = _Deadline(deadline_ms)
            try:
                # Whatever it thinks: what its former process froze it may not know.
                _command(domain, "guest-fsfreeze-thaw", {}, deadline)
            except libvirt.libvirtError as error:
                _log.info("guest_agent.thaw_failed", error=str(error))
            return bool(_command(domain, "guest-fsfreeze-status", {}, deadline) == "thawed")

        return await self._within("thaw", vm_id, thaw, deadline_ms) or False

    async def is_frozen(self, vm_id: VmId, *, deadline_ms: int) -> bool | None:
        def ask(domain: "libvirt.virDomain") -> bool | None:
            status = _command(domain, "guest-fsfreeze-status", {}, _Deadline(deadline_ms))
            return None if status is None else status == "frozen"

        return await self._within("ask whether frozen", vm_id, ask, deadline_ms)

    async def _within(
        self,
        what: str,
        vm_id: VmId,
        function: Callable[["libvirt.virDomain"], Answer],
        deadline_ms: int,
    ) -> Answer | None:
        try:
            return await self._host.with_guest(what, vm_id, function, deadline_ms=deadline_ms)
        except HypervisorTimeout:
            return None
        except HypervisorFailed as error:
            # "not responding", "not connected", "not configured", "not running", "has been disabled":
            # for the caller all the same, the guest doesn't tell.
            _log.debug("guest_agent.silent", vm_id=vm_id, error=str(error))
            return None


class _Deadline:
    """libvirt takes whole seconds of at least one, so the rest is cut by the caller's own deadline."""

    def __init__(self, deadline_ms: int) -> None:
        self._ends_at = time.monotonic() + deadline_ms / 1_000

    def seconds_left(self) -> int:
        return max(1, int(self._ends_at - time.monotonic() + 0.999))

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._ends_at


def _command(
    domain: "libvirt.virDomain", name: str, arguments: dict[str, Any], deadline: _Deadline
) -> Any:
    """The answer's ``return``; None when it is no answer. Raises libvirtError for a refusal."""
    request = {"execute": name, "arguments": arguments} if arguments else {"execute": name}
    text = libvirt_qemu.qemuAgentCommand(
        domain, msgspec.json.encode(request).decode(), deadline.seconds_left(), 0
    )
    if text is None:
        return None
    try:
        answer = msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        _log.warning("guest_agent.nonsense", command=name, error=str(error))
        return None
    return answer.get("return") if isinstance(answer, dict) else None


def _read_file(domain: "libvirt.virDomain", path: str, deadline: _Deadline) -> bytes | None:
    handle = _command(domain, "guest-file-open", {"path": path, "mode": "r"}, deadline)
    if not isinstance(handle, int):
        return None
    content = bytearray()
    try:
        while not deadline.passed and len(content) < _FILE_BYTES_MAX:
            part = _command(
                domain, "guest-file-read", {"handle": handle, "count": _CHUNK_BYTES}, deadline
            )
            if not isinstance(part, dict):
                return None
            content += base64.b64decode(part.get("buf-b64", ""), validate=True)
            if part.get("eof"):
                return bytes(content)
    except (binascii.Error, TypeError) as error:
        _log.warning("guest_agent.nonsense", command="guest-file-read", error=str(error))
        return None
    finally:
        # The guest agent keeps open files for ever.
        _close(domain, handle, deadline)
    return None


def _close(domain: "libvirt.virDomain", handle: int, deadline: _Deadline) -> None:
    try:
        _command(domain, "guest-file-close", {"handle": handle}, deadline)
    except libvirt.libvirtError as error:
        _log.info("guest_agent.close_failed", error=str(error))
