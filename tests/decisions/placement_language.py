"""The language of placement decisions: a snapshot in, the plan and its reasons out.

    # Why this case exists.
    policy starts_per_host=2 spread=no
    group db apart hard
    host h1 memory=64GiB cpus=16 tags=ssd storage=ds1
    host h2 memory=64GiB unfit=maintenance
    runs web on=h1 memory=4GiB groups=db reached=started
    starts app on=h1 memory=4GiB
    place db1 memory=8GiB priority=10 groups=db after=web:guest_agent tried=h1 prefers=h2
    order test memory=1GiB
    ----
    ...what is decided, in that order: written by --rewrite, reviewed by people

``runs``: it runs there; ``starts``: its start is in flight. ``place``: its host failed; ``order``: an operator
starts it. Hosts are numbered as they appear. A host has 16 processors unless it says otherwise.
"""

from collections.abc import Callable, Mapping, Sequence

from virtha.engine.affinity import (
    AffinityGroup,
    AffinityGroupId,
    AffinityKind,
    check_affinity,
)
from virtha.engine.capacity import Capacity, Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.engine.placement import Plan, Purpose, VmToPlace, plan_placements
from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import DependencyExpired, RecoveryPolicy
from virtha.model.size import format_size, parse_size_bytes
from virtha.model.time import Millis, parse_duration_ms
from virtha.model.vm import Reason

SEPARATOR = "----"
NOW_MS = 3_600_000
CPUS = 16

Options = dict[str, str]

_FEATURES = {
    "storage": FeatureKind.STORAGE,
    "tags": FeatureKind.TAG,
    "bridges": FeatureKind.BRIDGE,
    "watchdog": FeatureKind.WATCHDOG,
    "arch": FeatureKind.ARCHITECTURE,
}
_ALLOWED: dict[str, tuple[int, tuple[str, ...]]] = {
    "policy": (
        0,
        (
            "starts_per_host",
            "starts_per_cluster",
            "reserve_hosts",
            "memory_overcommit_percent",
            "spread",
            "dependency_wait",
            "dependency_expired",
        ),
    ),
    "group": (3, ()),
    "host": (1, ("memory", "reserved", "cpus", "unfit", *_FEATURES)),
    "runs": (1, ("on", "memory", "groups", "reached")),
    "starts": (1, ("on", "memory", "groups", "reached")),
    "place": (
        1,
        (
            "memory",
            "cpus",
            "priority",
            "groups",
            "after",
            "waited",
            "attempts",
            "tried",
            "prefers",
            *_FEATURES,
        ),
    ),
}
_ALLOWED["order"] = _ALLOWED["place"]


class Case:
    """One file. ``body``: all above the separator, as written; ``expected``: the lines below it."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        end = lines.index(SEPARATOR) if SEPARATOR in lines else len(lines)
        self.body = lines[:end]
        self.expected = lines[end + 1 :]
        self.policy: dict[str, object] = {}
        self.groups: dict[str, AffinityGroup] = {}
        self.hosts: dict[str, TargetHost] = {}
        self.held: list[tuple[HostId, HeldVm, bool]] = []
        self.progress: dict[VmId, frozenset[StartCondition]] = {}
        self.vms: list[VmToPlace] = []
        if not self.body or not self.body[0].startswith("#"):
            raise InvalidInput("a case begins with its story", field="line 1", fix="write '# why'")
        for number, line in enumerate(self.body, 1):
            if line.strip() and not line.startswith("#"):
                try:
                    self._read(line)
                except InvalidInput as error:
                    raise InvalidInput(str(error), field=f"line {number}") from error

    # Reading

    def _read(self, line: str) -> None:
        verb, *parts = line.split()
        if verb not in _ALLOWED:
            raise InvalidInput(f"'{verb}' is nothing that can be said", allowed=tuple(_ALLOWED))
        count, allowed = _ALLOWED[verb]
        words = [part for part in parts if "=" not in part]
        options = dict(part.split("=", 1) for part in parts if "=" in part)
        for unknown in sorted(set(options) - set(allowed)):
            raise InvalidInput(f"'{unknown}' is no option of {verb}", allowed=allowed)
        if len(words) != count:
            raise InvalidInput(f"{verb} takes {count} words, not {len(words)}")
        readers: dict[str, Callable[[Sequence[str], Options], None]] = {
            "policy": self._policy,
            "group": self._group,
            "host": self._host,
            "runs": self._runs,
            "starts": self._starts,
            "place": self._place,
            "order": self._order,
        }
        readers[verb](words, options)

    def _policy(self, words: Sequence[str], options: Options) -> None:
        for name, value in options.items():
            if name == "spread":
                self.policy[name] = value == "yes"
            elif name == "dependency_wait":
                self.policy["dependency_wait_ms"] = parse_duration_ms(value, field=name)
            elif name == "dependency_expired":
                self.policy[name] = DependencyExpired(value)
            else:
                self.policy[name] = int(value)

    def _group(self, words: Sequence[str], options: Options) -> None:
        name, kind, hardness = words
        self.groups[name] = AffinityGroup(
            id=AffinityGroupId(name),
            name=name,
            kind=AffinityKind(kind),
            hard={"hard": True, "soft": False}[hardness],
        )

    def _host(self, words: Sequence[str], options: Options) -> None:
        self.hosts[words[0]] = TargetHost(
            id=HostId(words[0]),
            name=words[0],
            number=len(self.hosts) + 1,
            memory_bytes=parse_size_bytes(options["memory"], field="memory"),
            reserved_bytes=parse_size_bytes(options.get("reserved", "0"), field="reserved"),
            cpus=int(options.get("cpus", CPUS)),
            features=_features(options),
            unfit=Unfit(f"host.unfit.{options['unfit']}") if "unfit" in options else None,
        )

    def _runs(self, words: Sequence[str], options: Options, in_flight: bool = False) -> None:
        vm_id = VmId(words[0])
        held = HeldVm(
            id=vm_id,
            memory_bytes=parse_size_bytes(options.get("memory", "0"), field="memory"),
            groups=tuple(group.id for group in self._groups_of(options)),
        )
        self.held.append((HostId(self._known_host(options["on"])), held, in_flight))
        self.progress[vm_id] = frozenset(map(StartCondition, _split(options.get("reached", ""))))

    def _starts(self, words: Sequence[str], options: Options) -> None:
        self._runs(words, options, in_flight=True)

    def _order(self, words: Sequence[str], options: Options) -> None:
        self._place(words, options, Purpose.ORDER)

    def _place(
        self, words: Sequence[str], options: Options, purpose: Purpose = Purpose.RECOVERY
    ) -> None:
        waited = options.get("waited")
        self.vms.append(
            VmToPlace(
                id=VmId(words[0]),
                name=words[0],
                memory_bytes=parse_size_bytes(options["memory"], field="memory"),
                vcpus=int(options.get("cpus", 1)),
                priority=int(options.get("priority", 0)),
                purpose=purpose,
                features=_features(options),
                groups=self._groups_of(options),
                depends_on=tuple(map(_dependency, _split(options.get("after", "")))),
                waits_since_ms=NOW_MS - parse_duration_ms(waited, field="waited")
                if waited
                else None,
                attempts=int(options.get("attempts", 0)),
                excluded=frozenset(
                    HostId(self._known_host(name)) for name in _split(options.get("tried", ""))
                ),
                preferred=HostId(options["prefers"]) if "prefers" in options else None,
            )
        )

    def _groups_of(self, options: Options) -> tuple[AffinityGroup, ...]:
        names = _split(options.get("groups", ""))
        for name in names:
            if name not in self.groups:
                raise InvalidInput(f"no group '{name}'", allowed=tuple(self.groups))
        return tuple(self.groups[name] for name in names)

    def _known_host(self, name: str) -> str:
        if name not in self.hosts:
            raise InvalidInput(f"no host '{name}'", allowed=tuple(self.hosts))
        return name

    # Deciding

    def decide(self) -> list[str]:
        """The lines below the separator."""
        check_affinity({vm.id: vm.groups for vm in self.vms})
        policy = RecoveryPolicy(**self.policy)
        capacity = Capacity(overcommit_percent=policy.memory_overcommit_percent)
        for host in self.hosts.values():
            capacity.host_changed(host)
        for host_id, vm, in_flight in self.held:
            capacity.vm_started(host_id, vm, in_flight=in_flight)
        names: Mapping[StorageDomainId, str] = {}
        plan = plan_placements(
            capacity,
            self.vms,
            policy=policy,
            now=Millis(NOW_MS),
            progress=self.progress,
            storage_names=names,
        )
        return _told(plan)

    def rendered(self, outcome: Sequence[str]) -> str:
        return "\n".join((*self.body, SEPARATOR, *outcome)) + "\n"


def _told(plan: Plan) -> list[str]:
    lines: list[str] = []
    for start in plan.placements:
        lines.append(f"start {start.vm_id} on {start.host_id}")
        lines += _reasons(start.reasons)
    for waiting in plan.waiting:
        lines.append(f"wait {waiting.vm_id} for {waiting.host_id}")
        lines += _reasons(waiting.reasons)
    for blocked in plan.blocked:
        lines.append(f"blocked {blocked.vm_id}")
        lines += _reasons(blocked.reasons)
        lines += [
            f"    near {one.host_id} free={format_size(one.free_bytes)} short={format_size(one.short_bytes)}"
            for one in blocked.nearest
        ]
    if plan.wake_at is not None:
        lines.append(f"look again in {plan.wake_at - NOW_MS} ms")
    return lines


def _reasons(reasons: Sequence[Reason]) -> list[str]:
    return [
        " ".join((f"    {one.code}", *(f"{name}={value}" for name, value in one.fields.items())))
        for one in reasons
    ]


def _features(options: Options) -> frozenset[Feature]:
    return frozenset(
        Feature(kind, name)
        for option, kind in _FEATURES.items()
        for name in _split(options.get(option, ""))
    )


def _dependency(text: str) -> Dependency:
    name, _, condition = text.partition(":")
    return Dependency(vm_id=VmId(name), name=name, condition=StartCondition(condition or "started"))


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
