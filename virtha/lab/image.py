"""Builds `tiny`, the lab's guest: a bootable disk image made of Debian's own packages.

Kernel and modules come out of `linux-image-…-amd64` (the *cloud* kernel has no i6300esb), busybox and
the guest agent from what is installed. The disk is what users have: a partition table, a boot loader,
a file system, so that a guest boots by the BIOS from its disk, on `pc` and on `q35` alike. It is put
together with mtools: no mount, no loop device. The kernel is unpacked beforehand (``kernel``).
"""

import hashlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from virtha.lab import archive, guest_files, kernel
from virtha.lab.commands import run
from virtha.model.errors import Failed

SECTOR = 512
PARTITION_START = 2048
"""First sector of the partition, as every partitioning tool aligns it (1 MiB)."""
DISK_SECTORS = 48 * 1024 * 1024 // SECTOR
FAT16_LBA = 0x0E
UNPACK_S = 900
"""Eight seconds of a processor; a machine with much other work was seen to need more than two minutes for them."""

_INPUT_PACKAGES = ("busybox-static", "qemu-guest-agent", "libglib2.0-0", "libc6", "syslinux")

Say = Callable[[str], None]


def cache_directory() -> Path:
    """Where images are kept: ``VIRTHA_CACHE``, else the user's cache directory (XDG)."""
    if own := os.environ.get("VIRTHA_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "virtha"


def tiny_image(say: Say = lambda _text: None) -> Path:
    """The path of tiny.qcow2, built now if its inputs changed. Raises Failed."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    kernel_package = _kernel_package(cache, say)
    target = cache / f"tiny-{_inputs_digest(kernel_package)}.qcow2"
    if not target.exists():
        say(f"building the guest image from {kernel_package.name}")
        # Built aside, then renamed: two labs that begin at once both end up with a whole image.
        with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as work:
            built = _build(Path(work), kernel_package)
            built.replace(target)
        for old in cache.glob("tiny-*.qcow2"):
            if old != target:
                old.unlink(missing_ok=True)
    return target


def _inputs_digest(kernel_package: Path) -> str:
    """Names everything the image is made of: packages by version, our own part by content."""
    versions = run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *_INPUT_PACKAGES],
        fix="see 'virtha lab check'",
    )
    own = (
        b"".join(
            Path(str(module.__file__)).read_bytes() for module in (archive, guest_files, kernel)
        )
        + Path(__file__).read_bytes()
    )
    digest = hashlib.sha256(f"{kernel_package.name}\n{versions}".encode() + own)
    return digest.hexdigest()[:16]


def _kernel_package(cache: Path, say: Say) -> Path:
    """The kernel's .deb: the one in the cache, else Debian's present one, downloaded."""
    kept = sorted(cache.glob("linux-image-*_amd64.deb"))
    if kept:
        return kept[-1]
    say("downloading Debian's kernel package")
    try:
        name = _kernel_package_name()
    except Failed:
        run(["apt-get", "update", "-q"], timeout_s=120)
        name = _kernel_package_name()
    with tempfile.TemporaryDirectory(dir=cache, prefix="kernel-") as work:
        run(["apt-get", "download", "-q", name], cwd=Path(work), timeout_s=300)
        (found,) = Path(work).glob("*.deb")
        return found.replace(cache / found.name)


def _kernel_package_name() -> str:
    text = run(["apt-cache", "depends", "linux-image-amd64"])
    match = re.search(r"Depends: (linux-image-[0-9][^\s]*-amd64)\s", text)
    if match is None:
        raise Failed("apt knows no kernel package", fix="run 'apt-get update'")
    return match.group(1)


def _build(work: Path, kernel_package: Path) -> Path:
    unpacked = work / "kernel"
    # Documentation and most drivers are left in the package: writing them would take seconds.
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", kernel_package], stdout=subprocess.PIPE
    ) as tar:
        unpacked.mkdir()
        wanted = ["./boot/vmlinuz-*"] + [f"*/{name}.ko" for name in _module_closure_names()]
        try:
            unpack = subprocess.run(
                ["tar", "-x", "-C", unpacked, "--wildcards", *wanted],
                stdin=tar.stdout,
                capture_output=True,
                text=True,
                check=False,
                timeout=UNPACK_S,
            )
        except subprocess.TimeoutExpired as error:
            tar.kill()
            raise Failed(f"{kernel_package} is not unpacked after {UNPACK_S} s") from error
        if tar.wait(timeout=UNPACK_S) != 0 or unpack.returncode != 0:
            raise Failed(f"can't unpack {kernel_package}: {unpack.stderr.strip()}")
    (packed,) = (unpacked / "boot").glob("vmlinuz-*")
    vmlinuz = work / "vmlinuz"
    vmlinuz.write_bytes(kernel.unpacked(packed.read_bytes()))
    initrd = work / "initrd"
    initrd.write_bytes(_initramfs(unpacked))
    raw = work / "tiny.raw"
    _make_disk(raw, work, vmlinuz, initrd)
    built = work / "tiny.qcow2"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, built], timeout_s=60)
    return built


_DEPENDED_ON = (
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "failover",
    "net_failover",
    "watchdog",
    "pvpanic",
)
"""What MODULES depend on in Debian 12's kernel; `load_order` fails if one more is needed."""


def _module_closure_names() -> tuple[str, ...]:
    return (*_DEPENDED_ON, *guest_files.MODULES)


def load_order(modules: dict[str, Path]) -> list[str]:
    """Modules with what each depends on before it. ``modules``: name with '_' -> file."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name not in modules:
            raise Failed(f"kernel module {name} is needed and not in the image's list")
        match = re.search(rb"\0depends=([^\0]*)\0", modules[name].read_bytes())
        for needed in (match.group(1).decode() if match else "").split(","):
            if needed:
                visit(needed.replace("-", "_"))
        order.append(name)

    for wanted in guest_files.MODULES:
        visit(wanted.replace("-", "_"))
    return order


def _initramfs(unpacked: Path) -> bytes:
    tree = archive.Archive()
    for path in ("dev", "proc", "sys", "run", "tmp", "bin", "sbin", "usr/bin", "usr/sbin"):
        tree.directory(path)
    tree.character_device("dev/console", 5, 1)
    tree.character_device("dev/null", 1, 3)
    busybox = Path("/bin/busybox")
    tree.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in run([busybox, "--list-full"]).split():
        if applet != "bin/busybox":
            tree.symlink(applet, "/bin/busybox")
    tree.symlink("init", "/bin/busybox")
    for path, source in _program_with_libraries(Path("/usr/sbin/qemu-ga")).items():
        tree.file(path, source.read_bytes(), 0o755)
    modules = {path.stem.replace("-", "_"): path for path in unpacked.rglob("*.ko")}
    order = load_order(modules)
    for name in order:
        tree.file(f"lib/modules/{name}.ko", modules[name].read_bytes(), 0o644)
    tree.file("lib/modules/order", "".join(f"{name}\n" for name in order).encode(), 0o644)
    for path, (mode, text) in guest_files.FILES.items():
        tree.file(path, text.encode(), mode)
    return tree.to_bytes()


def _program_with_libraries(program: Path) -> dict[str, Path]:
    """Path in the guest -> file here, for a program and all that it is linked with (ldd)."""
    found = {str(program).lstrip("/"): program}
    for line in run(["ldd", program]).splitlines():
        match = re.search(r"(/\S+) \(0x", line)
        if match:
            library = Path(match.group(1))
            found[str(library).lstrip("/")] = library.resolve()
    return found


def _make_disk(raw: Path, work: Path, vmlinuz: Path, initrd: Path) -> None:
    """Partition table, FAT16, syslinux: bootable by any BIOS."""
    offset = PARTITION_START * SECTOR
    with raw.open("wb") as disk:
        disk.truncate(DISK_SECTORS * SECTOR)
    volume = f"{raw}@@{offset}"
    size = DISK_SECTORS - PARTITION_START
    # Geometry and hidden sectors must be right in the FAT's header: the boot sector computes with it.
    run(
        [
            *("mformat", "-i", volume, "-T", str(size), "-H", str(PARTITION_START)),
            *("-h", "16", "-s", "63", "-c", "8", "-v", "TINY", "::"),
        ]
    )
    config = work / "syslinux.cfg"
    config.write_text(guest_files.SYSLINUX_CONFIG)
    for source, name in ((vmlinuz, "vmlinuz"), (initrd, "initrd"), (config, "syslinux.cfg")):
        run(["mcopy", "-i", volume, source, f"::{name}"])
    run(["syslinux", "--install", "--offset", str(offset), raw])
    boot_code = Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes()
    if len(boot_code) > 440:
        raise Failed("syslinux's mbr.bin is larger than a boot sector's code area")
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", FAT16_LBA, b"\xfe\xff\xff", PARTITION_START, size
    )
    table = boot_code.ljust(446, b"\0") + entry + b"\0" * 48 + b"\x55\xaa"
    with raw.open("r+b") as disk:
        disk.write(table)
