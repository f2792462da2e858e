"""A router whose decisions are kept as the database keeps them, on a clock that the test moves."""

import msgspec

from virtha.alerts.decision import Decision
from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.router import Router
from virtha.model.codes import REGISTRY, Severity
from virtha.model.event import Event
from virtha.model.ids import (
    ClusterId,
    GroupId,
    HostId,
    InhibitionId,
    ReceiverId,
    Revision,
    SilenceId,
    SubscriptionId,
    VmId,
)
from virtha.model.notification import Subscription
from virtha.model.routing import (
    Fate,
    FateState,
    Group,
    GroupBy,
    Inhibition,
    Matcher,
    Same,
    Silence,
)
from virtha.model.time import UtcMillis

START = 1_769_857_200_000
"""2026-01-31 11:00 UTC, a Saturday."""
S = 1_000


def route(name: str = "r", **changes: object) -> Subscription:
    values: dict[str, object] = {"severity": Severity.WARNING, "solved": True, **changes}
    made = Subscription(
        id=SubscriptionId(name), name=name, receiver_id=ReceiverId(f"to {name}"), **values
    )
    return made


def by_cause(**changes: object) -> Subscription:
    return route(**{"group_by": GroupBy.CAUSE, **changes})


def silence(name: str = "s", *, begins: int = 0, ends: int = 3_600, **matcher: object) -> Silence:
    """Seconds from the story's beginning."""
    return Silence(
        id=SilenceId(name),
        matcher=Matcher(**matcher),
        reason="work",
        by="eve",
        begins=UtcMillis(START + begins * S),
        ends=UtcMillis(START + ends * S),
    )


def rule(source: str, target: str, name: str = "i", *, same: Same = Same.HOST) -> Inhibition:
    return Inhibition(
        id=InhibitionId(name),
        name=name,
        source=Matcher(codes=(source,)),
        target=Matcher(codes=(target,)),
        same=same,
    )


class Story:
    def __init__(self, *routes: Subscription, **config: object) -> None:
        self.config = RoutingConfig(routes=routes, **config)
        self.now = START
        self.revision = 0
        self.events: dict[Revision, Event] = {}
        self.groups: dict[GroupId, Group] = {}
        self.fates: dict[tuple[Revision, SubscriptionId], Fate] = {}
        self.told: list[tuple[str, str, str, list[str]]] = []
        """Route, why (the last word of the code), kind, the codes that it names; the head first."""
        self.counted: set[tuple[Revision, SubscriptionId]] = set()
        """Told as one of a number."""
        self.wake_at: int | None = None
        self.router = self.reopened()

    def reopened(self) -> Router:
        """As a server that begins anew finds it."""
        stored = msgspec.json.encode(list(self.groups.values()))
        return Router(msgspec.json.decode(stored, type=list[Group]), lambda _zone, _at: 0)

    def event(
        self,
        code: str,
        host: str | None = None,
        vm: str | None = None,
        incident: str | None = None,
        **fields: str,
    ) -> Event:
        self.revision += 1
        if incident is not None:
            fields["incident_id"] = incident
        made = Event(
            revision=Revision(self.revision),
            code=code,
            severity=REGISTRY[code].severity,
            message=code,
            fields=dict(fields),
            cluster_id=ClusterId("c"),
            host_id=HostId(host) if host else None,
            vm_id=VmId(vm) if vm else None,
            at=UtcMillis(self.now),
        )
        self.events[made.revision] = made
        return made

    def happens(
        self, code: str, host: str | None = None, vm: str | None = None, **more: str
    ) -> Revision:
        made = self.event(code, host, vm, **more)
        self.step(made)
        return made.revision

    def step(self, *events: Event) -> Decision:
        decision = self.router.step(self.now, self.config, events)
        self.keep(decision)
        return decision

    def after(self, seconds: float) -> None:
        """Time passes, and whatever falls due meanwhile is told when it does."""
        until = self.now + int(seconds * S)
        for _ in range(10_000):
            if self.wake_at is None or self.wake_at > until:
                break
            self.now = max(self.now, self.wake_at)
            self.step()
        else:
            raise AssertionError("it never comes to rest")
        self.now = until
        self.step()

    def configure(self, **changes: object) -> None:
        self.config = msgspec.structs.replace(self.config, **changes)
        self.step()

    def keep(self, decision: Decision) -> None:
        self.wake_at = decision.wake_at
        for fate in decision.fates:
            self.fates[fate.event_revision, fate.subscription_id] = fate
        for tell in decision.tells:
            for fate in tell.fates:
                self.fates[fate.event_revision, fate.subscription_id] = fate
            if tell.counted_of is not None:
                self._settle_counted(tell.counted_of, FateState.TOLD)
            head = tell.event_revision
            listed = tell.note.revisions if tell.note else (head,)
            others = [self.events[one].code for one in listed if one != head]
            why = tell.note.reason.rpartition(".")[2] if tell.note else "alone"
            kind = tell.note.kind if tell.note else ""
            self.told.append((tell.route.id, why, kind, [self.events[head].code, *others]))
        for group_id in decision.uncounted:
            self._settle_counted(group_id, FateState.SPARED)
        for group_id, group in decision.groups.items():
            if group is None:
                del self.groups[group_id]
            else:
                self.groups[group_id] = group

    def _settle_counted(self, group_id: GroupId, state: FateState) -> None:
        for key, fate in self.fates.items():
            waits = fate.state is FateState.WAITS and fate.code == "notify.why.counted"
            if waits and fate.group_id == group_id:
                if state is FateState.TOLD:
                    self.counted.add(key)
                self.fates[key] = msgspec.structs.replace(fate, state=state)

    def fate(self, revision: Revision, name: str = "r") -> str:
        """The last word of its code."""
        return self.fates[revision, SubscriptionId(name)].code.rpartition(".")[2]

    def messages(self) -> list[tuple[str, list[str]]]:
        """Why, and what; since they were last asked for."""
        found = [(why, codes) for _, why, _, codes in self.told]
        self.told.clear()
        return found
