"""One libvirt connection that is kept up: keepalive, reconnect, errors in our terms.

The event loop is libvirt's own, in one daemon thread per process: it must be there before the first
connection, or keepalive and events are dead without a word.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import libvirt
import structlog

from virtha.drivers.libvirt_workers import Lane
from virtha.ports.hypervisor import (
    DomainMissing,
    GateRefused,
    HypervisorError,
    HypervisorFailed,
    HypervisorTimeout,
    HypervisorUnavailable,
)

Answer = TypeVar("Answer")

_log = structlog.get_logger(__name__)

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
"""A libvirtd that hangs is noticed after 20 s: then all calls that wait for it fail."""
_RECONNECT_FIRST_S = 0.1
_RECONNECT_MOST_S = 1.0
"""Little, for what happens meanwhile is not seen; a local connection attempt costs nothing."""
_OPEN_MS = 15_000

_loop_lock = threading.Lock()
_loop_running = False


def ensure_event_loop() -> None:
    """Once per process, before any connection is opened."""
    global _loop_running
    with _loop_lock:
        if _loop_running:
            return
        # Without a handler libvirt prints every error on stderr as well as raising it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_turn_for_ever, name="libvirt-events", daemon=True).start()
        _loop_running = True


def _turn_for_ever() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            _log.error("libvirt.event_loop.failed", error=str(error))
            time.sleep(0.1)


class KeptConnection:
    """Connects in the background and again after each loss, with growing delays.

    ``on_open`` runs in a worker thread with each new connection, registers its event callbacks and
    returns their ids; ``on_change`` runs in asyncio's thread.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        on_open: Callable[["libvirt.virConnect"], list[int]] | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._uri = uri
        self._name = name
        self._on_open = on_open
        self._on_change = on_change
        # Two: one may hang in open() while the other still closes an old connection.
        self._lane = Lane(f"{name}-connect", threads_max=2)
        self._connection: libvirt.virConnect | None = None
        self._callback_ids: list[int] = []
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def start(self) -> None:
        assert self._keeper is None, "started once"
        ensure_event_loop()
        self._loop = asyncio.get_running_loop()
        self._keeper = self._loop.create_task(self._keep(), name=f"libvirt-{self._name}")
        self._keeper.add_done_callback(self._keeper_ended)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._close_quietly(connection)
        self._lane.close()

    async def call(
        self,
        lane: Lane,
        name: str,
        function: Callable[["libvirt.virConnect"], Answer],
        *,
        deadline_ms: int,
        changes: bool,
    ) -> Answer:
        """One attempt. ``changes``: a connection that breaks in the middle leaves the outcome unknown."""
        connection = self._connection
        if connection is None:
            raise HypervisorUnavailable(
                f"{name}: no connection to libvirt at {self._uri}",
                fix="check that libvirtd (or virtqemud) runs",
            )
        try:
            return await lane.call(name, lambda: function(connection), deadline_ms=deadline_ms)
        except libvirt.libvirtError as error:
            if _is_broken(error) and self._connection is connection:
                self._lost.set()
            raise translated(error, name, changes=changes) from error

    async def _keep(self) -> None:
        delay_s = _RECONNECT_FIRST_S
        while True:
            self._lost.clear()
            try:
                self._connection = await self._lane.call("open", self._open, deadline_ms=_OPEN_MS)
            except (libvirt.libvirtError, HypervisorError) as error:
                if delay_s == _RECONNECT_FIRST_S:
                    _log.warning("libvirt.unreachable", uri=self._uri, error=str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RECONNECT_MOST_S)
                continue
            delay_s = _RECONNECT_FIRST_S
            _log.info("libvirt.connected", uri=self._uri, connection=self._name)
            self._tell(True)
            await self._lost.wait()
            connection, self._connection = self._connection, None
            _log.warning("libvirt.lost", uri=self._uri, connection=self._name)
            self._tell(False)
            if connection is not None:
                await self._close_quietly(connection)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """It ends only by ``close``; anything else is a bug in a callback, which must not be silent."""
        if not keeper.cancelled() and keeper.exception() is not None:
            _log.critical("libvirt.keeper.died", exc_info=keeper.exception())

    def _tell(self, connected: bool) -> None:
        if self._on_change is not None:
            self._on_change(connected)

    def _open(self) -> "libvirt.virConnect":
        connection = libvirt.open(self._uri)
        try:
            connection.registerCloseCallback(self._closed, None)
            # Local connections (test:///) have no keepalive; libvirt says so with 1.
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            if self._on_open is not None:
                self._callback_ids = self._on_open(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _closed(self, connection: "libvirt.virConnect", reason: int, _opaque: Any) -> None:
        """In libvirt's thread."""
        loop = self._loop
        if loop is None or reason == libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT:
            return

        def lose() -> None:
            if self._connection is connection or self._connection is None:
                self._lost.set()

        try:
            loop.call_soon_threadsafe(lose)
        except RuntimeError:
            _log.debug("libvirt.close.unwanted", connection=self._name)

    async def _close_quietly(self, connection: "libvirt.virConnect") -> None:
        callback_ids, self._callback_ids = self._callback_ids, []

        def close() -> None:
            # As long as a callback is registered libvirt keeps the connection, and its events come.
            steps: list[Callable[[], Any]] = [
                partial(connection.domainEventDeregisterAny, callback_id)
                for callback_id in callback_ids
            ]
            for step in (*steps, connection.unregisterCloseCallback, connection.close):
                try:
                    step()
                except libvirt.libvirtError as error:
                    # It was lost; closing only frees our side.
                    _log.debug("libvirt.close.failed", error=str(error))

        try:
            await self._lane.call("close", close, deadline_ms=2_000)
        except HypervisorError as error:
            _log.warning("libvirt.close.hangs", error=str(error))


_BROKEN_CODES = (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_RPC)
_BROKEN_TEXT = (
    "client socket is closed",
    "Cannot recv data",
    "Cannot write data",
    "End of file while reading data",
    "connection closed due to keepalive timeout",
)


def _is_broken(error: "libvirt.libvirtError") -> bool:
    """The connection itself, not what was asked."""
    if error.get_error_code() in _BROKEN_CODES:
        return True
    text = error.get_error_message() or ""
    return error.get_error_domain() == libvirt.VIR_FROM_RPC or any(
        part in text for part in _BROKEN_TEXT
    )


_HOOK_SAID = re.compile(r"unexpected (?:exit status \d+|fatal signal \d+): ?(.*)", re.DOTALL)


def translated(error: "libvirt.libvirtError", name: str, *, changes: bool) -> HypervisorError:
    code = error.get_error_code()
    text = error.get_error_message() or str(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainMissing(f"{name}: {text}")
    if code == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED:
        said = _HOOK_SAID.search(text)
        return GateRefused((said[1].strip() if said else "") or text.strip())
    if _is_broken(error):
        if changes:
            return HypervisorTimeout(f"{name}: libvirt was lost in the middle ({text})")
        return HypervisorUnavailable(f"{name}: libvirt was lost ({text})")
    return HypervisorFailed(f"{name}: {text}")
