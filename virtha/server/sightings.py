"""What witnesses said last of each silent host, for the record of its incident (X4): beside the engine, which judges by what it
keeps itself. In the leader's memory only; what is written of it stands beside the verdict, and nothing rests on it.
"""

from collections.abc import Callable, Iterable, Sequence

import structlog

from virtha.control.incident_log import (
    JUDGED,
    NOTHING_OBSERVED,
    Observed,
    SentOrder,
    Sight,
)
from virtha.engine.events import (
    BeatSeen,
    DisksWatched,
    EngineEvent,
    Intent,
    NeighbourAnswered,
    Notice,
    OrderPower,
    PowerRead,
    SaveHost,
    SessionChanged,
    SlotChanged,
)
from virtha.model.ids import HostId
from virtha.model.incident import IncidentEntry, Sighting
from virtha.model.power import device_name
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import Reason

HOSTS_MAX = 10_000
OF_A_HOST_MAX = 32
SENT_MAX = 1_000
EXPLAINED_MAX = 200
"""Hosts of one write whose evidence is kept: when more fall at once, the write comes first."""
SERVER = "this server"
_DISKS = {True: "written", False: "quiet", None: "could not tell"}
_Key = tuple[str, str]
"""Who said it, and by what way."""


_log = structlog.get_logger(__name__)


class SightingBook:
    """Of one leader."""

    def __init__(
        self,
        *,
        now: Callable[[], Millis],
        wall: Callable[[], UtcMillis],
        name: Callable[[HostId], str],
        explain: Callable[[HostId], tuple[Reason, ...]],
    ) -> None:
        """``now``: cluster time. ``name``: what people call a host. ``explain``: why it is as it is, right after a step."""
        self._now = now
        self._wall = wall
        self._name = name
        self._explain = explain
        self._said: dict[HostId, dict[_Key, tuple[str, Millis]]] = {}
        self._sent: list[SentOrder] = []

    def heard(self, events: Iterable[EngineEvent]) -> None:
        """Beats are most of them, and cost one look."""
        for event in events:
            match event:
                case BeatSeen():
                    continue
                case NeighbourAnswered():
                    name = self._name(event.witness)
                    self._note(event.subject, name, event.network, event.answer.value)
                case DisksWatched():
                    said = f"{_DISKS[event.changed]} ({event.disks} compared)"
                    self._note(event.subject, self._name(event.witness), "disks", said)
                case SlotChanged():
                    self._note(event.subject, self._name(event.witness), "slot", "goes on")
                case PowerRead():
                    why = "" if event.error is None else f": {event.error}"
                    self._note(
                        event.host_id, device_name(event.device), "power", event.state.value + why
                    )
                case SessionChanged():
                    self._session(event)
                case _:
                    pass

    def sent(self, command: OrderPower) -> None:
        """It was handed to its device just now."""
        fields = {
            "device": device_name(command.device),
            "action": command.action.value,
            "order": command.order_id,
        }
        entry = IncidentEntry(
            code="incident.fence.sent",
            at=self._wall(),
            clock_ms=int(self._now()),
            fields={**fields},
        )
        self._sent.append(SentOrder(host_id=command.host_id, entry=entry))
        del self._sent[:-SENT_MAX]

    def observed(self, intents: Sequence[Intent], notices: Sequence[Notice]) -> Observed:
        """For the write of what was just decided, which no trouble here may hold up."""
        try:
            return self._observed(intents, notices)
        except Exception:
            # A mistake of ours about what people read of it; what the engine decides does not wait for that.
            _log.exception("what was seen of an incident can't be told")
            return NOTHING_OBSERVED

    def _observed(self, intents: Sequence[Intent], notices: Sequence[Notice]) -> Observed:
        judged = [one.host_id for one in notices if one.code in JUDGED and one.host_id is not None]
        silent = {
            intent.record.host_id: intent.record.incident.silent_since_ms
            for intent in intents
            if isinstance(intent, SaveHost) and intent.record.incident is not None
        }
        if not silent:
            return Observed()
        return Observed(
            sights={
                host_id: Sight(
                    seen=self._about(host_id, silent.get(host_id, 0)),
                    reasons=self._explain(host_id),
                )
                for host_id in judged[:EXPLAINED_MAX]
            },
            # Not of an incident before this one, whose end came too soon for it.
            sent=tuple(
                one
                for one in self._sent
                if one.host_id in silent and (one.entry.clock_ms or 0) >= silent[one.host_id]
            ),
        )

    def written(self, observed: Observed) -> None:
        """It stands on record."""
        if observed.sent:
            self._sent = [one for one in self._sent if one not in observed.sent]

    def _about(self, host_id: HostId, since_ms: int) -> tuple[Sighting, ...]:
        """Since it fell silent, the newest first."""
        now = self._now()
        said = self._said.get(host_id, {})
        return tuple(
            Sighting(by=by, via=via, said=what, age_ms=now - at)
            for (by, via), (what, at) in sorted(said.items(), key=lambda one: (-one[1][1], one[0]))
            if at >= since_ms
        )

    def _note(self, subject: HostId, by: str, via: str, said: str) -> None:
        of_it = self._said.pop(subject, {})
        of_it.pop((by, via), None)
        of_it[by, via] = (said, self._now())
        if len(of_it) > OF_A_HOST_MAX:
            del of_it[next(iter(of_it))]
        self._said[subject] = of_it
        if len(self._said) > HOSTS_MAX:
            del self._said[next(iter(self._said))]

    def _session(self, event: SessionChanged) -> None:
        if event.up:
            self._said.pop(event.host_id, None)
            return
        said = "broke" if event.broken else "ended"
        self._note(event.host_id, SERVER, f"session of its {event.process.value}", said)
