"""Devices that are plugged into a running domain and unplugged: their XML, and where they are in libvirt's live XML."""

from xml.dom.minidom import Document, Element
from xml.etree.ElementTree import tostring

from virtha.domainxml.build import BUS_PREFIX, disk_element, disk_path, letters, nic_element
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.xmltree import (
    attribute,
    elements,
    first,
    parse_domain,
    remove,
    root_of,
    written,
)
from virtha.model.errors import Refused
from virtha.model.vm import Disk, Nic, Vm

_PLUGGED = ("virtio", "scsi")


def find_device(live_xml: str, device: Disk | Nic, host: HostDefaults) -> str | None:
    """Its element as libvirt has it; None: the domain does not have it. A disk by its file, a card by its address."""
    found = _find(live_xml, device, host)
    return None if found is None else str(found.toxml())


def without_device(xml: str, device: Disk | Nic, host: HostDefaults) -> str | None:
    """The definition without it; None: it does not have it."""
    document = parse_domain(xml)
    found = _find_in(document, device, host)
    if found is None:
        return None
    remove(found)
    return written(document)


def _find(live_xml: str, device: Disk | Nic, host: HostDefaults) -> Element | None:
    return _find_in(parse_domain(live_xml), device, host)


def _find_in(document: Document, device: Disk | Nic, host: HostDefaults) -> Element | None:
    root = root_of(document)
    devices = first(root, "devices") or root
    if isinstance(device, Nic):
        for card in elements(devices, "interface"):
            if attribute(first(card, "mac"), "address").lower() == device.mac:
                return card
        return None
    path = disk_path(device, host)
    for disk in elements(devices, "disk"):
        if attribute(first(disk, "source"), "file") == path:
            return disk
    return None


def plug_xml(live_xml: str, vm: Vm, device: Disk | Nic, host: HostDefaults) -> str:
    """Raises Refused: that bus takes no device while the guest runs; InvalidInput as ``build_domain``."""
    if isinstance(device, Nic):
        return tostring(nic_element(device), encoding="unicode")
    devices = first(root_of(parse_domain(live_xml)), "devices")
    disks = elements(devices, "disk") if devices is not None else []
    scsi = any(attribute(first(disk, "target"), "bus") == "scsi" for disk in disks)
    if device.bus not in _PLUGGED or (device.bus == "scsi" and not scsi):
        raise Refused(
            f"{device.bus} takes no disk while {vm.name} runs; it has it from its next start on",
            code="problem.disk.bus",
            field="bus",
            fix="restart the VM, or take the virtio bus",
        )
    used = {attribute(first(disk, "target"), "dev") for disk in disks}
    names = (BUS_PREFIX[device.bus] + letters(index) for index in range(len(used) + 1))
    target = next(name for name in names if name not in used)
    return tostring(disk_element(device, target, host), encoding="unicode")
