"""A cluster as people write it down for what-if questions: hosts, racks, power, VMs, policy. Pure.

    cluster: campus
    policy: {profile: fast, recovery: {starts_per_host: 8}}
    storage: [fast, archive]
    groups:
      - {name: db-apart, kind: apart, hard: yes}
    hosts:
      - {name: "r1h{n}", count: 6, rack: r1, memory: 256GiB, cpus: 48, power: {fed_by: rack}}
    vms:
      - {name: "web-{n}", count: 24, on: [rack=r1], memory: 8GiB, ha: yes, storage: fast, depends_on: [db-1]}

``{n}`` counts from 1, or from ``first``, where ``count`` is given. Names serve as ids, so that every answer can be read.
The docs page is `docs/guide/simulate.md`.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import count

from msgspec.structs import replace

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.model.errors import InvalidInput
from virtha.model.evidence import IdentityMatch
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import PermissionGrade, Policy
from virtha.model.policy.text import apply_changes, changes_from_node, policy_of
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.value import Value
from virtha.model.yaml_reader import Position, YamlList, YamlNode, YamlScalar, read_yaml, wrong
from virtha.scenario.section import Section, read_name, unknown

HOSTS_MAX = 10_000
VMS_MAX = 200_000
"""What the engine is built and measured for."""

ROOT_KEYS = ("cluster", "policy", "storage", "reference", "groups", "hosts", "vms")
GROUP_KEYS = ("name", "kind", "hard")
HOST_KEYS = (
    "name",
    "count",
    "first",
    "number",
    "rack",
    "memory",
    "reserved",
    "cpus",
    "tags",
    "storage",
    "watchdog",
    "power",
)
POWER_KEYS = (
    "name",
    "answers",
    "fed_by",
    "names_host",
    "tested",
    "status",
    "answer_time",
    "switch_time",
)
VM_KEYS = (
    "name",
    "count",
    "first",
    "on",
    "memory",
    "vcpus",
    "ha",
    "ignore",
    "priority",
    "grade",
    "tags",
    "storage",
    "groups",
    "depends_on",
    "start_time",
    "boot_time",
)
DEPENDENCY_KEYS = ("vm", "condition")


class BmcAnswers(StrEnum):
    """What a power device does when it is asked or ordered."""

    TRUTH = "truth"
    DEAD = "dead"
    """It answers nothing."""
    REFUSES = "refuses"
    """It refuses orders (a changed password), but tells its state."""
    IGNORES = "ignores"
    """It takes the order and does nothing."""
    SAYS_OFF = "says_off"
    SAYS_ON = "says_on"


class FedBy(StrEnum):
    """Whose power a device needs to answer."""

    OWN = "own"
    """A supply of its own: it answers whatever fails."""
    RACK = "rack"
    """It survives its host's failure, and goes dark with the rack."""
    HOST = "host"
    """Goes dark with its host, as with a pulled plug."""


class NamesHost(StrEnum):
    """Whether the device tells the identity (system UUID or serial) of the machine that it switches (P1)."""

    YES = "yes"
    NO = "no"
    OTHER = "other"
    """It names another machine: its address is wrong."""


_IDENTITY = {
    NamesHost.YES: IdentityMatch.MATCH,
    NamesHost.NO: IdentityMatch.UNKNOWN,
    NamesHost.OTHER: IdentityMatch.MISMATCH,
}


class InventoryDevice(Value, frozen=True, kw_only=True):
    """One power device."""

    device: PowerDeviceId
    answers: BmcAnswers = BmcAnswers.TRUTH
    fed_by: FedBy = FedBy.RACK
    identity: IdentityMatch = IdentityMatch.MATCH
    tested: bool = True
    """It passed a power test while its host was up."""
    reads_state: bool = True
    answer_ms: int
    switch_ms: int
    """From the order until the power is off."""


class InventoryHost(Value, frozen=True, kw_only=True):
    """``power``: levels, each of devices that must all be off. ``watchdog``: its host watchdog is armed,
    so that an expired lease is proof (P2)."""

    name: str
    number: int
    rack: str = ""
    memory_bytes: int
    reserved_bytes: int = 0
    cpus: int
    tags: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    watchdog: bool = True
    power: tuple[tuple[InventoryDevice, ...], ...] = ()
    at: Position


class InventoryVm(Value, frozen=True, kw_only=True):
    """``on``: None: it is down on purpose."""

    name: str
    on: str | None
    memory_bytes: int
    vcpus: int = 1
    ha: bool = False
    ignore: bool = False
    priority: int = 0
    grade: PermissionGrade | None = None
    tags: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()
    groups: tuple[AffinityGroup, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    start_ms: int
    """From the order until its process runs."""
    boot_ms: int
    """From then until its guest agent answers."""
    at: Position


class Inventory(Value, frozen=True, kw_only=True):
    """``reference``: the server reaches its reference address, so it may fence without a majority (J4)."""

    cluster: str
    policy: Policy
    storage: tuple[str, ...]
    reference: bool
    hosts: tuple[InventoryHost, ...]
    vms: tuple[InventoryVm, ...]

    @property
    def racks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(host.rack for host in self.hosts if host.rack))


START_MS = 600
"""Order, gate, QEMU: measured at 0.4 to 0.6 s; as the policy's budget has it."""
BOOT_MS = 20_000
"""A small server's guest agent answers 10 to 30 s after its process began."""
DEVICE_ANSWER_MS = 100
"""As the policy's budget has it."""
DEVICE_SWITCH_MS = 4_000
"""As the policy's budget has it: emulated and real ones take 1 to 11 s."""


def read_inventory(text: str, *, file: str) -> Inventory:
    """The inventory, each value alone and each reference checked; ``check_inventory`` looks at the whole.

    ``file``: how errors name it. Raises InvalidInput with file, line and column.
    """
    root = read_yaml(text, file=file)
    if root is None or (isinstance(root, YamlScalar) and root.value is None):
        raise InvalidInput(f"{file}: there is nothing in it", field="inventory", allowed=ROOT_KEYS)
    top = Section(root, "", ROOT_KEYS)
    storage = top.names("storage")
    hosts = _hosts(top, storage)
    return Inventory(
        cluster=top.name("cluster", "default"),
        policy=_policy(top.node("policy")),
        storage=storage,
        reference=top.flag("reference", False),
        hosts=tuple(hosts.values()),
        vms=_vms(top, hosts, _groups(top), storage),
    )


def _policy(node: YamlNode | None) -> Policy:
    return Policy() if node is None else policy_of(apply_changes({}, changes_from_node(node)))


def _groups(top: Section) -> dict[str, AffinityGroup]:
    found: dict[str, AffinityGroup] = {}
    for node in top.items("groups"):
        one = Section(node, "groups", GROUP_KEYS)
        name = one.name("name")
        if name in found:
            raise one.error("name", f"there are two groups '{name}'", fix="rename one of them")
        if one.node("kind") is None:
            one.needed("kind", fix="write kind: apart or kind: together")
        found[name] = AffinityGroup(
            id=AffinityGroupId(name),
            name=name,
            kind=one.choice("kind", AffinityKind, AffinityKind.APART),
            hard=one.flag("hard", False),
        )
    return found


# Many alike


def _numbers(one: Section, left: int, most: int) -> range:
    """From ``first`` on, ``count`` of them. Raises InvalidInput where the names would be the same, or ``most`` is passed."""
    name = one.scalar("name")
    count = one.whole("count", 1, most, 1)
    if one.node("count") is not None and "{n}" not in name.text:
        raise one.error(
            "name", f"'{name.text}' would be the name of {count}", fix=f"write {name.text}-{{n}}"
        )
    if one.node("count") is None and ("{n}" in name.text or one.node("first") is not None):
        raise one.error("name", "there is no count for {n}", fix="add count: 3")
    if count > left:
        raise one.error("count", f"more than {most} in all", fix="take a part of them")
    first = one.whole("first", 0, 1_000_000, 1)
    return range(first, first + count)


def _named(one: Section, key: str, number: int) -> str:
    node = one.scalar(key)
    text = node.text.replace("{n}", str(number))
    return read_name(text, field=one.field(key), at=node.at)


def _twice(one: Section, what: str, name: str, first: Position) -> InvalidInput:
    return one.error(
        "name",
        f"there is a {what} '{name}' already in line {first.line}",
        fix="give each its own name",
    )


# Hosts


def _hosts(top: Section, storage: tuple[str, ...]) -> dict[str, InventoryHost]:
    top.needed("hosts", fix="write hosts: and a list of them")
    found: dict[str, InventoryHost] = {}
    sections: list[tuple[Section, str, int | None]] = []
    for node in top.items("hosts"):
        one = Section(node, "hosts", HOST_KEYS)
        numbers = _numbers(one, HOSTS_MAX - len(sections), HOSTS_MAX)
        given = one.whole("number", 1, 1_000_000) if one.node("number") is not None else None
        for step, number in enumerate(numbers):
            own = None if given is None else given + step
            sections.append((one, _named(one, "name", number), own))
    taken = {own for _, _, own in sections}
    free = (number for number in count(1) if number not in taken)
    by_number: dict[int, str] = {}
    for one, name, own in sections:
        if name in found:
            raise _twice(one, "host", name, found[name].at)
        number = next(free) if own is None else own
        if number in by_number:
            raise one.error(
                "number",
                f"{number} is the number of {by_number[number]} already",
                fix="leave numbers out, or give each its own",
            )
        by_number[number] = name
        found[name] = _host(one, name, number, storage)
    if not found:
        raise top.error("hosts", "there is no host in it", fix="write at least one")
    return found


def _host(one: Section, name: str, number: int, storage: tuple[str, ...]) -> InventoryHost:
    memory = one.size_bytes("memory")
    reserved = one.size_bytes("reserved", 0)
    if reserved >= memory:
        raise one.error(
            "reserved", "the host keeps all of its memory for itself", fix="lower reserved"
        )
    given = one.known("storage", "storage domain", storage)
    return InventoryHost(
        name=name,
        number=number,
        rack=one.name("rack", "") if one.node("rack") is not None else "",
        memory_bytes=memory,
        reserved_bytes=reserved,
        cpus=one.whole("cpus", 1, 8_192),
        tags=one.names("tags"),
        storage=storage if one.node("storage") is None else given,
        watchdog=one.flag("watchdog", True),
        power=_power(one, name),
        at=one.place("name"),
    )


def _power(one: Section, host: str) -> tuple[tuple[InventoryDevice, ...], ...]:
    levels: list[tuple[InventoryDevice, ...]] = []
    used: set[str] = set()
    for level, node in enumerate(one.items("power"), 1):
        feeds = node.items if isinstance(node, YamlList) else (node,)
        if not feeds:
            raise wrong(
                node.at, "a level without a device proves nothing", field=one.field("power")
            )
        devices = []
        for feed, item in enumerate(feeds, 1):
            section = Section(item, one.field("power"), POWER_KEYS)
            usual = f"{host}-bmc" if (level, feed) == (1, 1) else f"{host}-power{level}.{feed}"
            devices.append(_device(section, usual, host))
            if devices[-1].device in used:
                raise section.error(
                    "name", f"{host} has two devices '{devices[-1].device}'", fix="rename one"
                )
            used.add(devices[-1].device)
        levels.append(tuple(devices))
    return tuple(levels)


def _device(one: Section, usual: str, host: str) -> InventoryDevice:
    name = usual
    if one.node("name") is not None:
        given = one.scalar("name")
        text = given.text.replace("{host}", host)
        name = read_name(text, field=one.field("name"), at=given.at)
    return InventoryDevice(
        device=PowerDeviceId(name),
        answers=one.choice("answers", BmcAnswers, BmcAnswers.TRUTH),
        fed_by=one.choice("fed_by", FedBy, FedBy.RACK),
        identity=_IDENTITY[one.choice("names_host", NamesHost, NamesHost.YES)],
        tested=one.flag("tested", True),
        reads_state=one.flag("status", True),
        answer_ms=one.duration_ms("answer_time", DEVICE_ANSWER_MS),
        switch_ms=one.duration_ms("switch_time", DEVICE_SWITCH_MS),
    )


# VMs


def _vms(
    top: Section,
    hosts: Mapping[str, InventoryHost],
    groups: Mapping[str, AffinityGroup],
    storage: tuple[str, ...],
) -> tuple[InventoryVm, ...]:
    found: dict[str, InventoryVm] = {}
    waiting: list[tuple[Section, int, str]] = []
    by_rack: dict[str, list[str]] = {}
    for host in hosts.values():
        by_rack.setdefault(host.rack, []).append(host.name)
    for node in top.items("vms"):
        one = Section(node, "vms", VM_KEYS)
        on = _on(one, hosts, by_rack)
        for step, number in enumerate(_numbers(one, VMS_MAX - len(found), VMS_MAX)):
            name = _named(one, "name", number)
            if name in found:
                raise _twice(one, "VM", name, found[name].at)
            holder = hosts[on[step % len(on)]] if on else None
            found[name] = _vm(one, name, holder, groups, storage)
            if one.node("depends_on") is not None:
                waiting.append((one, number, name))
    for one, number, name in waiting:
        found[name] = _depending(one, number, found[name], found)
    return tuple(found.values())


def _on(
    one: Section, hosts: Mapping[str, InventoryHost], by_rack: Mapping[str, list[str]]
) -> tuple[str, ...]:
    """The hosts that it is dealt to in turn; none: it is down."""
    one.needed("on", fix="write on: and a host, a list of hosts, rack=NAME, or nowhere")
    given = one.texts("on")
    if [each.text for each in given] == ["nowhere"]:
        return ()
    chosen: list[str] = []
    for each in given:
        rack = each.text.removeprefix("rack=")
        if rack != each.text:
            if rack not in by_rack:
                racks = [name for name in by_rack if name]
                raise unknown(each.at, one.field("on"), "rack", rack, racks)
            chosen += by_rack[rack]
        elif each.text in hosts:
            chosen.append(each.text)
        else:
            raise unknown(each.at, one.field("on"), "host", each.text, hosts)
    if not chosen:
        raise one.error("on", "the list is empty", fix="write nowhere for a VM that is down")
    return tuple(chosen)


def _vm(
    one: Section,
    name: str,
    host: InventoryHost | None,
    groups: Mapping[str, AffinityGroup],
    storage: tuple[str, ...],
) -> InventoryVm:
    domains = one.known("storage", "storage domain", storage)
    if one.node("storage") is None and storage:
        if len(storage) > 1:
            one.needed("storage", fix=f"say which it has disks in: {', '.join(storage)}")
        domains = storage
    vcpus = one.whole("vcpus", 1, 8_192, 1)
    if host is not None:
        _fits_beside(one, name, host, domains, vcpus)
    grade = None
    if one.node("grade") is not None:
        grade = one.choice("grade", PermissionGrade, PermissionGrade.FENCE)
    return InventoryVm(
        name=name,
        on=None if host is None else host.name,
        memory_bytes=one.size_bytes("memory"),
        vcpus=vcpus,
        ha=one.flag("ha", False),
        ignore=one.flag("ignore", False),
        priority=one.whole("priority", -1_000_000, 1_000_000, 0),
        grade=grade,
        tags=one.names("tags"),
        storage=domains,
        groups=tuple(groups[each] for each in one.known("groups", "affinity group", groups)),
        start_ms=one.duration_ms("start_time", START_MS),
        boot_ms=one.duration_ms("boot_time", BOOT_MS),
        at=one.place("name"),
    )


def _fits_beside(
    one: Section, name: str, host: InventoryHost, domains: tuple[str, ...], vcpus: int
) -> None:
    """It runs there, so what it needs must be there."""
    for domain in domains:
        if domain not in host.storage:
            raise one.error(
                "storage",
                f"{name} runs on {host.name}, which does not reach storage domain '{domain}'",
                fix="correct the storage of one of them",
            )
    if vcpus > host.cpus:
        raise one.error(
            "vcpus",
            f"{name} has {vcpus} and runs on {host.name}, which has {host.cpus}",
            fix="correct the vcpus, or the host's cpus",
        )


def _depending(
    one: Section, number: int, vm: InventoryVm, vms: Mapping[str, InventoryVm]
) -> InventoryVm:
    found: dict[str, Dependency] = {}
    for node in one.items("depends_on"):
        field = one.field("depends_on")
        condition = StartCondition.STARTED
        target = node
        if not isinstance(node, YamlScalar):
            section = Section(node, field, DEPENDENCY_KEYS)
            target = section.scalar("vm")
            condition = section.choice("condition", StartCondition, condition)
            if condition is StartCondition.HEALTHY:
                raise section.error(
                    "condition",
                    "nobody reports the health of services here",
                    fix="write guest_agent, which comes nearest",
                )
        assert isinstance(target, YamlScalar)
        name = target.text.replace("{n}", str(number))
        if name not in vms:
            raise unknown(target.at, field, "VM", name, vms)
        found[name] = Dependency(vm_id=VmId(name), name=name, condition=condition)
    return replace(vm, depends_on=tuple(found.values()))


# As the engine has them


def engine_host(host: InventoryHost) -> EngineHost:
    """What it reaches of storage, the host itself reports."""
    return EngineHost(
        host_id=HostId(host.name),
        name=host.name,
        number=host.number,
        memory_bytes=host.memory_bytes,
        reserved_bytes=host.reserved_bytes,
        cpus=host.cpus,
        features=frozenset(Feature(FeatureKind.TAG, tag) for tag in host.tags),
        power=tuple(
            PowerLevel(
                feeds=tuple(
                    PowerFeed(device=one.device, reads_state=one.reads_state) for one in level
                )
            )
            for level in host.power
        ),
    )


def engine_vm(vm: InventoryVm) -> EngineVm:
    tags = [Feature(FeatureKind.TAG, tag) for tag in vm.tags]
    domains = [Feature(FeatureKind.STORAGE, StorageDomainId(one)) for one in vm.storage]
    return EngineVm(
        vm_id=VmId(vm.name),
        name=vm.name,
        memory_bytes=vm.memory_bytes,
        vcpus=vm.vcpus,
        ha=vm.ha,
        ignore=vm.ignore,
        wanted_up=vm.on is not None,
        priority=vm.priority,
        features=frozenset((*tags, *domains)),
        groups=vm.groups,
        depends_on=vm.depends_on,
        grade=vm.grade,
    )
