"""The start gate as the agent sees it: its records, its grants, its installation (rules G2, G3).

``gate_hook`` judges; this module writes what it judges by. Grants lie on a tmpfs and carry the boot
id, so that no grant outlives its boot whichever of the two fails.
"""

import json
import os
import re
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

import msgspec
import structlog
from msgspec import UNSET

from virtha.agent import gate_disks, gate_hook
from virtha.agent.files import Files, read_bounded
from virtha.agent.paths import AgentPaths, boot_id_file
from virtha.model.errors import Failed
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.orders import HostSettings
from virtha.model.value import Value

HOOK_NAME = "virtha"
GRANT_BYTES_MAX = gate_hook.GRANT_BYTES_MAX
SPELLING_S = 1.0
KNOWN_SPELLING_S = 0.1
"""For all managed directories together, the second where each was followed before: the agent's disk thread
has other things to write."""
PROOF_VM_ID = VmId(gate_hook.PROOF_UUID)
"""The UUID of the domain whose start must be refused; it is always in the records."""

_DISKS = re.compile(r"^from virtha\.agent\.gate_disks import \([^)]*\)\n", re.MULTILINE)
_log = structlog.get_logger(__name__)

_SHELL = """\
#!/bin/sh
''':'
# Written by virtha; changes are lost. Only the begins of "prepare" and "migrate" are judged: a failing
# "reconnect" would make libvirtd kill a running VM, and a "release" must not hold up a stop.
case "${2-} ${3-}" in "prepare begin" | "migrate begin") ;; *) exit 0 ;; esac
[ -x "@PYTHON@" ] || {
  echo "virtha: the start gate has no Python at @PYTHON@; run 'virtha agent check'" \\
    "(gate.refused.unreadable)" >&2
  exit 1
}
exec "@PYTHON@" -I -S -E "$0" "$@"
'''
"""
"""Shell reads ``''':'`` as the command ``:``; Python reads all down to the last quotes as a text."""


class GrantState(StrEnum):
    GRANTED = "granted"
    """It may be started until ``until_ms``."""
    ARRIVING = "arriving"
    """A copy of it may come in from another host until ``until_ms``; nothing may be started."""
    HELD = "held"
    """Its processors run: the guardian leaves it alone, the gate starts nothing."""


class GrantFile(Value, frozen=True, kw_only=True):
    """One file per VM below ``/run/virtha/grants``; ``until_ms`` counts on CLOCK_BOOTTIME."""

    vm: VmId
    incarnation: Incarnation
    boot: BootId
    state: GrantState
    until_ms: int


class GateRecords:
    """What the hook judges by. Every write is atomic; nothing here waits for a storage domain."""

    def __init__(self, paths: AgentPaths, files: Files, *, boot: BootId) -> None:
        self._paths = paths
        self._files = files
        self._boot = boot
        self._spellings = Spellings()

    @property
    def records_path(self) -> Path:
        return self._paths.gate / "records.json"

    def write(self, settings: HostSettings, *, extra: dict[VmId, str] | None = None) -> bool:
        """Replace the records; False when they were right already.

        ``extra``: VMs that this agent knows of (its own records) and the settings may not yet.
        """
        managed: dict[str, str] = {PROOF_VM_ID: "virtha-gate-proof"}
        managed.update(dict.fromkeys(settings.foreign_vms, ""))
        managed.update((vm_id, name) for vm_id, name in (extra or {}).items())
        managed.update({held.vm.id: held.vm.name for held in settings.vms})
        content = {
            "format": 1,
            "installation": settings.installation_id,
            "managed": dict(sorted(managed.items())),
            "paths": sorted(self._paths_of(settings)),
        }
        body = json.dumps(content, indent=1).encode() + b"\n"
        data = b"%08x\n" % zlib.crc32(body) + body
        try:
            if self.records_path.read_bytes() == data:
                return False
        except OSError:
            pass  # absent or unreadable: written anew just below
        self._files.write_atomic(self.records_path, data)
        return True

    def _paths_of(self, settings: HostSettings) -> frozenset[str]:
        paths = dict.fromkeys(
            domain.path if domain.ceph is UNSET else domain.ceph.gate_path
            for domain in settings.storage_domains
        )
        spelled, complete = self._spellings.of(paths)
        if complete:
            return spelled
        # Refuses too much for as long as that storage hangs, should a domain have been removed.
        try:
            before = gate_hook.read_records(str(self.records_path))
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        return spelled if before is None else spelled | before.paths

    def grant(self, vm_id: VmId, incarnation: Incarnation, *, until_ms: int) -> None:
        """Allow one start. No fsync: it lies on a tmpfs, and no grant must survive a boot."""
        self._write_grant(vm_id, incarnation, GrantState.GRANTED, until_ms)

    def expect(self, vm_id: VmId, incarnation: Incarnation, *, until_ms: int) -> None:
        """Let one copy come in by a live migration; starts nothing."""
        self._write_grant(vm_id, incarnation, GrantState.ARRIVING, until_ms)

    def hold(self, vm_id: VmId, incarnation: Incarnation) -> None:
        """Its processors run, or are about to: from here on the file only keeps the guardian off."""
        self._write_grant(vm_id, incarnation, GrantState.HELD, 0)

    def revoke(self, vm_id: VmId) -> None:
        self._paths.grant(vm_id).unlink(missing_ok=True)
        self._paths.grant(vm_id).with_suffix(".comes").unlink(missing_ok=True)

    def released(self, vm_id: VmId, incarnation: Incarnation) -> None:
        """Take back the grant of that incarnation; a newer one stays.

        An older one goes too unless it is held: what bears it may run, and a held grant starts
        nothing. It goes when libvirt shows no QEMU of that VM.
        """
        grant = read_grant(self._paths.grant(vm_id))
        if grant is not None and grant.incarnation > incarnation:
            return
        older = grant is not None and grant.incarnation < incarnation
        if grant is not None and older and grant.state is GrantState.HELD:
            return
        self.revoke(vm_id)

    def grants(self) -> dict[VmId, GrantFile]:
        """All grants of this boot; a damaged file counts as none."""
        found = {}
        for path in sorted(self._paths.grants.glob("*.json")):
            grant = read_grant(path)
            if grant is not None and grant.boot == self._boot:
                found[grant.vm] = grant
        return found

    @property
    def complete(self) -> bool:
        """Whether each VM that may run has its file; else ``restored`` says so again."""
        return grants_complete(self._paths, self._boot)

    def restored(self) -> None:
        """From here on a missing file means no grant, also for the guardian. Raises OSError."""
        self._paths.grants.mkdir(parents=True, exist_ok=True)
        temporary = self._paths.grants_complete.with_suffix(".new")
        temporary.write_text(self._boot, encoding="ascii")
        temporary.replace(self._paths.grants_complete)

    def _write_grant(
        self, vm_id: VmId, incarnation: Incarnation, state: GrantState, until_ms: int
    ) -> None:
        content = GrantFile(
            vm=vm_id, incarnation=incarnation, boot=self._boot, state=state, until_ms=until_ms
        )
        path = self._paths.grant(vm_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(msgspec.json.encode(content))
        temporary.replace(path)


def grants_complete(paths: AgentPaths, boot: BootId) -> bool:
    """Since this boot's agent wrote its mark nobody removed the directory."""
    try:
        return paths.grants_complete.read_text(encoding="ascii").strip() == boot
    except (OSError, UnicodeDecodeError):
        return False


def spellings(path: str) -> tuple[str, ...]:
    """The path as configured, and without links: a VM may reach the domain by either.

    Its last part is looked at only if nothing is mounted there. May hang all the same where a part above
    it is a mounted file system that does not answer: only in a thread of its own (``_Spelling``).
    """
    plain = os.path.normpath(path)
    parent, _ = gate_hook.resolve(str(Path(plain).parent), frozenset())
    real = os.path.normpath(f"{parent}/{Path(plain).name}")
    if real not in _mount_points():
        real, _ = gate_hook.resolve(real, frozenset())
    return (plain, real) if real != plain else (plain,)


class _Spelling:
    """One look at a path, by a daemon thread that may hang with the storage."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._over = threading.Event()
        self._found: tuple[str, ...] = ()
        threading.Thread(target=self._look, name="virtha-spelling", daemon=True).start()

    def _look(self) -> None:
        try:
            self._found = spellings(self._path)
        except (OSError, ValueError) as error:
            _log.warning("a storage domain's path can't be followed", error=str(error))
            self._found = (os.path.normpath(self._path),)
        self._over.set()

    def result(self, timeout_s: float) -> tuple[str, ...] | None:
        """None: it hangs still."""
        return self._found if self._over.wait(timeout_s) else None


class Spellings:
    """All spellings of the managed directories, without ever waiting long for one of them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._under_way: dict[str, _Spelling] = {}

    def of(self, paths: Collection[str]) -> tuple[frozenset[str], bool]:
        """(spellings, whether none is missing). One that hangs counts as it was last known."""
        for path in paths:
            if path not in self._under_way:
                self._under_way[path] = _Spelling(path)
        known = all(path in self._known for path in paths)
        deadline = time.monotonic() + (KNOWN_SPELLING_S if known else SPELLING_S)
        complete = True
        found: set[str] = set()
        for path in paths:
            result = self._under_way[path].result(max(0.0, deadline - time.monotonic()))
            if result is not None:
                del self._under_way[path]
                self._known[path] = result
            complete = complete and path in self._known
            found |= {os.path.normpath(path), *self._known.get(path, ())}
        return frozenset(found), complete


def _mount_points() -> frozenset[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split(" ")[4].replace("\\040", " ") for line in lines)


def read_grant(path: Path) -> GrantFile | None:
    """None: no such file, or a damaged one."""
    try:
        return msgspec.json.decode(read_bounded(path, GRANT_BYTES_MAX), type=GrantFile)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def hook_text(paths: AgentPaths) -> str:
    """The hook as it is installed: shell front, then ``gate_disks`` and ``gate_hook`` with this host's paths."""
    disks = Path(gate_disks.__file__).read_text(encoding="utf-8")
    source, count = _DISKS.subn("", Path(gate_hook.__file__).read_text(encoding="utf-8"))
    assert count == 1, "the hook imports what is put into it"
    # Not the virtual environment's: removing that would refuse every start of an unmanaged VM too.
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    text = _SHELL.replace("@PYTHON@", python) + disks + source
    for mark, value in (
        ('"@STATE@"', str(paths.state.absolute())),
        ('"@RUN@"', str(paths.run.absolute())),
        ('"@BOOT_ID@"', str(boot_id_file().absolute())),
    ):
        text = text.replace(mark, json.dumps(value))
    return text


def hook_path(paths: AgentPaths) -> Path:
    return paths.hooks / "qemu.d" / HOOK_NAME


def gate_installed(paths: AgentPaths) -> str | None:
    """None: the hook is there as this version writes it; else what is wrong, in words."""
    path = hook_path(paths)
    try:
        present = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    if present != hook_text(paths):
        return f"{path} is not the one of this version"
    if not os.access(path, os.X_OK):
        return f"{path} is not executable"
    return None


def install_gate(paths: AgentPaths, files: Files) -> bool:
    """Copy the hook into libvirt's directory; True when it was not there before.

    libvirt looks for hooks once, when its daemon starts: True means that a running libvirtd must be
    restarted (VMs run on). Raises Failed when it can't be written.
    """
    path = hook_path(paths)
    is_new = not path.exists()
    if gate_installed(paths) is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, hook_text(paths).encode(), mode=0o755)
        path.chmod(0o755)  # the umask must not take the right to execute it
    except OSError as error:
        raise Failed(
            f"the start gate can't be written to {path}: {error.strerror}",
            fix="join as root, on a host with libvirt installed",
        ) from error
    return is_new


def uninstall_gate(paths: AgentPaths) -> None:
    hook_path(paths).unlink(missing_ok=True)
