"""Where facts go: durably into the outbox, in order, then to the link.

All of the agent's disk writes run in one thread of their own, so that their order is the order in
which they were asked for and a slow disk never stops the event loop (beats of the link, libvirt's
events).
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec

from virtha.agent.outbox import Outbox
from virtha.model.codes import REGISTRY
from virtha.model.facts import FactBody, Happened, VmReport
from virtha.model.value import Fields

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DiskThread:
    """One thread; calls run one after another."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="virtha-disk")

    async def __call__(
        self, call: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs
    ) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*arguments, **keywords))

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class FactSink:
    """``emit`` returns when the facts are durable, or wait in memory because the disk is full."""

    def __init__(self, outbox: Outbox, disk: DiskThread, *, host_name: str) -> None:
        self._outbox = outbox
        self._disk = disk
        self._host_name = host_name
        self._on_written: Callable[[], None] = lambda: None

    def on_written(self, call: Callable[[], None]) -> None:
        self._on_written = call

    async def emit(self, bodies: Iterable[FactBody]) -> bool:
        """False: not on disk yet (no space left); they will be, in order."""
        batch = tuple(self._with_host(body) for body in bodies)
        if not batch:
            return True
        durable = await self._disk(self._outbox.append, batch)
        self._on_written()
        return durable

    @property
    def settled(self) -> bool:
        """All that was emitted is on disk."""
        return not self._outbox.waiting

    def on_its_way(self, body: FactBody) -> bool:
        return self._outbox.holds(body)

    def _with_host(self, body: FactBody) -> FactBody:
        """The cores know ids and no names of hosts; what is read by people has them."""
        if isinstance(body, Happened):
            fields = self._named(body.code, body.fields)
            return msgspec.structs.replace(body, fields=fields) if fields else body
        if isinstance(body, VmReport):
            reasons = tuple(
                msgspec.structs.replace(reason, fields=fields)
                if (fields := self._named(reason.code, reason.fields))
                else reason
                for reason in body.reasons
            )
            return msgspec.structs.replace(body, reasons=reasons)
        return body

    def _named(self, code: str, fields: Fields) -> Fields | None:
        """None: nothing is missing."""
        entry = REGISTRY.get(code)
        wanted = {"host"} | ({"name"} if code.startswith("host.") else set())
        missing = wanted.intersection(entry.fields if entry is not None else ()) - set(fields)
        return {**fields, **dict.fromkeys(missing, self._host_name)} if missing else None

    async def retry(self) -> None:
        """Called every second: what waits for room on the disk is tried again."""
        if self._outbox.waiting:
            await self._disk(self._outbox.append, ())
            self._on_written()
