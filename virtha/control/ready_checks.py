"""What would fail today, and what to do about it (X5). Pure; from facts that the server has, never a guess."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import UNSET

from virtha.alerts.match import fits
from virtha.control.engine_nouns import probed_at
from virtha.control.engine_power import LedDevice
from virtha.control.launch import Surroundings
from virtha.control.own_machine import OwnMachine
from virtha.control.power import problem_of
from virtha.control.power_results import reason_text
from virtha.control.readiness_views import Finding
from virtha.control.status import host_reasons
from virtha.model.codes import REGISTRY, Severity, render
from virtha.model.evidence import STORAGE_NETWORK, IdentityMatch
from virtha.model.host import Cluster, HostState, format_version
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.notification import Subscription
from virtha.model.policy import FencingAction
from virtha.model.power import PowerDeviceId
from virtha.model.power_settings import PowerDriver, PowerTest
from virtha.model.time import UtcMillis, format_duration_ms, format_utc
from virtha.model.value import Scalar, Value
from virtha.model.vm import Reason
from virtha.ports.authority import RENEW_BEFORE_MS
from virtha.ports.references import ReferencesSeen
from virtha.store.clusters import is_other_storage
from virtha.store.hosts import HostRow

TOLD_OF = ("host.judged_dead", "fence.began", "fence.failed", "vm.recovered")
"""Of these somebody should be told (F4): that a host failed, that it is fenced or can't be, that its VMs are back."""
OLD_ANYWAY_MS = 7 * 86_400_000
_PROVES_NOT = frozenset(
    f"ready.power.{word}"
    for word in (
        *("unusable", "untested", "failed", "no_status"),
        *("no_neighbour", "disbelieved", "unidentified"),
    )
)
_WOULD_PROVE = frozenset(
    # Nobody has poisoned it; or it is just being judged; or whoever read it lately saw nobody renew in between.
    ("lease.not_proof.not_poisoned", "lease.waits", "lease.expired", "lease.not_proof.no_control")
)
_UNREAD = frozenset(f"lease.not_proof.{word}" for word in ("unread", "unreadable", "other_boot"))
_SWITCHES = (FencingAction.POWER_OFF, FencingAction.REBOOT)
_RANK = {severity: rank for rank, severity in enumerate(Severity)}
SHOW_PASSWORDS = frozenset(
    f"fence_{name}" for name in ("idrac", "ilo3", "ilo4", "ilo5", "imm", "ipmilan", "ipmilanplus")
)
"""Fence agents that put the password among the words of the ipmitool that they run, whatever they are told; driver ipmi doesn't. Those that
run snmpget do so with a community, and Net-SNMP has no other way."""
RENEW_LATE_MS = 60 * 86_400_000
"""A host that was away, or off, for so long is nothing to be told of."""
COUNTS_EMULATED_WRITES = 9_000_000
"""QEMU from which on a live migration of an emulated guest sends each page that was written meanwhile (its commit 03bfc2188f,
"physmem: Fix migration dirty bitmap coherency with TCG memory access"). Seen with 7.2: docs/verification.md."""


class HostFacts(Value, frozen=True, kw_only=True):
    """``tests``: by device. ``test_interval_ms``: 0: the server tests none by itself. ``helpers``: drivers with which a
    neighbour could make an attempt at its devices now."""

    row: HostRow
    devices: Sequence[LedDevice]
    tests: Mapping[str, PowerTest]
    action: FencingAction
    test_interval_ms: int
    clock_offset_max_ms: int
    helpers: frozenset[PowerDriver]
    own: OwnMachine
    disbelieved: frozenset[PowerDeviceId]
    """By the engine's records, since they passed a test (P1)."""
    storage: Mapping[StorageDomainId, str]
    """That it can use, by its own word, with their names."""
    leases: Mapping[StorageDomainId, Reason] | None
    """What would keep each from being a proof (``Leaders.lease_prospects``). None: that is not known."""
    certificate_ends: UtcMillis | None
    version: str
    now: UtcMillis


def finding(about: str, reason: Reason) -> Finding:
    code = REGISTRY.get(reason.code)
    return Finding(
        about=about,
        code=reason.code,
        severity=code.severity if code is not None else Severity.WARNING,
        text=render(reason.code, reason.fields),
        fix=code.help if code is not None else "",
        fields=reason.fields,
    )


def worst_first(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda one: (-_RANK[one.severity], one.about)))


def verdict_of(found: Iterable[Finding]) -> str:
    ranks = {one.severity for one in found}
    if Severity.ERROR in ranks or Severity.ALERT in ranks:
        return "not_ready"
    return "at_risk" if Severity.WARNING in ranks else "ready"


def of_host(facts: HostFacts) -> list[Finding]:
    row, host = facts.row, facts.row.host.name
    found = [*host_reasons(row), *_of_power(facts), *_of_leases(facts)]
    offset_ms = row.status.clock_offset_ms
    if offset_ms is not None and abs(offset_ms) > facts.clock_offset_max_ms:
        found.append(_reason("ready.clock", host=host, offset=format_duration_ms(abs(offset_ms))))
    able = row.status.capabilities
    if able.domain_type == "qemu" and 0 < able.qemu_version < COUNTS_EMULATED_WRITES:
        qemu = format_version(able.qemu_version)
        found.append(_reason("ready.emulated", host=host, qemu=qemu))
    agent = able.agent_version
    if agent and agent != facts.version:
        found.append(_reason("ready.version", host=host, agent=agent, server=facts.version))
    ends = facts.certificate_ends
    if ends is not None and ends - facts.now < RENEW_BEFORE_MS - RENEW_LATE_MS:
        found.append(_reason("ready.certificate", host=host, ends=format_utc(ends)))
    if facts.own.carries_us(row.status):
        found.append(_reason("ready.server_on_host", host=host))
    return [finding(f"host/{host}", one) for one in found]


def _of_power(facts: HostFacts) -> list[Reason]:
    host = facts.row.host.name
    if facts.action not in _SWITCHES:
        return []  # of its cluster: nothing is switched at all
    if not facts.devices:
        return [_reason("ready.power.none", host=host)]
    found: list[Reason] = []
    proves: dict[int, bool] = {}
    for one in facts.devices:
        against = _of_device(facts, one)
        found += [*against, *_shown_secret(facts, one)]
        fit = not any(reason.code in _PROVES_NOT for reason in against)
        proves[one.level] = proves.get(one.level, True) and fit
    if not any(proves.values()):
        found.insert(0, _reason("ready.power.no_level", host=host))
    if len(proves) == 1:
        found.append(_reason("ready.power.one_level", host=host))
    return found


def _of_device(facts: HostFacts, device: LedDevice) -> list[Reason]:
    names: dict[str, Scalar] = {"host": facts.row.host.name, "device": device.name}
    shared = device.shared.record.secrets if device.shared is not None else ()
    problem = problem_of(
        device.own.record.settings, device.settings, {*device.own.record.secrets, *shared}
    )
    if problem:
        return [_reason("ready.power.unusable", **names, problem=problem)]
    if not device.settings.has_status:
        return [_reason("ready.power.no_status", **names)]
    driver = device.settings.driver
    if device.settings.from_agents and driver is not None and driver not in facts.helpers:
        return [_reason("ready.power.no_neighbour", **names, driver=driver.value)]
    test = facts.tests.get(device.name)
    if test is None or test.settings_revision < device.revision:
        return [_reason("ready.power.untested", **names)]
    at = format_utc(test.at)
    if not test.passed:
        why = reason_text(test.code) or f"it said {test.state.value}, and the host was not up"
        return [_reason("ready.power.failed", **names, at=at, why=why)]
    if device.settings.from_agents and test.identity is not IdentityMatch.MATCH:
        return [_reason("ready.power.unidentified", **names)]
    if device.id in facts.disbelieved:
        return [_reason("ready.power.disbelieved", **names)]
    found = []
    age_ms = facts.now - test.at
    if age_ms > (2 * facts.test_interval_ms or OLD_ANYWAY_MS):
        age = format_duration_ms(age_ms // 60_000 * 60_000)
        found.append(_reason("ready.power.old", **names, at=at, age=age))
    if test.identity is IdentityMatch.UNKNOWN:
        found.append(_reason("ready.power.no_identity", **names))
    return found


def _shown_secret(facts: HostFacts, device: LedDevice) -> list[Reason]:
    shared = device.shared.record.secrets if device.shared is not None else ()
    agent = device.settings.agent or ""
    of_agent = device.settings.driver is PowerDriver.FENCE_AGENT and agent in SHOW_PASSWORDS
    if not of_agent or "password" not in (*device.own.record.secrets, *shared):
        return []
    host = facts.row.host.name
    return [_reason("ready.power.secret_shown", agent=agent, device=device.name, host=host)]


def _of_leases(facts: HostFacts) -> list[Reason]:
    """Also of the host's watchdog, for a lease without one proves nothing."""
    if facts.leases is None or facts.row.status.state is not HostState.UP:
        return []
    found = []
    for domain_id, name in sorted(facts.storage.items(), key=lambda one: one[1]):
        why = facts.leases.get(domain_id, Reason(code="lease.not_proof.unread"))
        if why.code not in _WOULD_PROVE:
            code = "ready.lease.unread" if why.code in _UNREAD else "ready.lease.no_proof"
            text = render(why.code, why.fields)
            found.append(_reason(code, host=facts.row.host.name, storage=name, why=text))
    return found


def of_cluster(
    cluster: Cluster,
    surroundings: Surroundings,
    protected_on: Collection[StorageDomainId],
    subscriptions: Sequence[Subscription],
) -> list[Finding]:
    """And of its storage. ``protected_on``: where VMs that should come back have their disks."""
    found: list[Reason] = []
    up = {row.host.id: row for row in surroundings.hosts if row.status.state is HostState.UP}
    if len(up) < 2:  # one to die and one to go to
        hosts = len(surroundings.hosts)
        found.append(_reason("ready.one_host", cluster=cluster.name, up=len(up), hosts=hosts))
    action = cluster.policy.fencing.action
    if action is FencingAction.NOTHING:
        found.append(_reason("fence.blocked.action_nothing"))
    if action is FencingAction.BLINK:
        found.append(_reason("fence.blocked.action_blink"))
    untold = [code for code in TOLD_OF if not _is_told(code, cluster, subscriptions)]
    if untold:
        codes = ", ".join(untold)
        found.append(_reason("ready.nobody_told", cluster=cluster.name, codes=codes))
    told = [finding(f"cluster/{cluster.name}", one) for one in found]
    return told + _of_storage(surroundings, protected_on, up)


def of_references(seen: ReferencesSeen) -> list[Finding]:
    """Of this server (J4). That it has none is nothing that would fail: a majority of the hosts does as well."""
    if seen.reached is not False:
        return []
    return [finding("installation", _reason("ready.reference", why=seen.why))]


def storage_lacks(
    row: HostRow, surroundings: Surroundings, protected_on: Collection[StorageDomainId]
) -> list[Reason]:
    """What the host can't use. That it sees other storage than the others is told also of what has no disks yet."""
    found = []
    for domain_id, name in sorted(surroundings.storage_names.items(), key=lambda one: one[1]):
        report = surroundings.reports.get((row.host.id, domain_id))
        names: dict[str, Scalar] = {"host": row.host.name, "storage": name}
        if report is not None and is_other_storage(report):
            found.append(_reason("ready.storage_other", **names, why=report.detail))
        elif row.status.state is not HostState.UP or domain_id not in protected_on:
            continue
        elif report is None or not report.usable:
            why = "it has told nothing of it" if report is None else report.detail
            found.append(_reason("ready.storage_unusable", **names, why=why))
    return found


def probe_lacks(row: HostRow, surroundings: Surroundings) -> list[Reason]:
    """Of a host that is up: where a cable is cut, neighbours that see it on the other network tell so (F1)."""
    if row.status.state is not HostState.UP or _is_probed_on_storage(row):
        return []
    others = sum(_is_probed_on_storage(one) for one in surroundings.hosts)
    if others == 0:
        return []  # that network is most often the same one
    return [_reason("ready.probes.storage", host=row.host.name, count=others)]


def _is_probed_on_storage(row: HostRow) -> bool:
    return any(one.network == STORAGE_NETWORK for one in probed_at(row.status))


def _of_storage(
    surroundings: Surroundings,
    protected_on: Collection[StorageDomainId],
    up: Mapping[HostId, HostRow],
) -> list[Finding]:
    found = []
    for domain_id, name in sorted(surroundings.storage_names.items(), key=lambda one: one[1]):
        able = [
            row.host.name
            for host_id, row in up.items()
            if surroundings.usable.get((host_id, domain_id), False)
        ]
        about = f"storage/{name}"
        if domain_id in protected_on and len(able) < 2 <= len(up):
            hosts = ", ".join(able) or "no host that is up"
            reason = _reason("ready.storage_not_shared", storage=name, hosts=hosts)
            found.append(finding(about, reason))
        low = _low_space(surroundings, domain_id, up)
        if low is not None:
            found.append(finding(about, _reason("ready.storage_full", storage=name, why=low)))
    return found


def _low_space(
    surroundings: Surroundings, domain_id: StorageDomainId, up: Mapping[HostId, HostRow]
) -> str | None:
    """Once for all its hosts: they share the space as well."""
    reports = (surroundings.reports.get((host_id, domain_id)) for host_id in up)
    told = (one.low_space for one in reports if one is not None and one.usable)
    return next((low for low in told if low is not UNSET), None)


def _is_told(code: str, cluster: Cluster, subscriptions: Sequence[Subscription]) -> bool:
    severity = REGISTRY[code].severity
    return any(
        one.cluster_id in (None, cluster.id)
        and one.host_id is None
        and one.vm_id is None
        and _RANK[severity] >= _RANK[one.severity]
        and (not one.codes or any(fits(pattern, code) for pattern in one.codes))
        for one in subscriptions
    )


def _reason(code: str, **fields: Scalar) -> Reason:
    return Reason(code=code, fields=fields)
