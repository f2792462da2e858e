"""``agent.properties``: read it, and edit it without losing a byte of what others wrote (A1, A7).

Text, not lines, goes in and comes out, with its own line ends. The language is the plain part of
Java's: ``key=value``, comments with ``#`` or ``!``. What Java would silently do otherwise (continue
a line after a backslash, let the last of two equal keys win) is an error with the line's number.
"""

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

import structlog

from virtha.agent.paths import AgentPaths
from virtha.agent.property_table import PROPERTIES, Kind, check_value, nearest_key
from virtha.domainxml.host_defaults import Cpu, CpuMode, Rng, RngBackend
from virtha.model.errors import InvalidInput
from virtha.model.power_settings import PowerHelp
from virtha.model.value import Value
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel

_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_BLANK = " \t\f"
_BYTE_ORDER_MARK = "\ufeff"
_log = structlog.get_logger(__name__)


class AgentProperties(Value, frozen=True, kw_only=True):
    """The typed values; what a key means stands in ``property_table``."""

    host: tuple[str, ...] = ()
    """Servers, ``name:port`` each, in order of preference."""
    host_algorithm: str = "static"
    guid: str = ""
    workers: int = 5
    hypervisor_uri: str = "qemu:///system"
    hypervisor_type: str = "auto"
    """``auto``, ``kvm`` or ``qemu``."""
    host_overcommit_memory_bytes: int = 0
    host_lb_check_interval_s: int | None = None
    """None: the server's setting holds; 0: off."""
    guest_cpu: Cpu = Cpu()
    rng: Rng | None = None
    watchdog: Watchdog | None = None
    diskactivity_check: bool = False
    diskactivity_timeout_s: int = 120
    diskactivity_quiet_ms: int = 30_000
    migration_address: str = ""
    probe_port: int = 8252
    """0: none."""
    probe_address: str = ""
    probe_storage_address: str = ""
    power_attempts: PowerHelp = PowerHelp.NETWORK


class _Line(Value, frozen=True, kw_only=True):
    """One line: ``key`` None is a comment or blank. ``head + value + tail + end`` is the line."""

    number: int
    key: str | None
    head: str
    value: str = ""
    tail: str = ""
    end: str


def read_properties(text: str) -> tuple[AgentProperties, tuple[str, ...]]:
    """-> (values, warnings for people). Raises InvalidInput naming key, line and what is allowed."""
    found: dict[str, _Line] = {}
    warnings: list[str] = []
    for line in _lines(text):
        if line.key is None:
            continue
        if line.key in found:
            raise _duplicate(line.key, found[line.key].number, line.number)
        found[line.key] = line
        item = PROPERTIES.get(line.key)
        if item is None:
            warnings.append(_unknown(line.key, f"line {line.number}: "))
        elif line.value:
            check_value(item, line.value, where=f"line {line.number}: ")
    written = {key: line.value for key, line in found.items() if line.value}
    return _typed(written, {key: line.number for key, line in found.items()}), tuple(warnings)


def get_property(text: str, key: str) -> str | None:
    """What is written for ``key``; None: nothing. Raises InvalidInput for a duplicate."""
    lines = [line for line in _lines(text) if line.key == key]
    if len(lines) > 1:
        raise _duplicate(key, lines[0].number, lines[1].number)
    return lines[0].value if lines else None


def set_property(text: str, key: str, value: str) -> str:
    """The text with ``key`` set; all else stays as it is, byte for byte.

    Raises InvalidInput: unknown key, a value that doesn't fit, or a key that stands there twice.
    """
    item = PROPERTIES.get(key)
    if item is None:
        raise InvalidInput(
            _unknown(key, ""), field=key, fix="`virtha agent properties list` shows all keys"
        )
    check_value(item, value.strip(_BLANK))
    value = value.strip(_BLANK)
    lines = _lines(text)
    places = [index for index, line in enumerate(lines) if line.key == key]
    if len(places) > 1:
        raise _duplicate(key, lines[places[0]].number, lines[places[1]].number)
    if places:
        line = lines[places[0]]
        # `key` alone on its line is how Java writes an empty value.
        head = line.head if "=" in line.head else line.head + "="
        lines[places[0]] = _Line(
            number=line.number, key=key, head=head, value=value, tail=line.tail, end=line.end
        )
        return _joined(lines)
    end = _line_end(lines)
    whole = _joined(lines)
    if whole.strip(_BYTE_ORDER_MARK) and not whole.endswith(("\n", "\r")):
        whole += end
    return f"{whole}{key}={value}{end}"


def unset_property(text: str, key: str) -> str:
    """The text without ``key``'s line; absent is done already. Takes unknown keys too, to get rid of them."""
    return _joined([line for line in _lines(text) if line.key != key])


def load_properties(path: Path) -> str:
    """The file's text. Bytes that are no UTF-8 survive into ``write_properties``. Raises OSError."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def load_with_warnings(paths: AgentPaths) -> tuple[AgentProperties, tuple[str, ...]]:
    """As ``read_properties``. A missing file means the defaults."""
    try:
        text = load_properties(paths.properties)
    except FileNotFoundError:
        return AgentProperties(), ()
    return read_properties(text)


def load_agent_properties(paths: AgentPaths) -> AgentProperties:
    """Raises InvalidInput (line and what is allowed). A missing file means the defaults."""
    values, warnings = load_with_warnings(paths)
    for warning in warnings:
        _log.warning("agent.properties", warning=warning)
    return values


def write_properties(path: Path, text: str) -> None:
    """Replace the file in one step: a reader, or a host that loses power, sees old or new, never half.

    Mode and owner are kept; a symbolic link stays one. Raises OSError, then the old file is whole.
    """
    path = path.resolve()
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            if before is None:
                os.fchmod(file.fileno(), 0o644)
            else:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    # Without this the rename itself may be lost with the power.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _lines(text: str) -> list[_Line]:
    """All lines, ends included. Raises InvalidInput for one that is no property and no comment."""
    lines = []
    for number, match in enumerate(_LINE.finditer(text), start=1):
        content, end = match[1], match[2]
        if content or end:
            lines.append(_line(number, content, end))
    return lines


def _line(number: int, content: str, end: str) -> _Line:
    visible = content.removeprefix(_BYTE_ORDER_MARK) if number == 1 else content
    stripped = visible.strip(_BLANK)
    if not stripped or stripped[0] in "#!":
        return _Line(number=number, key=None, head=content, end=end)
    if stripped.endswith("\\"):
        raise InvalidInput(
            f"line {number}: a line can't be continued with a backslash",
            field=stripped.partition("=")[0].strip(_BLANK),
            fix="write the whole value in one line",
        )
    left, equals, right = visible.partition("=")
    key = left.strip(_BLANK)
    if not key or any(blank in key for blank in _BLANK) or (not equals and ":" in key):
        raise InvalidInput(
            f"line {number}: not a property",
            field=key or "key",
            allowed=("key=value", "a comment after # or !"),
            fix="write key=value, or put a # before the line",
        )
    value = right.strip(_BLANK)
    begin = len(content) - len(right) + (len(right) - len(right.lstrip(_BLANK)))
    if not value:
        return _Line(number=number, key=key, head=content, end=end)
    tail = content[begin + len(value) :]
    return _Line(number=number, key=key, head=content[:begin], value=value, tail=tail, end=end)


def _joined(lines: list[_Line]) -> str:
    return "".join(line.head + line.value + line.tail + line.end for line in lines)


def _line_end(lines: list[_Line]) -> str:
    return next((line.end for line in lines if line.end), "\n")


def _duplicate(key: str, first: int, second: int) -> InvalidInput:
    return InvalidInput(
        f"stands twice, in lines {first} and {second}",
        field=key,
        fix="remove one of the two lines",
    )


def _unknown(key: str, where: str) -> str:
    near = nearest_key(key)
    hint = f"; did you mean {near}?" if near else ""
    shown = key if key.isprintable() else repr(key)
    return f"{where}there is no property {shown}{hint}"


def _typed(written: dict[str, str], numbers: dict[str, int]) -> AgentProperties:
    """All values are checked one by one already; here what belongs together is checked together."""

    def text(key: str) -> str:
        return written.get(key, PROPERTIES[key].default)

    def number(key: str) -> int:
        assert PROPERTIES[key].kind is Kind.NUMBER, key
        return int(text(key))

    servers, algorithm = _servers(text("host"), port=number("port"))
    interval = text("host.lb.check.interval")
    rng = Rng(
        backend=RngBackend(text("vm.rng.model")),
        path=text("vm.rng.path"),
        rate_bytes=number("vm.rng.rate.bytes"),
        rate_period_ms=number("vm.rng.rate.period"),
    )
    timeout_s = number("vm.diskactivity.checktimeout_s")
    quiet_ms = number("vm.diskactivity.inactivetime_ms")
    if timeout_s * 1_000 < quiet_ms:
        raise _clash(
            "vm.diskactivity.checktimeout_s",
            f"{timeout_s} s is shorter than the quiet time of {quiet_ms} ms: no start could ever pass",
            "raise it, or lower vm.diskactivity.inactivetime_ms",
            numbers,
        )
    return AgentProperties(
        host=servers,
        host_algorithm=algorithm,
        guid=text("guid"),
        workers=number("workers"),
        hypervisor_uri=text("hypervisor.uri"),
        hypervisor_type=text("hypervisor.type"),
        host_overcommit_memory_bytes=number("host.overcommit.mem.mb") << 20,
        host_lb_check_interval_s=int(interval) if interval else None,
        guest_cpu=_cpu(written, numbers),
        rng=rng if text("vm.rng.enable") == "true" else None,
        watchdog=_watchdog(written, numbers),
        diskactivity_check=text("vm.diskactivity.checkenabled") == "true",
        diskactivity_timeout_s=timeout_s,
        diskactivity_quiet_ms=quiet_ms,
        migration_address=text("migration.address"),
        probe_port=number("probe.port"),
        probe_address=text("probe.address"),
        probe_storage_address=text("probe.storage.address"),
        power_attempts=PowerHelp(text("power.attempts")),
    )


def _servers(value: str, *, port: int) -> tuple[tuple[str, ...], str]:
    if not value:
        return (), "static"
    addresses, _, algorithm = value.partition("@")
    servers = []
    for address in (part.strip() for part in addresses.split(",")):
        has_port = re.search(r":\d+$", address) is not None and not address.endswith("]")
        servers.append(address if has_port else f"{address}:{port}")
    return tuple(servers), algorithm or "static"


def _cpu(written: dict[str, str], numbers: dict[str, int]) -> Cpu:
    mode = written.get("guest.cpu.mode")
    model = written.get("guest.cpu.model")
    if mode == CpuMode.CUSTOM and model is None:
        raise _clash(
            "guest.cpu.mode",
            "custom needs guest.cpu.model",
            "set guest.cpu.model, for example Skylake-Server",
            numbers,
        )
    if model is not None and mode not in (None, CpuMode.CUSTOM):
        raise _clash(
            "guest.cpu.model",
            f"a model can't be chosen with guest.cpu.mode={mode}",
            "remove it, or set guest.cpu.mode=custom",
            numbers,
        )
    return Cpu(
        mode=CpuMode(mode) if mode else None,
        model=model,
        features=tuple(written.get("guest.cpu.features", "").split()),
    )


def _watchdog(written: dict[str, str], numbers: dict[str, int]) -> Watchdog | None:
    model = written.get("vm.watchdog.model")
    action = written.get("vm.watchdog.action")
    if model is None and action is None:
        return None
    if model is None or action is None:
        present, missing = ("model", "action") if action is None else ("action", "model")
        raise _clash(
            f"vm.watchdog.{present}",
            f"needs vm.watchdog.{missing} beside it",
            f"set vm.watchdog.{missing} too, or remove both",
            numbers,
            allowed=PROPERTIES[f"vm.watchdog.{missing}"].allowed(),
        )
    return Watchdog(model=WatchdogModel(model), action=WatchdogAction(action))


def _clash(
    key: str, message: str, fix: str, numbers: dict[str, int], allowed: tuple[str, ...] = ()
) -> InvalidInput:
    where = f"line {numbers[key]}: " if key in numbers else ""
    return InvalidInput(where + message, field=key, allowed=allowed, fix=fix)
