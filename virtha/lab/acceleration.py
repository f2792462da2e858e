"""Whether this machine's KVM is any good: found out once by booting the tiny guest, then remembered.

`/dev/kvm` can be there and yet be emulated itself, so slowly that a guest needs minutes for what
plain emulation (TCG) does in seconds.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from virtha.lab.image import Say, cache_directory

KVM_TIMEOUT_S = 8.0
"""TCG boots the tiny guest in 5 s here; a KVM that needs longer is none to use."""


def accelerator(image: Path, say: Say) -> str:
    """``kvm`` or ``qemu`` (libvirt's domain types)."""
    if not Path("/dev/kvm").exists():
        return "qemu"
    machine = f"{platform.release()} {_processor()}"
    remembered = cache_directory() / f"kvm-{hashlib.sha256(machine.encode()).hexdigest()[:16]}"
    if remembered.exists():
        return remembered.read_text().strip()
    say("trying whether KVM is faster than emulation")
    found = "kvm" if _boots_with_kvm(image) else "qemu"
    # Whole: somebody else may look at this moment.
    new = remembered.with_name(f"{remembered.name}.{os.getpid()}")
    new.write_text(f"{found}\n")
    new.replace(remembered)
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line
    return ""


def _boots_with_kvm(image: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="virtha-kvm-") as work:
        serial = Path(work, "serial")
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "q35,accel=kvm", "-m", "128", "-nodefaults"),
                *("-display", "none", "-snapshot", "-serial", f"file:{serial}"),
                *("-drive", f"file={image},if=virtio,format=qcow2"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + KVM_TIMEOUT_S
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(FileNotFoundError):
                    if b"tiny: boot" in serial.read_bytes():
                        return True
                time.sleep(0.1)
            return False
        finally:
            process.kill()
            process.wait(timeout=10)
