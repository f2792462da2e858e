"""libvirt behind ``virtha.ports.hypervisor``: one bounded attempt per call, events in order."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import libvirt
import structlog
from msgspec import UNSET

from virtha.domainxml.secret import ceph_secret
from virtha.drivers import libvirt_disks
from virtha.drivers.libvirt_connection import KeptConnection
from virtha.drivers.libvirt_probe import bridges, probe, read_guest
from virtha.drivers.libvirt_words import (
    agent_event,
    io_error_event,
    lifecycle_event,
    state_words,
    watchdog_event,
)
from virtha.drivers.libvirt_workers import Lane
from virtha.drivers.machine_words import machine_identity
from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport
from virtha.model.host import HostCapabilities
from virtha.model.ids import VmId
from virtha.model.value import Value
from virtha.ports.hypervisor import DomainMissing, HypervisorFailed, LiveDisk

Answer = TypeVar("Answer")

_log = structlog.get_logger(__name__)

_SCREENSHOT_BYTES_MAX = 64 << 20
"""A 4K screen is 25 MB as .ppm."""


class Deadlines(Value, frozen=True, kw_only=True):
    """How long one call may take before its outcome counts as unknown."""

    query_ms: int = 10_000
    start_ms: int = 60_000
    """libvirt waits up to 30 s for QEMU's monitor, longer with much memory to lock."""
    change_ms: int = 20_000
    destroy_ms: int = 40_000
    """libvirt sends SIGTERM, after 10 s SIGKILL, and waits another 5 s and more."""
    screenshot_ms: int = 15_000
    dump_ms: int = 600_000
    probe_ms: int = 90_000


class LibvirtHost:
    """DomainControl, DomainDevices, DomainDisks, DomainCatalog, DomainWatch, DomainEvidence and HostFacts.

    Three connections: libvirtd serves only five calls of a connection at a time, and a dump or a dead
    guest agent must not stand in the way of a start, nor any of them of the question whether it answers.
    Each kind of call has its own bounded threads.
    """

    def __init__(
        self,
        uri: str = "qemu:///system",
        *,
        domain_type: str = "auto",
        deadlines: Deadlines | None = None,
        cache_directory: Path | None = None,
    ) -> None:
        """``domain_type``: auto, kvm or qemu (``hypervisor.type``). ``cache_directory``: keeps what
        was probed; None: probed at each first ``capabilities()``."""
        self._domain_type = domain_type
        self._deadlines = deadlines or Deadlines()
        self._cache = cache_directory / "hypervisor-probe.json" if cache_directory else None
        self._runtime = _runtime_directory(uri)
        self._on_event: list[Callable[[DomainEvent], None]] = []
        self._on_connection: list[Callable[[bool], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main = KeptConnection(
            uri, "main", on_open=self._register, on_change=self._tell_connection
        )
        self._side = KeptConnection(uri, "side")
        self._pulse = KeptConnection(uri, "pulse")
        self._control = Lane("control", threads_max=8)
        self._query = Lane("query", threads_max=4)
        self._evidence = Lane("evidence", threads_max=2, waiting_max=64)
        self._guests = Lane("guests", threads_max=4)
        self._pulses = Lane("pulses", threads_max=1)

    # DomainWatch

    @property
    def connected(self) -> bool:
        return self._main.connected

    @property
    def side_connected(self) -> bool:
        """The connection of ``capabilities``, evidence and guest agents."""
        return self._side.connected

    def subscribe(
        self,
        on_event: Callable[[DomainEvent], None],
        on_connection: Callable[[bool], None],
    ) -> None:
        """Both are called in asyncio's thread. Subscribe before ``start``, so that nothing is missed."""
        self._on_event.append(on_event)
        self._on_connection.append(on_connection)

    async def start(self) -> None:
        """Connect and keep connected in the background; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._side.start()
        self._pulse.start()
        self._main.start()

    async def close(self) -> None:
        await self._main.close()
        await self._side.close()
        await self._pulse.close()
        for lane in (self._control, self._query, self._evidence, self._guests, self._pulses):
            lane.close()

    def _tell_connection(self, connected: bool) -> None:
        for callback in self._on_connection:
            callback(connected)

    def _register(self, connection: "libvirt.virConnect") -> list[int]:
        """Before anybody is told that the connection is there: what is listed after it can't miss
        an event in between."""

        def hand_over(event: DomainEvent | None) -> None:
            loop = self._loop
            if event is None or loop is None:
                return
            try:
                loop.call_soon_threadsafe(self._deliver, event)
            except RuntimeError:
                _log.debug("libvirt.event.unwanted", vm_id=event.vm_id)

        def lifecycle(_c: Any, domain: Any, event: int, detail: int, _o: Any) -> None:
            hand_over(lifecycle_event(_id(domain), event, detail))

        def rebooted(_c: Any, domain: Any, _o: Any) -> None:
            hand_over(DomainEvent(vm_id=_id(domain), kind=DomainEventKind.REBOOTED))

        def watchdog(_c: Any, domain: Any, action: int, _o: Any) -> None:
            hand_over(watchdog_event(_id(domain), action))

        def io_error(
            _c: Any, domain: Any, _path: str, alias: str, _action: int, why: str, _o: Any
        ) -> None:
            hand_over(io_error_event(_id(domain), alias, why))

        def guest_agent(_c: Any, domain: Any, state: int, _reason: int, _o: Any) -> None:
            hand_over(agent_event(_id(domain), state))

        def monitor_lost(_c: Any, domain: Any, _o: Any) -> None:
            # libvirt can't talk to this QEMU any more until libvirtd restarts; it runs on.
            _log.error("libvirt.monitor.lost", vm_id=_id(domain))

        callbacks: tuple[tuple[int, Callable[..., None]], ...] = (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, rebooted),
            (libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, watchdog),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error),
            (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, guest_agent),
            (libvirt.VIR_DOMAIN_EVENT_ID_CONTROL_ERROR, monitor_lost),
        )
        return [
            connection.domainEventRegisterAny(None, event_id, callback, None)
            for event_id, callback in callbacks
        ]

    def _deliver(self, event: DomainEvent) -> None:
        for callback in self._on_event:
            callback(event)

    # DomainControl

    async def start_paused(self, vm_id: VmId) -> None:
        """Create its QEMU with stopped processors, from the definition; never from a managed save:
        FORCE_BOOT drops one, for its memory would meet a disk that has moved on."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_FORCE_BOOT
        await self._change(
            "start",
            vm_id,
            lambda domain: domain.createWithFlags(flags),
            deadline_ms=self._deadlines.start_ms,
        )

    async def run(self, vm_id: VmId) -> None:
        await self._change("run", vm_id, lambda domain: domain.resume())

    async def pause(self, vm_id: VmId) -> None:
        await self._change("pause", vm_id, lambda domain: domain.suspend())

    async def shutdown(self, vm_id: VmId) -> None:
        """The guest agent where it answers, else the power button."""
        flags = libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT | libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        await self._change("shut down", vm_id, lambda domain: _live(domain).shutdownFlags(flags))

    async def reboot(self, vm_id: VmId) -> None:
        flags = libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT | libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN
        await self._change("reboot", vm_id, lambda domain: _live(domain).reboot(flags))

    async def reset(self, vm_id: VmId) -> None:
        await self._change("reset", vm_id, lambda domain: domain.reset(0))

    async def destroy(self, vm_id: VmId) -> None:
        """Kill its QEMU and wait until it is reaped. Not running is done already."""

        def destroy(domain: "libvirt.virDomain") -> None:
            try:
                domain.destroyFlags(0)
            except libvirt.libvirtError as error:
                not_running = error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
                if not not_running or domain.isActive():
                    raise

        await self._change("destroy", vm_id, destroy, deadline_ms=self._deadlines.destroy_ms)

    async def _change(
        self,
        what: str,
        vm_id: VmId,
        function: Callable[["libvirt.virDomain"], Any],
        *,
        deadline_ms: int | None = None,
    ) -> None:
        await self._main.call(
            self._control,
            f"{what} {vm_id}",
            lambda connection: function(_lookup(connection, vm_id)),
            deadline_ms=deadline_ms or self._deadlines.change_ms,
            changes=True,
        )

    # DomainDevices

    async def attach(self, vm_id: VmId, device_xml: str) -> None:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE
        await self._change(
            "plug into", vm_id, lambda domain: domain.attachDeviceFlags(device_xml, flags)
        )

    async def detach(self, vm_id: VmId, device_xml: str) -> None:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE
        await self._change(
            "unplug from", vm_id, lambda domain: domain.detachDeviceFlags(device_xml, flags)
        )

    # DomainDisks

    async def live_disks(self, vm_id: VmId) -> tuple[LiveDisk, ...]:
        return await self._ask(
            f"look at the disks of {vm_id}",
            lambda connection: libvirt_disks.live_disks(_live(_lookup(connection, vm_id))),
        )

    async def grow_disk(self, vm_id: VmId, path: str, size_bytes: int) -> None:
        await self._change(
            "grow a disk of", vm_id, lambda domain: libvirt_disks.grow(domain, path, size_bytes)
        )

    async def make_snapshot(self, vm_id: VmId, paths: tuple[str, ...], name: str) -> None:
        await self._change(
            "make a snapshot of",
            vm_id,
            lambda domain: libvirt_disks.make_snapshot(_live(domain), paths, name),
        )

    async def delete_snapshot(self, vm_id: VmId, path: str, name: str) -> None:
        await self._change(
            "delete a snapshot of",
            vm_id,
            lambda domain: libvirt_disks.delete_snapshot(_live(domain), path, name),
        )

    # DomainCatalog

    async def domains(self) -> tuple[DomainReport, ...]:
        return await self._ask("list domains", self._list)

    async def domain(self, vm_id: VmId) -> DomainReport:
        def report(connection: "libvirt.virConnect") -> DomainReport:
            domain = _lookup(connection, vm_id)
            state, reason = domain.state()
            return self._report(
                domain,
                (state, reason),
                persistent=bool(domain.isPersistent()),
                # A transient domain has no autostart, libvirt refuses the very question.
                autostart=bool(domain.isPersistent() and domain.autostart()),
                managed_save=bool(domain.hasManagedSaveImage(0)),
            )

        return await self._ask(f"look at {vm_id}", report)

    async def xml(self, vm_id: VmId, *, inactive: bool = True) -> str:
        """With its secrets (console passwords): a definition that is patched must keep them."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE
        if inactive:
            flags |= libvirt.VIR_DOMAIN_XML_INACTIVE

        def dump_xml(connection: "libvirt.virConnect") -> str:
            return str(_lookup(connection, vm_id).XMLDesc(flags))

        return await self._ask(f"read {vm_id}", dump_xml)

    async def define(self, xml: str) -> None:
        await self._main.call(
            self._control,
            "define a domain",
            lambda connection: connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE),
            deadline_ms=self._deadlines.change_ms,
            changes=True,
        )

    # DomainSecrets

    async def keep_secret(self, secret_id: str, name: str, value: bytes) -> None:
        def keep(connection: "libvirt.virConnect") -> None:
            connection.secretDefineXML(ceph_secret(secret_id, name)).setValue(value)

        await self._main.call(
            *(self._control, f"keep the key of {name}", keep),
            deadline_ms=self._deadlines.change_ms,
            changes=True,
        )

    async def undefine(self, vm_id: VmId) -> None:
        """UEFI variables (``nvram``) stay: they can't be made again."""
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        )

        def undefine(connection: "libvirt.virConnect") -> None:
            try:
                _lookup(connection, vm_id).undefineFlags(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

        await self._main.call(
            self._control,
            f"undefine {vm_id}",
            undefine,
            deadline_ms=self._deadlines.change_ms,
            changes=True,
        )

    async def set_autostart(self, vm_id: VmId, on: bool) -> None:
        await self._change(
            "set autostart of", vm_id, lambda domain: domain.setAutostart(1 if on else 0)
        )

    def _list(self, connection: "libvirt.virConnect") -> tuple[DomainReport, ...]:
        """Five calls however many domains there are."""

        def ids(flag: int) -> set[str]:
            return {domain.UUIDString() for domain in connection.listAllDomains(flag)}

        persistent = ids(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
        autostart = ids(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
        managed_save = ids(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
        # Last, for the states decide; it also brings the names and the ids.
        reports = []
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            vm_id = domain.UUIDString()
            reports.append(
                self._report(
                    domain,
                    (stats.get("state.state", 0), stats.get("state.reason", 0)),
                    persistent=vm_id in persistent,
                    autostart=vm_id in autostart,
                    managed_save=vm_id in managed_save,
                )
            )
        return tuple(sorted(reports, key=lambda report: report.name))

    def _report(
        self,
        domain: "libvirt.virDomain",
        state: tuple[int, int],
        *,
        persistent: bool,
        autostart: bool,
        managed_save: bool,
    ) -> DomainReport:
        word, reason = state_words(*state)
        return DomainReport(
            vm_id=_id(domain),
            name=domain.name(),
            state=word,
            reason=reason,
            persistent=persistent,
            autostart=autostart,
            managed_save=managed_save,
            pid=self._pid(domain) if domain.ID() != -1 else None,
        )

    def _pid(self, domain: "libvirt.virDomain") -> int | None:
        """From libvirt's pid file, and only if that process says itself that it is this domain: the
        file may be of another PID namespace, or its number long reused."""
        try:
            pid = int((self._runtime / f"{domain.name()}.pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if domain.UUIDString().encode() in arguments else None

    # DomainEvidence

    async def screenshot(self, vm_id: VmId, path: str) -> str:
        def take(connection: "libvirt.virConnect") -> str:
            return _screenshot(connection, _lookup(connection, vm_id), path)

        return await self._side.call(
            self._evidence,
            f"screenshot of {vm_id}",
            take,
            deadline_ms=self._deadlines.screenshot_ms,
            changes=False,
        )

    async def dump(self, vm_id: VmId, path: str) -> None:
        """The guest's memory as ELF. The file is as large as the guest's memory."""

        def dump(connection: "libvirt.virConnect") -> None:
            _lookup(connection, vm_id).coreDumpWithFormat(
                path, libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW, libvirt.VIR_DUMP_MEMORY_ONLY
            )

        await self._side.call(
            self._evidence,
            f"dump of {vm_id}",
            dump,
            deadline_ms=self._deadlines.dump_ms,
            changes=True,
        )

    # HostFacts

    async def answers(self, *, deadline_ms: int) -> None:
        await self._pulse.call(
            self._pulses,
            "say whether it answers",
            lambda connection: connection.getLibVersion(),
            deadline_ms=deadline_ms,
            changes=False,
        )

    async def capabilities(self) -> HostCapabilities:
        """Without overcommit, gate and agent version, which the agent adds."""

        def look(connection: "libvirt.virConnect") -> HostCapabilities:
            guest = read_guest(connection.getCapabilities())
            probed = probe(connection, guest, wanted_type=self._domain_type, cache=self._cache)
            information = connection.getInfo()
            machine = machine_identity()
            return HostCapabilities(
                architecture=guest.architecture,
                cpus=information[2],
                memory_bytes=_memory_bytes(information[1]),
                libvirt_version=connection.getLibVersion(),
                qemu_version=connection.getVersion(),
                machine_types=guest.machines,
                watchdog_models=probed.watchdog_models,
                domain_type=probed.domain_type,
                bridges=bridges(),
                libvirt_connected=True,
                machine=machine if machine.uuid or machine.serial else UNSET,
            )

        return await self._side.call(
            self._query,
            "read the host's capabilities",
            look,
            deadline_ms=self._deadlines.probe_ms,
            changes=False,
        )

    # For LibvirtMoves

    async def with_domain(
        self, what: str, vm_id: VmId, function: Callable[["libvirt.virDomain"], Answer]
    ) -> Answer:
        """One attempt within the deadline of a change. Raises as all calls here do."""
        return await self._main.call(
            self._control,
            f"{what} {vm_id}",
            lambda connection: function(_lookup(connection, vm_id)),
            deadline_ms=self._deadlines.change_ms,
            changes=True,
        )

    # For LibvirtGuestAgent

    async def with_guest(
        self,
        what: str,
        vm_id: VmId,
        function: Callable[["libvirt.virDomain"], Answer],
        *,
        deadline_ms: int,
    ) -> Answer:
        """Run guest agent commands in the guests' own lane. Raises as all calls here do."""
        return await self._side.call(
            self._guests,
            f"{what} {vm_id}",
            lambda connection: function(_lookup(connection, vm_id)),
            deadline_ms=deadline_ms,
            changes=False,
        )

    async def _ask(self, what: str, function: Callable[["libvirt.virConnect"], Answer]) -> Answer:
        return await self._main.call(
            self._query, what, function, deadline_ms=self._deadlines.query_ms, changes=False
        )


def _lookup(connection: "libvirt.virConnect", vm_id: VmId) -> "libvirt.virDomain":
    try:
        return connection.lookupByUUIDString(vm_id)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_ARG:
            raise DomainMissing(f"'{vm_id}' is no domain's UUID") from error
        raise


def _live(domain: "libvirt.virDomain") -> "libvirt.virDomain":
    """libvirt 9.0 says "done" when a domain that doesn't run is told to shut down in several ways."""
    if not domain.isActive():
        raise HypervisorFailed(f"domain '{domain.name()}' is not running")
    return domain


def _id(domain: "libvirt.virDomain") -> VmId:
    return VmId(domain.UUIDString())


def _runtime_directory(uri: str) -> Path:
    """Where libvirt's QEMU driver keeps pid files: beside its socket."""
    socket_path = parse_qs(urlsplit(uri).query).get("socket")
    if socket_path:
        return Path(socket_path[0]).parent / "qemu"
    return Path("/run/libvirt/qemu")


def _memory_bytes(libvirt_mib: int) -> int:
    """Exact where the kernel says it; libvirt rounds to MiB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return libvirt_mib << 20


def _screenshot(connection: "libvirt.virConnect", domain: "libvirt.virDomain", path: str) -> str:
    stream = connection.newStream()
    try:
        kind = domain.screenshot(stream, 0, 0)
        final = Path(path).with_suffix(".png" if kind == "image/png" else ".ppm")
        partial = final.with_name(final.name + ".part")
        received = 0
        with partial.open("wb") as file:
            while data := stream.recv(256 << 10):
                received += len(data)
                if received > _SCREENSHOT_BYTES_MAX:
                    raise HypervisorFailed(f"screenshot is larger than {_SCREENSHOT_BYTES_MAX}")
                file.write(data)
        stream.finish()
    except BaseException:
        _abort(stream)
        raise
    partial.replace(final)
    return str(final)


def _abort(stream: "libvirt.virStream") -> None:
    try:
        stream.abort()
    except libvirt.libvirtError as error:
        # There was no stream yet, or it is closed: then nothing is left to give up.
        _log.debug("libvirt.stream.abort", error=str(error))
