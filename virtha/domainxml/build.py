"""The libvirt domain of a VM that virtha made itself. Pure: the same VM gives the same text.

Checked against libvirt 9.0's schema and daemon (tests/unit/domainxml, tests/contract).
"""

import re
from xml.etree.ElementTree import Element, indent, register_namespace, tostring

from virtha.domainxml.elements import (
    NAMESPACE,
    add,
    channel_element,
    cpu_element,
    effective_watchdog,
    make,
    metadata_element,
    panic_element,
    rng_element,
    serial_element,
    watchdog_element,
)
from virtha.domainxml.host_defaults import HostDefaults
from virtha.model.errors import InvalidInput, Refused
from virtha.model.host import CephPool
from virtha.model.machine import MachineType
from virtha.model.vm import Disk, Nic, Vm

register_namespace("virtha", NAMESPACE)

BUS_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
_BUSES: dict[MachineType, tuple[str, ...]] = {
    MachineType.Q35: ("virtio", "scsi", "sata"),
    MachineType.PC: ("virtio", "scsi", "sata", "ide"),
    MachineType.S390_CCW: ("virtio", "scsi"),
}


_IMAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

SPARE_PORTS = 8
_OWN_PORTS_MAX = 4
"""Of balloon, channel, random numbers and SCSI controller."""


def build_domain(vm: Vm, host: HostDefaults) -> str:
    """The domain XML of ``vm`` on ``host``.

    Raises InvalidInput: a disk on a storage domain that this host doesn't have, with a path that
    leaves it, or on a bus that the machine lacks.
    """
    domain = make("domain", {"type": host.domain_type})
    add(domain, "name", text=vm.name)
    add(domain, "uuid", text=vm.id)
    if vm.description:
        add(domain, "description", text=vm.description)
    add(domain, "metadata").append(metadata_element(vm))
    # libvirt counts in KiB; rounding down would give the guest less than was promised.
    add(domain, "memory", {"unit": "KiB"}, str(-(-vm.memory_bytes // 1024)))
    add(domain, "vcpu", {"placement": "static"}, str(vm.vcpus))
    _add_firmware_and_processor(domain, vm, host)
    # A restart after a crash is the sentinel's to decide; libvirt's own would hide it from us.
    add(domain, "on_poweroff", text="destroy")
    add(domain, "on_reboot", text="restart")
    add(domain, "on_crash", text="destroy")
    if vm.machine is not MachineType.S390_CCW:
        # A guest that suspends itself looks like one that hangs.
        power = add(domain, "pm")
        add(power, "suspend-to-mem", {"enabled": "no"})
        add(power, "suspend-to-disk", {"enabled": "no"})
    domain.append(_devices(vm, host))
    indent(domain)
    return tostring(domain, encoding="unicode") + "\n"


def _add_firmware_and_processor(domain: Element, vm: Vm, host: HostDefaults) -> None:
    system = add(domain, "os")
    add(system, "type", {"arch": vm.architecture, "machine": vm.machine.value}, "hvm")
    add(system, "boot", {"dev": "hd"})
    if vm.machine is not MachineType.S390_CCW:
        features = add(domain, "features")
        add(features, "acpi")
        add(features, "apic")
    processor = cpu_element(host.cpu, host.domain_type)
    if processor is not None:
        domain.append(processor)
    add(domain, "clock", {"offset": "utc"})


def _devices(vm: Vm, host: HostDefaults) -> Element:
    devices = make("devices")
    _append_disks(devices, vm, host)
    devices.extend(nic_element(nic) for nic in vm.nics)
    if vm.machine is MachineType.S390_CCW:
        console = add(devices, "console", {"type": "pty"})
        add(console, "log", {"file": host.serial_log(vm.id), "append": "on"})
        add(console, "target", {"type": "sclp", "port": "0"})
    else:
        devices.append(serial_element(host.serial_log(vm.id)))
    devices.append(channel_element())
    # For screenshots and consoles. It has no password, so not on the network, be it the loopback's: any local user could
    # connect. libvirt names the socket, in a directory that only QEMU's user and root may enter.
    graphics = add(devices, "graphics", {"type": "vnc"})
    add(graphics, "listen", {"type": "socket"})
    video = add(devices, "video")
    add(video, "model", {"type": "virtio" if vm.machine is MachineType.S390_CCW else "vga"})
    watchdog = effective_watchdog(vm, host)
    if watchdog is not None:
        devices.append(watchdog_element(watchdog))
    add(devices, "memballoon", {"model": "virtio"})
    if host.rng is not None:
        devices.append(rng_element(host.rng))
    devices.append(panic_element(vm.machine))
    if vm.machine is MachineType.Q35:
        # Each takes one device while the guest runs; by itself libvirt (9.0) leaves room for one only.
        add(devices, "controller", {"type": "pci", "index": "0", "model": "pcie-root"})
        for _ in range(SPARE_PORTS + _OWN_PORTS_MAX + len(vm.disks) + len(vm.nics)):
            add(devices, "controller", {"type": "pci", "model": "pcie-root-port"})
    return devices


def _append_disks(devices: Element, vm: Vm, host: HostDefaults) -> None:
    used: dict[str, int] = {}
    for disk in vm.disks:
        allowed = _BUSES[vm.machine]
        if disk.bus not in allowed:
            raise InvalidInput(
                f"machine type {vm.machine} has no {disk.bus} bus",
                field=f"disks.{disk.name}.bus",
                allowed=allowed,
                fix="choose one of these buses",
            )
        prefix = BUS_PREFIX[disk.bus]
        index = used.get(prefix, 0)
        used[prefix] = index + 1
        devices.append(disk_element(disk, prefix + letters(index), host))
    if any(disk.bus == "scsi" for disk in vm.disks):
        add(devices, "controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"})


def disk_path(disk: Disk, host: HostDefaults) -> str:
    """The disk's absolute path on this host. Raises InvalidInput as ``build_domain`` does, Refused where it has none."""
    if disk.storage_domain_id in host.ceph_pools:
        raise Refused(
            f"{disk.name} is an image of a Ceph pool, no file",
            field=f"disks.{disk.name}",
            fix="do that while the VM is down, with 'rbd'",
        )
    directory = host.storage_paths.get(disk.storage_domain_id)
    if directory is None:
        raise InvalidInput(
            f"storage domain {disk.storage_domain_id} is not known on this host",
            field=f"disks.{disk.name}.storage_domain_id",
            fix="wait until the host has its settings, or check the storage domain's cluster",
        )
    parts = disk.path.split("/")
    if not disk.path or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(
            f"'{disk.path}' is not a path inside the storage domain",
            code="problem.disk.outside",
            field=f"disks.{disk.name}.path",
            fix="give a relative path without '..', for example vms/web1/root.qcow2",
        )
    return "/".join((directory.rstrip("/"), *parts))


def disk_element(disk: Disk, target: str, host: HostDefaults) -> Element:
    pool = host.ceph_pools.get(disk.storage_domain_id)
    path = "" if pool is not None else disk_path(disk, host)
    # cache=none: dirty pages of a killed QEMU would still be written out by the host's kernel
    # afterwards, behind the back of the next incarnation (safety.md, section 3). Threads, not
    # native: io_submit blocks the whole VM on writes that allocate in a file.
    buffered = disk.storage_domain_id in host.buffered_storage
    driver = {
        "name": "qemu",
        "type": disk.format.value,
        "cache": "writethrough" if buffered else "none",
        # S6: a VM that meets an I/O error waits for its policy, it doesn't pass the error on.
        "error_policy": "stop",
        "discard": "unmap",
    }
    element = make("disk", {"type": "file" if pool is None else "network", "device": "disk"})
    add(element, "driver", driver)
    if pool is None:
        add(element, "source", {"file": path})
    else:
        _append_image(element, disk, pool)
    add(element, "target", {"dev": target, "bus": disk.bus})
    if disk.readonly:
        add(element, "readonly")
    add(element, "serial", text=disk.id)
    return element


def _append_image(element: Element, disk: Disk, pool: CephPool) -> None:
    """An RBD image. librbd takes its exclusive lock with the first write; who had it before is shut out first."""
    if not _IMAGE.fullmatch(disk.path):
        raise InvalidInput(
            f"'{disk.path}' is no name of an image",
            code="problem.disk.outside",
            field=f"disks.{disk.name}.path",
            fix="give a name without '/', '@' and ':', for example web1-root",
        )
    if pool.user is not None:
        auth = add(element, "auth", {"username": pool.user})
        add(auth, "secret", {"type": "ceph", "uuid": disk.storage_domain_id})
    name = f"{pool.image_prefix}/{disk.path}"
    source = add(element, "source", {"protocol": "rbd", "name": name})
    for monitor in pool.monitors:
        host, colon, port = monitor.rpartition(":")
        plain = not colon or monitor.endswith("]")
        address = (monitor if plain else host).strip("[]")
        add(source, "host", {"name": address} | ({} if plain else {"port": port}))


def nic_element(nic: Nic) -> Element:
    element = make("interface", {"type": "bridge"})
    add(element, "mac", {"address": nic.mac})
    add(element, "source", {"bridge": nic.bridge})
    add(element, "model", {"type": nic.model})
    return element


def letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: as Linux and libvirt name disks."""
    letters = ""
    index += 1
    while index > 0:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters
