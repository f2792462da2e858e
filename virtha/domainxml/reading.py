"""An existing libvirt domain as a ``Vm``, as far as virtha understands it (A8).

What it doesn't understand is no obstacle: the XML itself is kept, the ``Vm`` is only our view of it.
"""

import hashlib
import re
from xml.dom.minidom import Element

from virtha.domainxml.elements import NAMESPACE
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.xmltree import attribute, elements, first, parse_domain, root_of, text_of
from virtha.model.ids import ClusterId, DiskId, NicId, StorageDomainId, VmId
from virtha.model.machine import MachineType
from virtha.model.value import Value
from virtha.model.vm import Disk, DiskFormat, Nic, Vm
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel


class DomainReading(Value, frozen=True, kw_only=True):
    """A domain as far as virtha understands it.

    ``vm`` is None when it can't be adopted; ``obstacles`` says why, in words. ``warnings``: it can,
    but not all of it can be protected. ``vm.cluster_id`` is empty (the server knows it), its disks'
    ``size_bytes`` are 0 (the agent looks). Disks and NICs that don't fit our model are in
    ``warnings`` only, and stay in the XML.
    """

    name: str
    vm: Vm | None
    obstacles: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_DISK_OPTIONS = frozenset(
    {"drive", "blockdev", "hda", "hdb", "hdc", "hdd", "sd", "mtdblock", "pflash", "readconfig"}
)
"""Of QEMU 7.2 (its manual's "Block device options"); ``readconfig`` reads any of them from a file."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# libvirt formatdomain, "Memory Allocation": the units of <memory>; KiB where none is given.
_MEMORY_UNITS = {
    **dict.fromkeys(("b", "bytes"), 1),
    **dict.fromkeys(("", "k", "kib"), 1 << 10),
    **dict.fromkeys(("m", "mib"), 1 << 20),
    **dict.fromkeys(("g", "gib"), 1 << 30),
    **dict.fromkeys(("t", "tib"), 1 << 40),
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_BUSES = ("virtio", "scsi", "sata", "ide")


def managed_mark(root: Element) -> Element | None:
    """Our metadata element."""
    metadata = first(root, "metadata")
    for child in elements(metadata) if metadata is not None else []:
        if child.namespaceURI == NAMESPACE and child.localName == "vm":
            return child
    return None


def managed_vm_id(xml: str) -> VmId | None:
    """The VM id of our metadata mark; None: not ours. Raises InvalidInput: no domain XML."""
    mark = managed_mark(root_of(parse_domain(xml)))
    return VmId(mark.getAttribute("id")) if mark is not None else None


def read_domain(xml: str, host: HostDefaults) -> DomainReading:
    """Raises InvalidInput (field ``xml``) when it is no domain XML at all."""
    root = root_of(parse_domain(xml))
    obstacles: list[str] = []
    warnings: list[str] = []
    name = text_of(first(root, "name"))
    vm_id = text_of(first(root, "uuid")).lower()
    if not name:
        obstacles.append("it has no name")
    if not _UUID.fullmatch(vm_id):
        obstacles.append("it has no UUID")
    if root.getAttribute("type") not in ("kvm", "qemu"):
        obstacles.append(f"it is no QEMU domain (type '{root.getAttribute('type')}')")
    architecture = attribute(first(root, "os", "type"), "arch") or "x86_64"
    machine = _machine(root, architecture, obstacles)
    memory_bytes = _memory_bytes(root, obstacles)
    vcpus = _vcpus(root, obstacles)
    obstacles.extend(_hidden_disks(root))
    if managed_mark(root) is not None:
        warnings.append("it carries virtha's mark already, perhaps of an earlier installation")
    disks = _disks(root, vm_id, host, warnings)
    nics = _nics(root, vm_id, warnings)
    _warn_of_what_stays_behind(root, warnings)
    if obstacles or machine is None:
        return DomainReading(
            name=name, vm=None, obstacles=tuple(obstacles), warnings=tuple(warnings)
        )
    vm = Vm(
        id=VmId(vm_id),
        name=name,
        cluster_id=ClusterId(""),
        description=text_of(first(root, "description")),
        memory_bytes=memory_bytes,
        vcpus=vcpus,
        architecture=architecture,
        machine=machine,
        watchdog=read_watchdog(root),
        disks=disks,
        nics=nics,
        adopted=True,
    )
    return DomainReading(name=name, vm=vm, warnings=tuple(warnings))


def read_watchdog(root: Element) -> Watchdog | None:
    """The card; of several (libvirt 9.1 adds q35's built-in itco to every domain) the plugged one."""
    cards = []
    for card in elements(first(root, "devices") or root, "watchdog"):
        model, action = card.getAttribute("model"), card.getAttribute("action") or "reset"
        if model in tuple(WatchdogModel) and action in tuple(WatchdogAction):
            cards.append(Watchdog(model=WatchdogModel(model), action=WatchdogAction(action)))
    plugged = [card for card in cards if card.model is not WatchdogModel.ITCO]
    return next(iter(plugged or cards), None)


def _machine(root: Element, architecture: str, obstacles: list[str]) -> MachineType | None:
    """The family of a versioned machine type: pc-q35-7.2 -> q35."""
    system = first(root, "os", "type")
    if text_of(system) != "hvm":
        obstacles.append("it is not fully virtualised (os type is not 'hvm')")
    written = attribute(system, "machine")
    if architecture == "x86_64":
        if written == "q35" or written.startswith("pc-q35-"):
            return MachineType.Q35
        if written in ("", "pc") or written.startswith("pc-i440fx-"):
            return MachineType.PC
    if architecture == "s390x" and written.startswith("s390-ccw-virtio"):
        return MachineType.S390_CCW
    obstacles.append(
        f"machine type '{written}' of {architecture} is not supported "
        f"(x86_64: pc, q35; s390x: s390-ccw-virtio)"
    )
    return None


def _memory_bytes(root: Element, obstacles: list[str]) -> int:
    memory = first(root, "memory")
    factor = _MEMORY_UNITS.get(attribute(memory, "unit").lower())
    number = text_of(memory)
    if factor is None or not (number.isascii() and number.isdigit()) or len(number) > 18:
        obstacles.append("its memory can't be read")
        return 0
    return int(number) * factor


def _vcpus(root: Element, obstacles: list[str]) -> int:
    number = text_of(first(root, "vcpu")) or "1"
    if not (number.isascii() and number.isdigit()) or not 0 < int(number[:9]) < 100_000:
        obstacles.append("its number of processors can't be read")
        return 1
    return int(number)


def _disks(root: Element, vm_id: str, host: HostDefaults, warnings: list[str]) -> tuple[Disk, ...]:
    disks = []
    for element in elements(first(root, "devices") or root, "disk"):
        target = attribute(first(element, "target"), "dev")
        device = element.getAttribute("device") or "disk"
        source = attribute(first(element, "source"), "file")
        if device != "disk":
            if source and _place(source, host) is None:
                warnings.append(
                    f"{device} {target}: {source} is on no storage domain; eject it before the VM "
                    "has to start on another host"
                )
            continue
        if first(element, "shareable") is not None:
            warnings.append(f"disk {target} is shareable: virtha can't tell who else writes to it")
        if first(element, "transient") is not None:
            warnings.append(f"disk {target} is transient: what is written is lost at each stop")
        disk = _disk(element, vm_id, target, source, host, warnings)
        if disk is not None:
            disks.append(disk)
    return tuple(disks)


def _disk(
    element: Element,
    vm_id: str,
    target: str,
    source: str,
    host: HostDefaults,
    warnings: list[str],
) -> Disk | None:
    kind = element.getAttribute("type") or "file"
    place = _place(source, host) if kind == "file" and source else None
    if kind == "network":
        source, place = _image(first(element, "source"), host)
    if place is None:
        what = source or f"a {kind} source"
        warnings.append(
            f"disk {target}: {what} is on no storage domain, so this VM can be restarted on this "
            "host only"
        )
        return None
    driver = first(element, "driver")
    format_text = attribute(driver, "type") or "raw"
    bus = attribute(first(element, "target"), "bus")
    if format_text not in tuple(DiskFormat) or bus not in _BUSES:
        warnings.append(f"disk {target}: format {format_text} on bus {bus} is left as it is")
        return None
    if attribute(driver, "cache") not in ("none", "directsync"):
        warnings.append(
            f"disk {target}: cache mode '{attribute(driver, 'cache') or 'default'}' lets this host "
            "write on after QEMU was killed; set cache='none' before relying on recovery elsewhere"
        )
    storage_domain_id, path = place
    return Disk(
        id=DiskId(_stable_id(vm_id, "disk", target)),
        name=target,
        storage_domain_id=storage_domain_id,
        path=path,
        format=DiskFormat(format_text),
        size_bytes=0,
        bus=bus,
        readonly=first(element, "readonly") is not None,
    )


def _place(source: str, host: HostDefaults) -> tuple[StorageDomainId, str] | None:
    """Storage domain and path inside it; of nested ones the innermost."""
    best: tuple[StorageDomainId, str] | None = None
    for storage_domain_id, directory in sorted(host.storage_paths.items()):
        prefix = directory.rstrip("/") + "/"
        inside = source.removeprefix(prefix)
        if inside == source or any(part in ("", ".", "..") for part in inside.split("/")):
            continue
        if best is None or len(inside) < len(best[1]):
            best = (storage_domain_id, inside)
    return best


def _image(
    source: Element | None, host: HostDefaults
) -> tuple[str, tuple[StorageDomainId, str] | None]:
    """What the source is in words, and its place where it is an image of a pool that is known here."""
    name = attribute(source, "name")
    if attribute(source, "protocol") != "rbd" or source is None:
        return name, None
    prefix, _, image = name.rpartition("/")
    monitors = {one.getAttribute("name") for one in elements(source, "host")}
    for storage_domain_id, pool in sorted(host.ceph_pools.items()):
        known = {_address(monitor) for monitor in pool.monitors}
        if pool.image_prefix == prefix and monitors & known and "@" not in image:
            return name, (storage_domain_id, image)
    return f"rbd:{name}", None


def _address(monitor: str) -> str:
    host, colon, _ = monitor.rpartition(":")
    return (monitor if not colon or monitor.endswith("]") else host).strip("[]")


def _nics(root: Element, vm_id: str, warnings: list[str]) -> tuple[Nic, ...]:
    nics = []
    for element in elements(first(root, "devices") or root, "interface"):
        kind = element.getAttribute("type")
        mac = attribute(first(element, "mac"), "address").lower()
        source = first(element, "source")
        bridge = attribute(source, "bridge")
        if kind == "bridge" and bridge and mac:
            nics.append(
                Nic(
                    id=NicId(_stable_id(vm_id, "nic", mac)),
                    bridge=bridge,
                    mac=mac,
                    model=attribute(first(element, "model"), "type") or "virtio",
                )
            )
            continue
        where = attribute(source, "network") or attribute(source, "dev") or bridge
        warnings.append(
            f"network card {mac or '(no address)'} is on {kind} '{where}', which other hosts may "
            "not have; a bridge can be checked"
        )
    return tuple(nics)


def _hidden_disks(root: Element) -> list[str]:
    """Disks in QEMU's own arguments: no claim, no look and no fence would know of them, and the VM may be started elsewhere."""
    words = {
        argument.getAttribute("value").lstrip("-").partition("=")[0]
        for one in elements(root)
        if one.namespaceURI == _QEMU and one.localName == "commandline"
        for argument in elements(one)
        if argument.localName == "arg"
    }
    return [
        f"QEMU's own argument -{word} opens a disk that virtha can't see: write it as <disk>, or leave it out"
        for word in sorted(words & _DISK_OPTIONS)
    ]


def _warn_of_what_stays_behind(root: Element, warnings: list[str]) -> None:
    """What ties the VM to this host."""
    devices = first(root, "devices") or root
    for tag, words in (
        ("hostdev", "a device of this host is passed through"),
        ("filesystem", "a directory of this host is shared into it"),
        ("tpm", "its TPM's state is on this host only"),
        ("shmem", "it shares memory with other programs of this host"),
        ("redirdev", "USB devices may be redirected into it"),
    ):
        if elements(devices, tag):
            warnings.append(f"{words} (<{tag}>)")
    nvram = text_of(first(root, "os", "nvram"))
    if nvram:
        warnings.append(f"its UEFI variables are in {nvram}, on this host only")


def _stable_id(vm_id: str, kind: str, name: str) -> str:
    """The same id at each scan: version 8 (RFC 9562, "custom") of a hash; pure rooms draw no ids."""
    digest = bytearray(hashlib.sha256(f"{vm_id}/{kind}/{name}".encode()).digest()[:16])
    digest[6] = 0x80 | (digest[6] & 0x0F)
    digest[8] = 0x80 | (digest[8] & 0x3F)
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
