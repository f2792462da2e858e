"""What a running domain has, out of libvirt's live XML."""

import msgspec

from virtha.domainxml.elements import effective_watchdog
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.reading import read_domain
from virtha.model.vm import Hardware, Vm


def read_hardware(live_xml: str, vm: Vm, host: HostDefaults) -> Hardware | None:
    """None: it can't be read. Raises InvalidInput: no domain XML.

    ``vm`` names the disks: those of its record keep id, name and size, told by their place.
    """
    found = read_domain(live_xml, host).vm
    if found is None:
        return None
    known = {(disk.storage_domain_id, disk.path): disk for disk in vm.disks}
    cards = {nic.mac: nic for nic in vm.nics}
    without = msgspec.structs.replace(found, watchdog=None)
    return Hardware(
        memory_bytes=found.memory_bytes,
        vcpus=found.vcpus,
        machine=found.machine,
        watchdog=found.watchdog,
        default_watchdog=effective_watchdog(without, host),
        disks=tuple(known.get((disk.storage_domain_id, disk.path), disk) for disk in found.disks),
        nics=tuple(
            msgspec.structs.replace(nic, id=cards[nic.mac].id) if nic.mac in cards else nic
            for nic in found.nics
        ),
    )
