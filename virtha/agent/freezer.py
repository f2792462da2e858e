"""Freezes a guest's file systems for a moment, and thaws them for certain.

A note is on disk before the guest is asked, and goes when the guest has said that nothing is frozen, or its QEMU is gone:
whatever ends in between, this agent or the next one goes on asking, also the guest's own agent when that is back.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from virtha.agent.commands import is_gone
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.files import Files
from virtha.agent.records import safe_name
from virtha.model.errors import Refused
from virtha.model.facts import Happened
from virtha.model.ids import BootId, VmId
from virtha.ports.hypervisor import DomainCatalog, DomainMissing, GuestAgent, HypervisorError

PING_MS = 5_000
FREEZE_MS = 10_000
THAW_MS = 5_000
STATUS_MS = 3_000
THAW_AGAIN_S = 1.0
PATIENCE_S = 15.0
"""How long a thaw is awaited by whoever froze; then somebody is told, and it goes on behind."""

_log = structlog.get_logger(__name__)


class GuestFreezer:
    def __init__(
        self,
        *,
        directory: Path,
        boot: BootId,
        files: Files,
        disk: DiskThread,
        guest: GuestAgent,
        catalog: DomainCatalog,
        facts: FactSink,
        spawn: Callable[[str, Coroutine[Any, Any, None]], object],
        name_of: Callable[[VmId], str],
    ) -> None:
        self._directory = directory
        self._boot = boot
        self._files = files
        self._disk = disk
        self._guest = guest
        self._catalog = catalog
        self._facts = facts
        self._spawn = spawn
        self._name_of = name_of
        self._held: set[VmId] = set()
        """Frozen by us, or not known to be thawed."""

    @asynccontextmanager
    async def frozen(self, vm_id: VmId, check: Callable[[], Awaitable[None]]) -> AsyncIterator[int]:
        """Of how many file systems. Raises Refused (`order.refused.guest_silent`); thawed also then.

        ``check`` raises what stands against it; from before it on the VM ``holds``, and is not moved away.
        """
        if vm_id in self._held:
            raise _silent("it has not confirmed the end of an earlier freeze")
        self._held.add(vm_id)
        try:
            await check()
            # Never asked to freeze, it is not frozen: there is nothing to thaw, and nothing to tell of.
            await self._ping(vm_id)
            await self._disk(self._note, vm_id)
        except BaseException:
            self._held.discard(vm_id)
            raise
        try:
            try:
                count = await self._guest.freeze(vm_id, deadline_ms=FREEZE_MS)
            except HypervisorError as error:
                raise _silent(str(error)) from error
            yield count
        finally:
            await self._thaw(vm_id)

    async def _ping(self, vm_id: VmId) -> None:
        try:
            answers = await self._guest.ping(vm_id, deadline_ms=PING_MS)
        except HypervisorError as error:
            raise _silent(str(error)) from error
        if not answers:
            raise _silent("its guest agent does not answer")

    def holds(self, vm_id: VmId) -> bool:
        """It may be frozen, or is about to be. Moved away it would be thawed by nobody."""
        return vm_id in self._held

    async def still(self, vm_id: VmId) -> bool:
        """Whether the guest says that it is frozen yet."""
        return await self._guest.is_frozen(vm_id, deadline_ms=STATUS_MS) is True

    def go_on(self) -> None:
        """At the agent's start: thaw what an agent before us may have left frozen."""
        for path in sorted(self._directory.glob("*.frozen")):
            vm_id = VmId(path.stem)
            if path.read_text(errors="replace") != self._boot:
                path.unlink(missing_ok=True)  # its QEMU ended with that boot
                continue
            self._held.add(vm_id)
            self._spawn(f"thaw {vm_id}", self._thaw_in_the_end(vm_id, told=False))

    async def _thaw(self, vm_id: VmId) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._until_thawed(vm_id)
        except TimeoutError:
            _log.error("a guest does not confirm that it is thawed", vm=vm_id)
            await self._tell("vm.guest_frozen", vm_id)
            self._spawn(f"thaw {vm_id}", self._thaw_in_the_end(vm_id, told=True))

    async def _thaw_in_the_end(self, vm_id: VmId, *, told: bool) -> None:
        if not told:
            await self._thaw(vm_id)
            return
        await self._until_thawed(vm_id)
        await self._tell("vm.guest_thawed", vm_id)

    async def _until_thawed(self, vm_id: VmId) -> None:
        while True:
            if await self._is_thawed(vm_id):
                break
            await asyncio.sleep(THAW_AGAIN_S)
        await self._disk(self._forget, vm_id)
        self._held.discard(vm_id)

    async def _is_thawed(self, vm_id: VmId) -> bool:
        try:
            if await self._guest.thaw(vm_id, deadline_ms=THAW_MS):
                return True
            return is_gone(await self._catalog.domain(vm_id))
        except DomainMissing:
            return True
        except HypervisorError as error:
            _log.info("a thaw could not be asked for", vm=vm_id, error=str(error))
            return False

    async def _tell(self, code: str, vm_id: VmId) -> None:
        fields = {"vm": self._name_of(vm_id)}
        await self._facts.emit([Happened(code=code, vm_id=vm_id, fields={**fields})])

    def _path(self, vm_id: VmId) -> Path:
        return self._directory / f"{safe_name(vm_id)}.frozen"

    def _note(self, vm_id: VmId) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._files.write_atomic(self._path(vm_id), self._boot.encode())

    def _forget(self, vm_id: VmId) -> None:
        self._path(vm_id).unlink(missing_ok=True)


def _silent(detail: str) -> Refused:
    return Refused(
        f"its guest can't be frozen: {detail}",
        code="order.refused.guest_silent",
        fix="start qemu-guest-agent in the guest, shut the VM down, or ask for a crash-consistent snapshot",
    )
