"""What a watchdog on this host is worth: whether the host is itself a VM, and whether it may be suspended."""

from pathlib import Path

from virtha.sentinel.lease_events import HostNature

SLEEPS = ("sleep", "suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate")


def read_nature(root: Path = Path("/"), *, watchdog_is_real_because: str = "") -> HostNature:
    return HostNature(
        is_virtual=_is_virtual(root),
        watchdog_is_real_because=watchdog_is_real_because,
        suspend_blocked=_suspend_blocked(root),
    )


def _is_virtual(root: Path) -> bool | None:
    """The processor says so to every guest (CPUID leaf 1, ECX bit 31), and so does the kernel. None: unreadable."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    told = [line.partition(":")[2] for line in lines if line.startswith("flags")]
    flags = {word for words in told for word in words.split()}
    if not flags:
        return None  # no x86: another way to tell is missing
    return "hypervisor" in flags or (root / "sys/hypervisor/type").exists()


def _suspend_blocked(root: Path) -> bool:
    """The kernel can't, or each of systemd's ways to it is masked."""
    try:
        if not (root / "sys/power/state").read_text(encoding="ascii").split():
            return True
    except OSError:
        return True  # built without
    return all(_is_masked(root / f"etc/systemd/system/{name}.target") for name in SLEEPS)


def _is_masked(unit: Path) -> bool:
    try:
        return str(unit.readlink()) == "/dev/null"
    except OSError:
        return False
