# ruff: noqa: PTH103, PTH104, PTH108, PTH115, PTH118, PTH123
# (importing pathlib would double the time that this adds to every start of a VM)
"""virtha's start gate: libvirt runs this before it starts any QEMU (safety.md, rules G2 and G3).

Stand-alone on purpose: it must judge while the agent is stopped, half upgraded or gone, so it
imports only the standard library and judges by files only. It never asks libvirt (libvirt waits for
us) and never touches a storage domain (its file system may hang). ``gate.install_gate`` copies it
behind a few lines of shell to ``/etc/libvirt/hooks/qemu.d/virtha``.

    argv:   <domain name> prepare begin -     (before each start, and before a copy comes in)
            <domain name> migrate begin -     (before that one only, and first)
    stdin:  the domain's XML
    exit:   0 start, 1 refused (stderr says what to do, and a code gate.refused.*)
    leaves: one small file per refusal below /run/virtha/refusals, which the agent tells the server.
            Best effort, on a tmpfs, after the answer: what goes wrong with it changes nothing.

It decides in this order:
  1. a grant of this boot that has not run out, for this domain's UUID   -> start
     (of a copy that is to come from another host: only right after libvirt's ``migrate``, once)
  2. marked by our metadata, or managed by UUID                         -> refused, no grant
  3. a disk below a managed storage domain, or an image of its pool     -> refused, disk
     where a pool is managed: what may be such an image, and can't be told -> refused, disk
  4. records that can't be read, and the domain opens any file          -> refused, unreadable
  5. anything else is none of our business                              -> start
"""

import json
import os
import sys
import time
import zlib
from xml.parsers import expat

# Put into the installed file by ``gate.hook_text``: there is one file, replaced as a whole.
from virtha.agent.gate_disks import (
    DEPTH_MAX,
    device_images,
    image_path,
    images_in,
    no_doctype,
    read_file,
    volume_path,
)

STATE_DIRECTORY = "@STATE@"
RUN_DIRECTORY = "@RUN@"
BOOT_ID_FILE = "@BOOT_ID@"

NAMESPACE = "https://virtha.dev/domain/1"
XML_BYTES_MAX = 8 << 20
RECORDS_BYTES_MAX = 16 << 20
GRANT_BYTES_MAX = 65_536
PROOF_UUID = "f1a7e000-6a7e-4000-8000-000000000001"
"""The domain whose start must be refused; nobody needs to be told of that."""
REFUSALS_MAX = 256
"""Files in the agent's spool; refusals beyond are only counted, one byte each."""
UNCOUNTED_BYTES_MAX = 1 << 20
UNCOUNTED = "uncounted"
NAME_CHARACTERS_MAX = 128
TEXT_CHARACTERS_MAX = 512
COMES_MS = 10_000
"""libvirt makes the QEMU of a copy that comes in right after it asked ``migrate``."""
LINKS_MAX = 40
"""The kernel's own limit of symbolic links in one path."""


class Refusal(Exception):
    """The start is refused; ``code`` is of the registry."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.uuid = ""
        self.name = ""


class Domain:
    """What the gate has to know of one domain."""

    def __init__(self) -> None:
        self.uuid = ""
        self.name = ""
        self.marked = False
        self.paths: list[str] = []
        self.volumes: list[tuple[str, str]] = []
        """Disks that are named by a storage pool of libvirt's and their name in it."""
        self.unclear: list[str] = []
        """What may open an image of Ceph's, and does not say which one."""


class _Reader:
    """Collects a Domain while expat reads; nothing is kept of what the gate doesn't judge."""

    def __init__(self) -> None:
        self.domain = Domain()
        self._stack: list[str] = []
        self._text: list[str] | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._stack.append(tag)
        if len(self._stack) > DEPTH_MAX:
            raise ValueError("elements are nested too deep")
        if tag.startswith(NAMESPACE + " ") and "metadata" in self._stack:
            self.domain.marked = True
        if len(self._stack) == 2 and tag in ("uuid", "name"):
            self._text = []
        if tag.rpartition(" ")[2] == "arg":
            # <qemu:arg value='file=/srv/ds1/x.qcow2,if=virtio'/>: a disk that libvirt doesn't know.
            self._add_words(attributes.get("value", ""))
        elif "devices" in self._stack or "os" in self._stack:
            # Every file that a device opens: disk, backing file, mirror, file system, pflash, pmem.
            self.domain.paths.extend(v for v in attributes.values() if v.startswith("/"))
            if attributes.get("protocol") == "rbd":
                self.domain.paths.append(image_path(attributes.get("name", "")))
            if tag == "source" and "pool" in attributes and "volume" in attributes:
                self.domain.volumes.append((attributes["pool"], attributes["volume"]))
            if tag in ("nvram", "loader", "path"):
                self._text = []

    def _add_words(self, value: str) -> None:
        paths, unclear = images_in(value)
        self.domain.paths += paths
        self.domain.unclear += unclear
        for separator in '=:"':
            value = value.replace(separator, ",")
        self.domain.paths.extend(word for word in value.split(",") if word.startswith("/"))

    def end(self, tag: str) -> None:
        self._stack.pop()
        if self._text is None:
            return
        text, self._text = "".join(self._text).strip(), None
        if tag == "uuid" and len(self._stack) == 1:
            self.domain.uuid = text.lower()
        elif tag == "name" and len(self._stack) == 1:
            self.domain.name = text
        elif text.startswith("/"):
            self.domain.paths.append(text)

    def characters(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)


def read_domain(data: bytes) -> Domain:
    """Raises ValueError when ``data`` is no domain, too large, or declares entities."""
    if len(data) > XML_BYTES_MAX:
        raise ValueError(f"the XML is larger than {XML_BYTES_MAX} bytes")
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = no_doctype
    parser.EntityDeclHandler = no_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"the XML can't be read: {error}") from None
    if not _is_uuid(reader.domain.uuid):
        raise ValueError("the domain has no UUID")
    return reader.domain


def _is_uuid(text: str) -> bool:
    digits = text.replace("-", "")
    return len(text) == 36 and len(digits) == 32 and all(c in "0123456789abcdef" for c in digits)


class Records:
    """Who is managed (UUID -> name, here or on another host), and which directories are managed."""

    def __init__(self, managed: dict[str, str], paths: list[str]) -> None:
        self.managed = managed
        self.paths = frozenset(os.path.normpath(path) for path in paths)


def read_records(path: str) -> Records | None:
    """None: never written, so this host manages nothing yet. Raises ValueError, OSError when damaged."""
    try:
        data = read_file(path, RECORDS_BYTES_MAX)
    except FileNotFoundError:
        return None
    # First line: checksum of all that follows. A file that was cut short must not pass as a short list.
    checksum, _, body = data.partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(body):
        raise ValueError("checksum does not match")
    content = json.loads(body)
    managed, paths = content["managed"], content["paths"]
    if not isinstance(managed, dict) or not isinstance(paths, list):
        raise ValueError("not the gate's format")
    return Records(managed, paths)


def check_grant(
    path: str, uuid: str, boot: str, now_ms: int, operation: str = "prepare"
) -> str | None:
    """None: a valid grant; else the code that says why there is none."""
    try:
        content = json.loads(read_file(path, GRANT_BYTES_MAX))
        state, until_ms = content["state"], content["until_ms"]
        same_vm, same_boot = content["vm"] == uuid, content["boot"] == boot
    except (OSError, ValueError, KeyError, TypeError):
        return "gate.refused.no_grant"
    if not same_boot:
        return "gate.refused.other_boot"
    wanted = ("arriving",) if operation == "migrate" else ("granted", "arriving")
    # "held" belongs to a copy that ran already: it keeps the guardian off, it starts nothing.
    if not same_vm or state not in wanted or not isinstance(until_ms, int):
        return "gate.refused.no_grant"
    if now_ms >= until_ms:
        return "gate.refused.expired"
    if state == "granted":
        return None
    return _check_coming(path.removesuffix(".json") + ".comes", now_ms, operation)


def _check_coming(mark: str, now_ms: int, operation: str) -> str | None:
    """``migrate`` leaves a mark, which lets one ``prepare`` through. So this grant starts nothing by itself."""
    try:
        if operation == "migrate":
            with open(mark, "w", encoding="ascii") as file:
                file.write(str(now_ms))
            return None
        left_ms = int(read_file(mark, GRANT_BYTES_MAX))
        os.unlink(mark)
    except (OSError, ValueError):
        return "gate.refused.no_grant"
    return None if 0 <= now_ms - left_ms < COMES_MS else "gate.refused.no_grant"


def resolve(path: str, managed_paths: frozenset[str]) -> tuple[str, bool]:
    """(absolute path without '..' and links, whether it is in a managed directory).

    Follows links part by part and stops at the first managed directory: looking into that one could
    hang. A plain normpath would be wrong, for ``link/..`` is not where it seems to be.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    at, links = "", 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        at = f"{at}/{part}"
        if at in managed_paths:
            return _below(at, parts)
        try:
            target = os.readlink(at)
        except OSError:
            continue
        links += 1
        if links > LINKS_MAX:
            raise ValueError(f"too many links in {path}")
        at = "" if target.startswith("/") else at.rpartition("/")[0]
        parts = [p for p in target.split("/") if p not in ("", ".")] + parts
    return at or "/", False


def _below(managed: str, rest: list[str]) -> tuple[str, bool]:
    """Where ``rest`` leads from a managed directory; links in there are not looked at.

    With '..' in it the answer would depend on those links, so it counts as inside: the safe answer.
    """
    return os.path.normpath("/".join([managed, *rest])), True


def judge(
    data: bytes,
    state_directory: str,
    run_directory: str,
    boot: str,
    now_ms: int,
    operation: str = "prepare",
) -> None:
    """Raises Refusal; returns when the start may go on. ``now_ms``: CLOCK_BOOTTIME."""
    try:
        domain = read_domain(data)
    except ValueError as error:
        raise Refusal("gate.refused.unreadable", str(error)) from None
    try:
        _judge(domain, state_directory, run_directory, boot, now_ms, operation)
    except Refusal as refusal:
        refusal.uuid, refusal.name = domain.uuid, domain.name
        raise


def _judge(
    domain: Domain,
    state_directory: str,
    run_directory: str,
    boot: str,
    now_ms: int,
    operation: str,
) -> None:
    grant = os.path.join(run_directory, "grants", f"{domain.uuid}.json")
    why_not = check_grant(grant, domain.uuid, boot, now_ms, operation)
    if why_not is None:
        return
    name = domain.name or domain.uuid
    if domain.marked:
        raise _refused_managed(name, why_not)
    try:
        records = read_records(os.path.join(state_directory, "gate", "records.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_if_it_has_files(domain, name, error)
        return
    if records is None:
        return
    if domain.uuid in records.managed:
        raise _refused_managed(str(records.managed[domain.uuid] or name), why_not)
    _refuse_managed_paths(domain, name, records.paths)


def _refuse_if_it_has_files(domain: Domain, name: str, error: Exception) -> None:
    # Which directories are managed is no longer known, so any file may be a disk that a VM writes
    # elsewhere. Two writers are worse than a VM that starts a minute late.
    if domain.paths or domain.volumes or domain.unclear:
        raise Refusal(
            "gate.refused.unreadable",
            f"the gate's records can't be read ({error}), so {name} can't be told from a managed "
            "VM; start virtha's agent, it writes them anew",
        )


def _refuse_managed_paths(domain: Domain, name: str, managed_paths: frozenset[str]) -> None:
    pools = any(path.startswith("/rbd:") for path in managed_paths)
    paths, unclear = _all_paths(domain)
    for path in paths:
        try:
            used = _managed_place(path, managed_paths, pools, unclear)
        except ValueError as error:
            raise Refusal("gate.refused.disk", str(error)) from None
        if used:
            raise Refusal(
                "gate.refused.disk",
                f"{name} uses {used}, which belongs to a managed storage domain; move it to "
                "another directory, or make it a managed VM with 'virtha vm create'",
            )
    if unclear and pools:
        raise Refusal(
            "gate.refused.disk",
            f"{name} may use an image of a managed Ceph pool, and it can't be told: {'; '.join(unclear)}; name its disks in "
            "the domain's XML (protocol='rbd'), or start it on a host without such a pool",
        )


def _all_paths(domain: Domain) -> tuple[list[str], list[str]]:
    """With those of volumes; and what is unclear."""
    paths, unclear = list(domain.paths), list(domain.unclear)
    for pool, volume in domain.volumes:
        try:
            paths.append(volume_path(pool, volume))
        except ValueError as error:
            unclear.append(str(error))
    return paths, unclear


def _managed_place(
    path: str, managed_paths: frozenset[str], pools: bool, unclear: list[str]
) -> str:
    """What of a managed storage domain that path is; empty: nothing of it. Raises ValueError."""
    resolved, inside = resolve(path, managed_paths)
    if inside or not pools:
        return resolved if inside else ""
    try:
        images = device_images(resolved)
    except (OSError, ValueError) as error:
        unclear.append(str(error))
        return ""
    for image in images:
        if resolve(image, managed_paths)[1]:
            return f"{resolved} ({image})"
    return ""


def _refused_managed(name: str, code: str) -> Refusal:
    why = {
        "gate.refused.no_grant": f"{name} is managed",
        "gate.refused.expired": f"{name} is managed and the grant to start it ran out",
        "gate.refused.other_boot": f"{name} is managed and its grant is of an earlier boot",
    }[code]
    return Refusal(code, f"{why}; start it with 'virtha vm start {name}'")


def leave_note(refusal: Refusal, name: str, directory: str, now_ms: int) -> None:
    """One file of the refusal for the agent; ``now_ms``: UTC. Raises OSError.

    On a tmpfs, so that nothing here can wait for a disk. Whole or not at all: it gets its name last.
    """
    if refusal.uuid == PROOF_UUID:
        return
    os.makedirs(directory, mode=0o700, exist_ok=True)
    count = 0
    with os.scandir(directory) as entries:
        for _ in entries:
            count += 1
            if count >= REFUSALS_MAX:
                break
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    if count >= REFUSALS_MAX:
        descriptor = os.open(os.path.join(directory, UNCOUNTED), flags | os.O_APPEND, 0o600)
        try:
            if os.fstat(descriptor).st_size < UNCOUNTED_BYTES_MAX:
                os.write(descriptor, b".")
        finally:
            os.close(descriptor)
        return
    content = {
        "code": refusal.code,
        "uuid": refusal.uuid,
        "name": _bounded(refusal.name or name, NAME_CHARACTERS_MAX),
        "text": _bounded(str(refusal), TEXT_CHARACTERS_MAX),
        "at_ms": now_ms,
    }
    stem = f"{now_ms:016d}-{os.getpid()}"
    temporary = os.path.join(directory, f".{stem}.new")
    descriptor = os.open(temporary, flags | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, json.dumps(content).encode())
    finally:
        os.close(descriptor)
    os.rename(temporary, os.path.join(directory, f"{stem}.json"))


def _bounded(text: str, characters_max: int) -> str:
    """Without what is no UTF-8: a name of the command line may hold any bytes."""
    return text[:characters_max].encode("utf-8", "replace").decode()


def _answer(refusal: Refusal) -> None:
    """libvirt's error first; the note may fail, and then libvirt's error is all that there is."""
    sys.stderr.write(f"virtha: {refusal} ({refusal.code})\n")
    sys.stderr.flush()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        now_ms = time.time_ns() // 1_000_000
        leave_note(refusal, name, os.path.join(RUN_DIRECTORY, "refusals"), now_ms)
    except OSError:
        return


def main() -> int:
    try:
        with open(BOOT_ID_FILE, encoding="ascii") as file:
            boot = file.read(256).strip()
    except OSError:
        boot = ""  # matches no grant: only what isn't managed starts
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    try:
        data = sys.stdin.buffer.read(XML_BYTES_MAX + 1)
        operation = sys.argv[2] if len(sys.argv) > 2 else "prepare"
        judge(data, STATE_DIRECTORY, RUN_DIRECTORY, boot or "\0", now_ms, operation)
    except Refusal as refusal:
        _answer(refusal)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
