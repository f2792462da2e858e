"""What the agent reports of its host: inventory, capabilities and gate, storage domains."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from virtha import __version__
from virtha.agent import ceph_records
from virtha.agent.ceph_sight import CephSights
from virtha.agent.fact_sink import FactSink
from virtha.agent.files import Files, read_bounded
from virtha.agent.gate import PROOF_VM_ID
from virtha.agent.gate_proof import GateProof, GateProver
from virtha.agent.host_context import HostContext
from virtha.agent.images import image_info
from virtha.agent.lease_watch import LeaseWatch
from virtha.agent.roll_call import Lister, active_ids
from virtha.agent.storage import ORDER_DEADLINE_MS, PROBE_DEADLINE_MS, prepare_place
from virtha.agent.storage_probe import low_space, probe
from virtha.model.ceph import CephSight
from virtha.model.domain import DomainReport
from virtha.model.errors import Failed, VirthaError
from virtha.model.evidence import ProbeAddress
from virtha.model.facts import Happened, HostReport, Image, Inventory, StorageReport
from virtha.model.host import HostCapabilities, StorageDomain
from virtha.model.ids import StorageDomainId, VmId
from virtha.model.policy import Unreachable
from virtha.ports.hypervisor import HostFacts, HypervisorError

STORAGE_INTERVAL_S = 30.0
LEASE_INTERVAL_S = 1.0
GATE_INTERVAL_S = 600.0
GATE_RETRY_S = 30.0
RETRY_S = 2.0
PATIENCE_ROUNDS = 4
INVENTORY_QUIET_S = 0.2
"""Events come in bursts (a start makes three): one list answers all of them."""
IMAGE_LOOKS_PER_ROUND_MAX = 50
FREE_STEP_BYTES = 256 << 20
"""Free space is told in steps, or every write of every VM would make a report."""

_log = structlog.get_logger(__name__)


class InventoryReporter:
    """Counts the revision up when the list of domains changed, and tells it."""

    def __init__(self, path: Path, catalog: Lister, facts: FactSink, files: Files) -> None:
        self._path = path
        self._catalog = catalog
        self._facts = facts
        self._files = files
        self._last: tuple[DomainReport, ...] | None = None
        self._dirty = asyncio.Event()
        self.revision = self._read_revision()

    def _read_revision(self) -> int:
        try:
            return int(read_bounded(self._path, 64))
        except (OSError, ValueError):
            return 0

    @property
    def active(self) -> frozenset[VmId]:
        """Of the last list that was told."""
        return active_ids(self._last or ())

    def changed(self) -> None:
        self._dirty.set()

    def tell_again(self) -> None:
        """The next list is told even if it says the same."""
        self._last = None
        self._dirty.set()

    async def _tell(self, domains: tuple[DomainReport, ...]) -> None:
        """Unchanged: nothing is told."""
        # The gate's proof comes and goes and is nobody's VM.
        others = (domain for domain in domains if domain.vm_id != PROOF_VM_ID)
        domains = tuple(sorted(others, key=lambda domain: domain.vm_id))
        if domains == self._last:
            return
        self._last = domains
        self.revision += 1
        try:
            self._files.write_atomic(self._path, str(self.revision).encode())
        except OSError as error:
            _log.warning("the inventory's revision can't be kept", error=str(error))
        await self._facts.emit([Inventory(revision=self.revision, domains=domains)])

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(INVENTORY_QUIET_S)
            self._dirty.clear()
            try:
                domains = await self._catalog.domains()
            except HypervisorError as error:
                _log.info("no inventory now", error=str(error))
                continue
            if not self._dirty.is_set():
                # Else the list may show a VM whose release was told since: told after that, the server
                # would take this host for a holder again, for good.
                await self._tell(domains)


class HostReporter:
    """Capabilities of the host and whether its gate is in force; told when they change."""

    def __init__(
        self,
        host: HostContext,
        hypervisor: HostFacts,
        prover: GateProver,
        probed_at: Callable[[], tuple[ProbeAddress, ...]] = tuple,
    ) -> None:
        """``probed_at``: where the guardian answers other hosts."""
        self._host = host
        self._probed_at = probed_at
        self._hypervisor = hypervisor
        self._prover = prover
        self._told: HostCapabilities | None = None
        self._proof: GateProof | None = None
        self._again = asyncio.Event()
        self._patience = PATIENCE_ROUNDS
        self.connected = False
        self.ready = False
        """The sentinel has libvirt's list; without it nothing is restarted."""
        self._hangs = False

    def changed(self) -> None:
        """libvirt came or went, or the properties changed: look anew, and prove the gate anew."""
        self._again.set()

    async def run(self) -> None:
        while True:
            self._again.clear()
            complete = await self.report()
            in_force = self._proof is not None and self._proof.in_force
            pause_s = GATE_INTERVAL_S if in_force else GATE_RETRY_S
            try:
                async with asyncio.timeout(pause_s if complete else RETRY_S):
                    await self._again.wait()
            except TimeoutError:
                continue

    async def report(self) -> bool:
        """False: libvirt should answer but did not, look again soon."""
        host = self._host
        complete = True
        if self.connected:
            try:
                host.capabilities = await self._hypervisor.capabilities()
                host.capabilities_known.set()
                await self._prove()
            except HypervisorError as error:
                _log.warning("the host's capabilities can't be read", error=str(error))
                complete = False
        if not host.capabilities_known.is_set() and self._patience > 0:
            # An agent that has just begun must not tell the server that its host has no memory.
            self._patience -= 1
            return False
        await self._tell()
        return complete

    async def libvirt_hangs(self, hangs: bool) -> None:
        """Told at once: what is asked for a report may hang with it."""
        self._hangs = hangs
        if self._told is not None:
            await self._tell()

    async def addresses_changed(self) -> None:
        """Perhaps. Before the first report nothing is told: that one says it."""
        if self._told is not None:
            await self._tell()

    async def _tell(self) -> None:
        host = self._host
        overcommit = host.properties.host_overcommit_memory_bytes
        capabilities = msgspec.structs.replace(
            host.capabilities,
            memory_bytes=host.capabilities.memory_bytes + overcommit,
            memory_overcommit_bytes=overcommit,
            agent_version=__version__,
            gate_in_force=self._proof is not None and self._proof.in_force,
            libvirt_connected=self.connected and self.ready and not self._hangs,
            disk_check_ms=host.properties.diskactivity_timeout_s * 1_000
            if host.properties.diskactivity_check
            else UNSET,
            probed_at=self._probed_at() or UNSET,
        )
        if capabilities != self._told:
            self._told = capabilities
            await host.facts.emit([HostReport(capabilities=capabilities)])

    async def _prove(self) -> None:
        host = self._host
        proof = await self._prover.prove(
            domain_type=host.capabilities.domain_type,
            architecture=host.capabilities.architecture,
        )
        if proof is None or proof == self._proof:
            return
        self._proof = proof
        if proof.in_force:
            event = Happened(code="host.gate.proved", fields={"name": host.host_name})
        else:
            fields = {"name": host.host_name, "detail": proof.detail}
            event = Happened(code="host.gate.missing", fields=dict(fields))
        await host.facts.emit([event])


class StorageReporter:
    """Looks at each storage domain every half minute, each in its own task and worker; and every second at what the
    guardian's renewals say of it: an outage must be known long before VMs are killed for it (ADR 15)."""

    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._leases = LeaseWatch(host)
        self._placed: set[StorageDomainId] = set()
        """Where this host's heartbeat has its place, as far as this process knows."""
        self._told: dict[StorageDomainId, StorageReport] = {}
        self._looks: dict[Path, tuple[tuple[int, int], Image | None]] = {}
        self._sights: dict[StorageDomainId, CephSights] = {}
        self._keys: dict[StorageDomainId, bytes] = {}
        """What libvirt was given."""
        self._again = asyncio.Event()
        self._busy: set[StorageDomainId] = set()
        self._overtaken: set[StorageDomainId] = set()
        """Asked for while a look at them was under way: what that look tells may be out of date."""

    def changed(self) -> None:
        self._again.set()

    async def run(self) -> None:
        while True:
            self._again.clear()
            for domain in self._host.storage_domains():
                if domain.id in self._busy:
                    self._overtaken.add(domain.id)
                else:
                    self._busy.add(domain.id)
                    self._host.spawn(f"storage {domain.name}", self._look_and_tell(domain))
            try:
                async with asyncio.timeout(STORAGE_INTERVAL_S):
                    await self._again.wait()
            except TimeoutError:
                continue

    async def watch_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_INTERVAL_S)
            lost, back = self._leases.look()
            for domain in self._host.storage_domains():
                if domain.id in lost:
                    await self._tell(self._lost(domain))
            if back:
                self._again.set()

    async def _look_and_tell(self, domain: StorageDomain) -> None:
        try:
            await self._tell(await self.look(domain))
        finally:
            self._busy.discard(domain.id)
            if domain.id in self._overtaken:
                self._overtaken.discard(domain.id)
                self._again.set()

    async def _tell(self, report: StorageReport) -> None:
        if report != self._told.get(report.storage_domain_id):
            self._told[report.storage_domain_id] = report
            await self._host.facts.emit([report])

    async def look(self, domain: StorageDomain) -> StorageReport:
        """Never raises for what is wrong with the storage: that is what it reports."""
        host = self._host
        try:
            seen = await host.workers.call(
                domain,
                lambda: probe(domain, host.installation_id, host.files),
                deadline_ms=PROBE_DEADLINE_MS,
            )
        except (VirthaError, OSError) as error:
            return StorageReport(
                storage_domain_id=domain.id,
                usable=False,
                detail=str(error),
                ceph=self._known_sight(domain),
            )
        (host.buffered.discard if seen.direct_io else host.buffered.add)(domain.id)
        no_place = await self._keep_key(domain) or await self._give_place(domain)
        images = await self._images(domain, seen.images)
        sight = await self._sight(domain)
        if domain.id in self._leases.lost:
            return self._lost(domain)
        free = seen.free_bytes
        free -= free % FREE_STEP_BYTES if free > FREE_STEP_BYTES else 0
        low = seen.warning or low_space(seen.size_bytes, free)
        return StorageReport(
            storage_domain_id=domain.id,
            usable=True,
            detail=no_place or low,
            size_bytes=seen.size_bytes,
            free_bytes=free,
            images=images,
            ceph=sight,
            mark=seen.mark,
            low_space=low or UNSET,
        )

    async def _sight(self, domain: StorageDomain) -> CephSight | UnsetType:
        """How its cluster sees this host; as it was, where that can't be told now."""
        if domain.ceph is UNSET:
            return UNSET
        sights = self._sights.setdefault(domain.id, CephSights(self._host.boot))
        settings = self._host.settings
        helps = (
            settings is not None
            and Unreachable.STORAGE_FENCE in settings.policy.fencing.unreachable
        )
        look = partial(sights.look, domain, self._host.clock.monotonic_ms(), helps=helps)
        try:
            return await self._host.workers.call(domain, look, deadline_ms=PROBE_DEADLINE_MS)
        except (VirthaError, OSError) as error:
            _log.warning("not seen by Ceph", domain=domain.name, error=str(error))
            return self._known_sight(domain)

    def _known_sight(self, domain: StorageDomain) -> CephSight | UnsetType:
        sights = self._sights.get(domain.id)
        return sights.last or UNSET if sights is not None else UNSET

    def _lost(self, domain: StorageDomain) -> StorageReport:
        return StorageReport(
            storage_domain_id=domain.id,
            usable=False,
            detail="this host's heartbeat there can't be renewed",
            ceph=self._known_sight(domain),
        )

    async def _keep_key(self, domain: StorageDomain) -> str:
        """A VM is started, restarted and moved here by libvirt, which needs the pool's key for that. Returns what is wrong."""
        secrets = self._host.secrets
        if domain.ceph is UNSET or secrets is None:
            return ""
        try:
            key = await self._host.disk(ceph_records.key_of, domain.ceph)
            if key is not None and self._keys.get(domain.id) != key:
                await secrets.keep_secret(domain.id, f"virtha {domain.id}", key)
                self._keys[domain.id] = key
        except VirthaError as error:
            return f"no VM with a disk there can be started: {error}"
        return ""

    async def _give_place(self, domain: StorageDomain) -> str:
        """A host that joined later, and a domain from before there were heartbeats, were never told to. Returns what is
        wrong."""
        host = self._host
        if not host.leases_in_use or domain.id in self._placed:
            return ""
        try:
            await host.workers.call(
                domain,
                partial(
                    prepare_place, domain, host.installation_id, host.host_id, host.host_number
                ),
                deadline_ms=ORDER_DEADLINE_MS,
            )
        except (VirthaError, OSError) as error:
            return f"no heartbeat there, so no VM is started: {error}"
        self._placed.add(domain.id)
        return ""

    async def _images(
        self, domain: StorageDomain, paths: tuple[tuple[Path, tuple[int, int]], ...]
    ) -> tuple[Image, ...]:
        found = []
        looks = 0
        for path, stamp in paths:
            known = self._looks.get(path)
            if known is None or known[0] != stamp:
                if looks >= IMAGE_LOOKS_PER_ROUND_MAX:
                    self._again.set()
                    continue
                looks += 1
                known = self._looks[path] = (stamp, await _look_at(domain, path, stamp))
            if known[1] is not None:
                found.append(known[1])
        present = {path for path, _ in paths}
        below = Path(domain.path)
        for gone in [p for p in self._looks if p.is_relative_to(below) and p not in present]:
            del self._looks[gone]
        return tuple(found)


async def _look_at(domain: StorageDomain, path: Path, stamp: tuple[int, int]) -> Image | None:
    """None: it is no image (or not yet, while it is copied there)."""
    try:
        info = await image_info(path)
    except Failed as error:
        _log.info("not an image", path=str(path), error=str(error))
        return None
    return Image(
        name=path.stem,
        path=str(path.relative_to(domain.path)),
        format=info.format,
        size_bytes=stamp[1],
        virtual_size_bytes=info.virtual_size,
    )
