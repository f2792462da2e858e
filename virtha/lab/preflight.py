"""What a lab needs of the machine, checked before anything is touched (`virtha lab check`)."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from virtha.model.errors import Failed
from virtha.model.value import Value

PROGRAMS: dict[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "libvirtd": "libvirt-daemon",
    "virtlogd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "bindfs": "bindfs",
    "ipmi_sim": "openipmi",
    "ipmitool": "ipmitool",
    "busybox": "busybox-static",
    "qemu-ga": "qemu-guest-agent",
    "syslinux": "syslinux",
    "mformat": "mtools",
    "mcopy": "mtools",
    "dpkg-deb": "dpkg",
}
"""Program -> Debian package."""

FILES: dict[str, str] = {
    "/usr/lib/syslinux/mbr/mbr.bin": "syslinux-common",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so": (
        "libvirt-daemon-driver-qemu"
    ),
    "/etc/libvirt/libvirtd.conf": "libvirt-daemon-system",
}
"""File -> Debian package."""


class Check(Value, frozen=True, kw_only=True):
    name: str
    holds: bool
    detail: str
    package: str = ""
    """The Debian package that would mend it."""


def checks() -> tuple[Check, ...]:
    """Every requirement with its answer; nothing is changed."""
    found = [
        Check(name="root", holds=os.geteuid() == 0, detail="namespaces and mounts need root"),
        Check(
            name="fuse",
            holds=Path("/dev/fuse").exists(),
            detail="/dev/fuse: each host sees shared storage through FUSE",
        ),
        Check(
            name="bridges",
            holds=_can(["unshare", "--net", "ip", "link", "add", "t0", "type", "bridge"]),
            detail="network namespaces and bridges",
        ),
        Check(
            name="pid namespaces",
            holds=_can(["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"]),
            detail="mount, UTS, IPC and PID namespaces",
        ),
    ]
    for program, package in PROGRAMS.items():
        there = shutil.which(program, path=_search_path()) is not None
        found.append(Check(name=program, holds=there, detail="program", package=package))
    for file, package in FILES.items():
        found.append(
            Check(name=Path(file).name, holds=Path(file).exists(), detail=file, package=package)
        )
    found += [
        Check(
            name=module,
            holds=importlib.util.find_spec(module) is not None,
            detail="Python package: pip install 'virtha[agent,server]'",
        )
        for module in ("libvirt", "litestar", "sqlalchemy")
    ]
    return tuple(found)


def require() -> None:
    """Raises Failed that names all that is missing, with the line that mends it."""
    missing = [check for check in checks() if not check.holds]
    if not missing:
        return
    raise Failed(
        "this machine can't run a lab; missing: "
        + ", ".join(f"{check.name} ({check.detail})" for check in missing),
        fix=fix_for(missing),
    )


def fix_for(missing: list[Check]) -> str:
    packages = sorted({check.package for check in missing if check.package})
    if packages:
        return "run: apt-get update && apt-get install -y --no-install-recommends " + " ".join(
            packages
        )
    return "; ".join(check.detail for check in missing)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def _can(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
