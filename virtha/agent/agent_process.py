"""The agent as a process: what it reads before it begins, its link to the servers, its signals.

Stopping it, also with kill -9, touches no VM: QEMUs are libvirt's children, grants stay on their
tmpfs, and whoever starts next reads records, settings and outbox from disk.
"""

import asyncio
import os
import signal

import structlog

from virtha import __version__
from virtha.agent.certificate import CertificateKeeper
from virtha.agent.files import Files
from virtha.agent.host_agent import Agent
from virtha.agent.host_clock import read_boot_id
from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.migration_setup import destination
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock
from virtha.agent.properties import load_agent_properties
from virtha.drivers.bounded_program import take_over
from virtha.drivers.channel import dial_channel
from virtha.drivers.guest_agent import LibvirtGuestAgent
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.libvirt_moves import LibvirtMoves, Movers
from virtha.drivers.link import HostCredentials, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.power_devices import RealPowerDevices
from virtha.drivers.power_elsewhere import ElsewherePower
from virtha.wire.messages import PeerRole

_log = structlog.get_logger(__name__)


async def run_agent(paths: AgentPaths) -> None:
    """``virtha agent run``. Raises Failed, InvalidInput; returns after SIGTERM or SIGINT."""
    identity = load_identity(paths)
    properties = load_agent_properties(paths)
    if properties.host_lb_check_interval_s:
        _log.warning(
            "host.lb.check.interval is not acted upon yet: no preferred server is looked for"
        )
    credentials = load_credentials(paths, identity)
    boot = read_boot_id()
    paths.make_directories()
    lock = hold_lock(paths, "agent")
    # Its unit ends only the agent itself. Whatever is set now: `network` runs a program too (ipmi), and `any` may have been set.
    take_over(f"agent-{identity.host_id}-")
    hypervisor = LibvirtHost(
        properties.hypervisor_uri,
        domain_type=properties.hypervisor_type,
        cache_directory=paths.cache,
    )
    agent = Agent(
        paths=paths,
        identity=identity,
        properties=properties,
        boot=boot,
        hypervisor=hypervisor,
        guest=LibvirtGuestAgent(hypervisor),
        clock=MachineClock(),
        files=Files(),
        moves=LibvirtMoves(
            Movers(paths.movers, properties.hypervisor_uri),
            hypervisor.with_domain,
            tls_directory=paths.migration,
            serial_directory=str(paths.serial),
        ),
        secrets=hypervisor,
        destination=destination(paths, properties, identity),
        credentials=credentials,
        power_devices=ElsewherePower(RealPowerDevices()),
    )
    link = HostLink(
        servers=properties.host or identity.servers,
        credentials=credentials,
        role=PeerRole.AGENT,
        boot=boot,
        events=agent,
        outbox=agent.outbox,
        hello_state=agent.hello_state,
        live_instance=lambda: agent.guardian.server_instance,
        program_version=__version__,
        on_channel=agent.on_channel,
        on_witness=agent.on_witness,
        on_power=agent.on_power,
        power_drivers=properties.power_attempts.drivers,
    )
    agent.connect(link, lambda channel: dial_channel(link.address or "", link.credentials, channel))

    def use(renewed: HostCredentials) -> None:
        link.use(renewed)
        agent.use(renewed)

    keeper = CertificateKeeper(paths, identity, credentials, use)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    keeping = asyncio.create_task(keeper.run(), name="certificate")
    try:
        await agent.run()
    finally:
        keeping.cancel()
        link.close()
        os.close(lock)
