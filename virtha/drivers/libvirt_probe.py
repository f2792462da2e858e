"""What this host can really do: found out by trying, cached until libvirt or QEMU change."""

import ctypes
import fcntl
import os
import platform
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from xml.dom.minidom import Element

import libvirt
import msgspec
import structlog
from defusedxml.minidom import parseString

from virtha.model.machine import MachineType
from virtha.model.value import Value
from virtha.model.watchdog import WatchdogModel, models_that_fit

_log = structlog.get_logger(__name__)


class Guest(Value, frozen=True, kw_only=True):
    """What libvirt's capabilities say of guests of this host's own architecture."""

    architecture: str
    emulator: str
    machines: tuple[str, ...]
    accelerators: tuple[str, ...]
    """``kvm``, ``qemu``."""


class Probed(Value, frozen=True, kw_only=True):
    """``key``: the versions that the answers hold for."""

    key: str
    domain_type: str
    watchdog_models: tuple[WatchdogModel, ...]


def read_guest(capabilities_xml: str) -> Guest:
    """Raises ValueError when libvirt's capabilities name no guest of the host's architecture."""
    root = parseString(capabilities_xml, forbid_dtd=True).documentElement
    assert root is not None, "parsed documents have a root"
    host_architecture = _texts(root.getElementsByTagName("host")[0], "arch")[0]
    for guest in root.getElementsByTagName("guest"):
        for arch in guest.getElementsByTagName("arch"):
            if arch.getAttribute("name") != host_architecture:
                continue
            domains = arch.getElementsByTagName("domain")
            return Guest(
                architecture=host_architecture,
                emulator=_texts(arch, "emulator")[0],
                machines=tuple(dict.fromkeys(_texts(arch, "machine"))),
                accelerators=tuple(dict.fromkeys(item.getAttribute("type") for item in domains)),
            )
    raise ValueError(f"libvirt runs no guests of architecture {host_architecture}")


def _texts(element: Element, tag: str) -> list[str]:
    found = []
    for child in element.getElementsByTagName(tag):
        text = child.firstChild
        data = getattr(text, "data", "")
        if data.strip():
            found.append(data.strip())
    return found


def probe(
    connection: "libvirt.virConnect",
    guest: Guest,
    *,
    wanted_type: str,
    cache: Path | None,
) -> Probed:
    """Slow the first time (a second or two). ``cache``: a file; None asks anew each time."""
    key = _key(connection, guest, wanted_type)
    if cache is not None:
        known = _read_cache(cache)
        if known is not None and known.key == key:
            return known
    domain_type = wanted_type if wanted_type != "auto" else fastest_domain_type(guest)
    found = Probed(
        key=key,
        domain_type=domain_type,
        watchdog_models=accepted_watchdogs(connection, guest, domain_type),
    )
    if cache is not None:
        _write_cache(cache, found)
    return found


def _key(connection: "libvirt.virConnect", guest: Guest, wanted_type: str) -> str:
    emulator = Path(guest.emulator)
    changed = emulator.stat().st_mtime_ns if emulator.exists() else 0
    kvm = Path("/dev/kvm").exists()
    return (
        f"3 libvirt={connection.getLibVersion()} qemu={connection.getVersion()} "
        f"emulator={guest.emulator}@{changed} kernel={platform.release()} kvm={kvm} "
        f"accelerators={','.join(guest.accelerators)} type={wanted_type}"
    )


def _read_cache(path: Path) -> Probed | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Probed)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("libvirt.probe.cache_unreadable", path=str(path), error=str(error))
        return None


def _write_cache(path: Path, found: Probed) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(found))
        temporary.replace(path)
    except OSError as error:
        # It only costs the next start a second.
        _log.warning("libvirt.probe.cache_unwritable", path=str(path), error=str(error))


def accepted_watchdogs(
    connection: "libvirt.virConnect", guest: Guest, domain_type: str
) -> tuple[WatchdogModel, ...]:
    """Our table, and what libvirt makes a command line of, and what this QEMU has built in (W2)."""
    accepted = []
    for model in WatchdogModel:
        for machine in MachineType:
            fitting = models_that_fit(
                guest.architecture, machine, libvirt_version=connection.getLibVersion()
            )
            if model in fitting and _libvirt_takes(connection, guest, domain_type, machine, model):
                accepted.append(model)
                break
    built_in = _built_in(guest.emulator)
    return tuple(model for model in accepted if model in built_in)


def _libvirt_takes(
    connection: "libvirt.virConnect",
    guest: Guest,
    domain_type: str,
    machine: MachineType,
    model: WatchdogModel,
) -> bool:
    """Translating to QEMU's arguments runs libvirt's own validation and leaves nothing behind."""
    xml = f"""<domain type='{domain_type}'><name>virtha-probe</name><memory unit='MiB'>64</memory>
      <os><type arch='{guest.architecture}' machine='{machine}'>hvm</type></os>
      <devices><emulator>{guest.emulator}</emulator><watchdog model='{model}' action='reset'/></devices>
      </domain>"""
    try:
        connection.domainXMLToNative("qemu-argv", xml, 0)
    except libvirt.libvirtError as error:
        _log.info(
            "libvirt.probe.watchdog_refused",
            model=model.value,
            machine=machine.value,
            error=error.get_error_message(),
        )
        return False
    return True


def _built_in(emulator: str) -> frozenset[WatchdogModel]:
    """Distributions leave devices out of QEMU; libvirt's validation doesn't look for these."""
    try:
        asked = subprocess.run(
            [emulator, "-machine", "none", "-device", "help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("libvirt.probe.emulator_silent", emulator=emulator, error=str(error))
        return frozenset()
    listed = {model for model in WatchdogModel if f'name "{model}"' in asked.stdout}
    # itco is part of q35's south bridge, no device of its own.
    return frozenset(listed | {WatchdogModel.ITCO})


# How the accelerators are compared: 16-bit code at the reset vector, no firmware and no disk.
_LOOPS = 100_000_000
"""0.8 s under TCG on a slow core, 0.1 s on real KVM."""
_EXIT_PORT = 0xF4
_STARTUP_S = 0.3
"""What KVM may lose by its longer setup."""


def fastest_domain_type(guest: Guest) -> str:
    """``kvm`` where it is there and not slower than emulation.

    A KVM that is itself emulated (nested without hardware help) exists and is a hundred times slower
    than TCG: VMs would take minutes to boot and every timeout would fire.
    """
    if "kvm" not in guest.accelerators or not Path("/dev/kvm").exists():
        return "qemu"
    if guest.architecture != "x86_64" or "qemu" not in guest.accelerators:
        return "kvm"
    emulated_s = _loop_s(guest.emulator, "tcg", deadline_s=30.0)
    if emulated_s is None:
        return "kvm"
    native_s = _loop_s(guest.emulator, "kvm", deadline_s=emulated_s + _STARTUP_S)
    _log.info("libvirt.probe.accelerators", tcg_s=emulated_s, kvm_s=native_s)
    return "qemu" if native_s is None else "kvm"


def _loop_s(emulator: str, accelerator: str, *, deadline_s: float) -> float | None:
    """How long the loop took; None: it failed or took longer."""
    with tempfile.TemporaryDirectory(prefix="virtha-probe-") as directory:
        firmware = Path(directory) / "loop.bin"
        firmware.write_bytes(_loop_firmware(_LOOPS))
        command = [
            emulator, "-machine", "pc", "-accel", accelerator, "-m", "16", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-bios", str(firmware),
            "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=0x4",
        ]  # fmt: skip
        began = time.monotonic()
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=deadline_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        # isa-debug-exit ends QEMU with (value << 1) | 1; anything else never reached the loop's end.
        return time.monotonic() - began if ended.returncode == 1 else None


def _loop_firmware(loops: int) -> bytes:
    """64 KiB that the processor begins at F000:FFF0."""
    code = b"\x66\xb9" + loops.to_bytes(4, "little")  # mov ecx, loops
    code += b"\x66\x49\x75\xfc"  # again: dec ecx; jnz again
    code += b"\xb0\x00" + bytes((0xE6, _EXIT_PORT))  # mov al, 0; out port, al
    code += b"\xf4\xeb\xfd"  # stop: hlt; jmp stop
    firmware = bytearray(65_536)
    firmware[: len(code)] = code
    firmware[0xFFF0:0xFFF5] = b"\xea\x00\x00\x00\xf0"  # jmp F000:0000
    return bytes(firmware)


# linux/ethtool.h, linux/sockios.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x00000003
_DRVINFO_BYTES = 196


def bridges() -> tuple[str, ...]:
    """Bridges of our own network namespace: by ioctl, for /sys may show another namespace's."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            if _driver(control, name) in ("bridge", "openvswitch"):
                found.append(name)
    return tuple(sorted(found))


def _driver(control: socket.socket, interface: str) -> str:
    answer = ctypes.create_string_buffer(
        struct.pack("I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"), _DRVINFO_BYTES
    )
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(answer)).ljust(40, b"\0")
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    except OSError:
        # Gone in the meantime, or a kind without a driver: no bridge.
        return ""
    return answer.raw[4:36].split(b"\0", 1)[0].decode("ascii", "replace")
