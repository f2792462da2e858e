"""Two independent witnesses for demo, tests and benchmarks: libvirt's own events of a host, and the
server's event stream. Both stamp what they see with this machine's monotonic clock."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import libvirt

from virtha.lab.api import Api, Json
from virtha.lab.guest import silence_libvirt
from virtha.lab.node import Node
from virtha.model.errors import Failed, Unavailable
from virtha.model.value import Value

Item = TypeVar("Item")


class Seen(Value, frozen=True, kw_only=True):
    """One event of libvirt. ``kind``: watchdog, reboot, or the life cycle's word."""

    at_s: float
    vm: str
    kind: str
    detail: int = 0


class Witness(Generic[Item]):
    """A list that one thread fills and others wait on."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._changed = threading.Condition()

    def add(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def mark(self) -> int:
        """A position: `wait` and `since` look at what comes after it."""
        with self._changed:
            return len(self._items)

    def since(self, mark: int) -> list[Item]:
        with self._changed:
            return self._items[mark:]

    def wait(
        self, wanted: Callable[[Item], bool], what: str, *, after: int = 0, timeout_s: float
    ) -> Item:
        """The first one after ``after`` that fits. Raises Failed with what came instead."""
        deadline = time.monotonic() + timeout_s
        position = after
        with self._changed:
            while True:
                for item in self._items[position:]:
                    position += 1
                    if wanted(item):
                        return item
                left = deadline - time.monotonic()
                if left <= 0:
                    came = self._items[after:][-12:]
                    raise Failed(f"{what}: not within {timeout_s:g} s; came: {came}")
                self._changed.wait(left)


_LIFE_CYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _run_event_loop() -> None:
    """libvirt's event loop is one per process, and must run before a connection is opened."""
    global _loop
    with _loop_lock:
        if _loop is not None:
            return
        silence_libvirt()
        libvirt.virEventRegisterDefaultImpl()

        def forever() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _loop = threading.Thread(target=forever, name="libvirt-events", daemon=True)
        _loop.start()


class LibvirtWitness(Witness[Seen]):
    """What libvirt on one host says, asked by nobody but us. Use as a context manager."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        _run_event_loop()
        try:
            self._connection = libvirt.open(node.libvirt_uri())
        except libvirt.libvirtError as error:
            raise Unavailable(f"libvirt on {node.name} does not answer: {error}") from error
        register = self._connection.domainEventRegisterAny
        self._callbacks = [
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, self._on_watchdog, None),
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None),
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_life_cycle, None),
        ]

    def __enter__(self) -> "LibvirtWitness":
        return self

    def __exit__(self, *_: object) -> None:
        # After a power cut there is nobody left to say goodbye to.
        with contextlib.suppress(libvirt.libvirtError):
            for callback in self._callbacks:
                self._connection.domainEventDeregisterAny(callback)
            self._connection.close()

    def _see(self, domain: Any, kind: str, detail: int = 0) -> None:
        self.add(Seen(at_s=time.monotonic(), vm=domain.name(), kind=kind, detail=detail))

    def _on_watchdog(self, _connection: Any, domain: Any, action: int, _opaque: Any) -> None:
        self._see(domain, "watchdog", action)

    def _on_reboot(self, _connection: Any, domain: Any, _opaque: Any) -> None:
        self._see(domain, "reboot")

    def _on_life_cycle(
        self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any
    ) -> None:
        self._see(domain, _LIFE_CYCLE.get(event, f"event-{event}"), detail)

    def wait_for(self, vm: str, kind: str, *, after: int = 0, timeout_s: float) -> Seen:
        return self.wait(
            lambda seen: seen.vm == vm and seen.kind == kind,
            f"libvirt's '{kind}' of {vm}",
            after=after,
            timeout_s=timeout_s,
        )


class StreamWitness(Witness[Json]):
    """The server's event stream, followed over restarts of the server by revision, as any client
    should. Each event carries ``_seen``, its arrival in monotonic seconds. A context manager."""

    RETRY_S = 0.1

    def __init__(self, make_api: Callable[[], Api], *, after: int | None = None) -> None:
        super().__init__()
        self._make_api = make_api
        self._after = after
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="event-stream", daemon=True)

    def __enter__(self) -> "StreamWitness":
        self._thread.start()
        if not self._connected.wait(20.0):
            raise Failed("the event stream does not open within 20 s")
        return self

    def __exit__(self, *_: object) -> None:
        # The thread sits in a read; it is a daemon and ends with its next line or with us.
        self._stopping.set()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(Unavailable, Failed), self._make_api() as api:
                for event in api.stream(after=self._after, on_open=self._connected.set):
                    self._after = int(event["revision"])
                    self.add(event)
                    if self._stopping.is_set():
                        return
            self._stopping.wait(self.RETRY_S)

    def wait_for(
        self,
        code: str,
        *,
        vm_id: str | None = None,
        after: int = 0,
        timeout_s: float,
        **fields: object,
    ) -> Json:
        """The first event of this code (and VM, and with these fields)."""

        def fits(event: Json) -> bool:
            return (
                event["code"] == code
                and (vm_id is None or event["vm_id"] == vm_id)
                and all(event["fields"].get(name) == value for name, value in fields.items())
            )

        return self.wait(fits, f"event {code} {fields or ''}", after=after, timeout_s=timeout_s)
