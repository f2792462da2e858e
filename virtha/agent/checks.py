"""``virtha agent check``: what would keep this host from protecting its VMs, before it matters."""

import asyncio
import os
import time
from functools import partial

from virtha.agent.files import Files
from virtha.agent.gate_proof import GateProver
from virtha.agent.host_installation import host_units_wrong
from virtha.agent.identity import Identity, load_credentials, load_identity
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import is_held
from virtha.agent.properties import AgentProperties, load_with_warnings
from virtha.agent.records import SettingsStore
from virtha.agent.storage import PROBE_DEADLINE_MS, StorageWorkers, check_header
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.link import parse_address
from virtha.drivers.pki import client_context
from virtha.model.errors import VirthaError
from virtha.model.orders import HostSettings
from virtha.model.value import Value

LIBVIRT_DEADLINE_S = 10.0
SERVER_DEADLINE_S = 5.0
SETTINGS_DEADLINE_S = 10.0


class Check(Value, frozen=True, kw_only=True):
    """``ok`` None: it could not be found out."""

    name: str
    ok: bool | None
    detail: str = ""
    fix: str = ""


async def check_host(paths: AgentPaths) -> tuple[Check, ...]:
    """Each part by itself: one that fails hides no other."""
    found: list[Check] = []
    identity: Identity | None = None
    properties = AgentProperties()
    try:
        identity = load_identity(paths)
        found.append(Check(name="joined", ok=True, detail=f"{identity.name} ({identity.cluster})"))
    except VirthaError as error:
        found.append(_failed("joined", error))
    try:
        properties, unused = load_with_warnings(paths)
        detail = "; ".join((str(paths.properties), *unused))
        found.append(Check(name="agent.properties", ok=True, detail=detail))
    except VirthaError as error:
        found.append(_failed("agent.properties", error))
    found += await _libvirt_and_gate(paths, properties)
    if identity is not None:
        found += await _servers(paths, identity, properties)
        found += await _storage(paths, identity)
    found.append(_program(paths, "agent", "nobody mends or starts VMs here"))
    found.append(_program(paths, "guardian", "nobody beats for this host"))
    found += _units(paths)
    return tuple(found)


async def _libvirt_and_gate(paths: AgentPaths, properties: AgentProperties) -> list[Check]:
    hypervisor = LibvirtHost(
        properties.hypervisor_uri,
        domain_type=properties.hypervisor_type,
        cache_directory=paths.cache if paths.cache.is_dir() else None,
    )
    connected = asyncio.Event()
    hypervisor.subscribe(lambda _event: None, lambda up: connected.set() if up else None)
    await hypervisor.start()
    try:
        async with asyncio.timeout(LIBVIRT_DEADLINE_S):
            await connected.wait()
            while not hypervisor.side_connected:  # noqa: ASYNC110 - only the main one is told
                await asyncio.sleep(0.05)
    except TimeoutError:
        await hypervisor.close()
        wrong = Check(
            name="libvirt",
            ok=False,
            detail=f"{properties.hypervisor_uri} does not answer",
            fix="start libvirtd: systemctl start libvirtd"
            if os.geteuid() == 0
            else "run this as root: libvirt lets in nobody else",
        )
        return [wrong, Check(name="start gate", ok=None, detail="can't be proved without libvirt")]
    try:
        facts = await hypervisor.capabilities()
        libvirt = Check(
            name="libvirt",
            ok=True,
            detail=f"version {facts.libvirt_version}, VMs run with {facts.domain_type}",
        )
        proof = await GateProver(hypervisor, hypervisor, paths).prove(
            domain_type=facts.domain_type, architecture=facts.architecture
        )
    except VirthaError as error:
        return [_failed("libvirt", error), Check(name="start gate", ok=None)]
    finally:
        await hypervisor.close()
    if proof is None:
        return [libvirt, Check(name="start gate", ok=None, detail="libvirt did not answer")]
    detail = "an ungranted start was refused" if proof.in_force else proof.detail
    return [libvirt, Check(name="start gate", ok=proof.in_force, detail=detail)]


async def _servers(
    paths: AgentPaths, identity: Identity, properties: AgentProperties
) -> list[Check]:
    found = []
    try:
        credentials = load_credentials(paths, identity)
        context = client_context(
            credentials.authority_pem, credentials.certificate_pem, credentials.key_pem
        )
    except VirthaError as error:
        return [_failed("certificate", error)]
    for address in properties.host or identity.servers:
        host, port = parse_address(address)
        try:
            async with asyncio.timeout(SERVER_DEADLINE_S):
                _, writer = await asyncio.open_connection(
                    host, port, ssl=context, server_hostname=host
                )
            writer.transport.abort()
            found.append(
                Check(name=f"server {address}", ok=True, detail="TLS with our certificate")
            )
        except (OSError, TimeoutError) as error:
            found.append(
                Check(
                    name=f"server {address}",
                    ok=False,
                    detail=str(error) or "no answer",
                    fix="does the server run, and does a firewall let this port through?",
                )
            )
    return found


async def _settings(paths: AgentPaths) -> HostSettings | None:
    """A host that has just joined gets its first ones a moment after its agent began."""
    store = SettingsStore(paths.settings, Files())
    deadline = time.monotonic() + SETTINGS_DEADLINE_S
    while (settings := store.load()) is None and is_held(paths, "agent"):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    return settings


async def _storage(paths: AgentPaths, identity: Identity) -> list[Check]:
    settings = await _settings(paths)
    if settings is None:
        return [
            Check(name="settings", ok=None, detail="none yet; they come with the first session")
        ]
    workers = StorageWorkers()
    found = []
    for domain in settings.storage_domains:
        name = f"storage {domain.name}"
        try:
            await workers.call(
                domain,
                partial(check_header, domain, identity.installation_id),
                deadline_ms=PROBE_DEADLINE_MS,
            )
            found.append(Check(name=name, ok=True, detail=domain.path))
        except (VirthaError, OSError) as error:
            found.append(_failed(name, error))
    return found


def _program(paths: AgentPaths, name: str, missed: str) -> Check:
    if is_held(paths, name):
        return Check(name=name, ok=True, detail="it runs")
    return Check(
        name=name,
        ok=False,
        detail=f"it does not run: {missed}",
        fix=f"start it: systemctl start virtha-{name}; journalctl -u virtha-{name} says why it ended",
    )


def _units(paths: AgentPaths) -> list[Check]:
    """Nothing without systemd. An old unit starts this version as that one wanted to be started."""
    try:
        wrong = host_units_wrong(paths)
    except VirthaError as error:
        return [_failed("units", error)]
    if wrong is None:
        return []
    if not wrong:
        return [Check(name="units", ok=True, detail="as this version has them")]
    fix = "run: virtha agent install-units"
    return [Check(name="units", ok=False, detail="; ".join(wrong), fix=fix)]


def _failed(name: str, error: VirthaError | OSError) -> Check:
    if isinstance(error, VirthaError):
        return Check(name=name, ok=False, detail=error.message, fix=error.fix)
    return Check(name=name, ok=False, detail=str(error))
