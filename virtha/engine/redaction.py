"""A journal without names, to go with a bug report: ids stand for hosts, VMs and groups, numbers for people, tags,
networks and what people wrote. It replays like the journal it was made from: nothing is decided by a name.

(One thing is *told* by names: of several that could be named, the first in their order. A redacted journal may so
differ in a detail of a notice; what is done is the same.)
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct, structs

from virtha.engine.affinity import AffinityGroup
from virtha.engine.capacity import Feature, FeatureKind, TargetHost
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.dependencies import Dependency
from virtha.engine.events import (
    DeathConfirmed,
    Decision,
    EngineEvent,
    HoldChanged,
    NeighbourAnswered,
    Notice,
)
from virtha.engine.journal import SegmentReader, SegmentWriter
from virtha.engine.records import ClusterRecord, HostRecord
from virtha.engine.snapshot import EngineSnapshot, NeighbourWord
from virtha.model.policy import Policy
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import Reason

FORCED = ", forced: "
"""As ``operator.death_confirmed`` writes it."""
_WORDS = re.compile(r"([^\w.:-]+)")
_ID_OF: dict[type, str] = {
    EngineHost: "host_id",
    EngineVm: "vm_id",
    AffinityGroup: "id",
    Dependency: "vm_id",
    TargetHost: "id",
    HostRecord: "host_id",
}
"""Which field stands for ``name``."""
_WRITTEN: dict[type, str] = {
    HoldChanged: "reason",
    EngineSnapshot: "hold",
    ClusterRecord: "hold",
    DeathConfirmed: "force_reason",
}
"""What a person wrote."""
_PERSON: dict[type, str] = {HostRecord: "maintenance"}
"""A person's name; everywhere else it is in ``by``."""

_T = TypeVar("_T")


class Redactor:
    """One for all segments of a ring, so that the same name becomes the same word everywhere."""

    def __init__(self) -> None:
        self._word_for: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def segment(self, reader: SegmentReader) -> bytes:
        """The readable part of a segment, anew; b"" for one that has none."""
        if reader.header is None or reader.snapshot is None:
            return b""
        writer = SegmentWriter()
        parts = [writer.begin(reader.header, self.state(reader.snapshot))]
        for turn in reader.turns():
            parts.append(writer.turn(turn.now, self.events(turn.events)))
            if turn.decision is not None:
                parts.append(writer.decided(self.decision(turn.decision)))
        return b"".join(parts)

    def state(self, snapshot: EngineSnapshot) -> EngineSnapshot:
        for host in snapshot.hosts:
            self._learn(host.config)
        for vm in snapshot.vms:
            self._learn(vm.config)
        for record in snapshot.kept_hosts:
            if record.name is not None:
                self._word_for[record.name] = record.host_id
        return self._anew(snapshot)

    def events(self, events: Sequence[EngineEvent]) -> tuple[EngineEvent, ...]:
        return tuple(self._anew(event) for event in events)

    def decision(self, decision: Decision) -> Decision:
        return self._anew(decision)

    def _learn(self, config: EngineHost | EngineVm) -> None:
        """Before any text that may contain it."""
        key = config.host_id if isinstance(config, EngineHost) else config.vm_id
        self._word_for[config.name] = key

    def _anew(self, value: _T) -> _T:
        """The same value without names."""
        changed: Any = value
        match value:
            case Policy():
                pass  # numbers and choices
            case Struct():
                changed = self._struct(value)
            case Feature():
                if value.kind is not FeatureKind.STORAGE:
                    changed = Feature(value.kind, self._numbered(value.kind, value.name))
            case tuple():
                changed = tuple([self._anew(one) for one in value])
            case frozenset():
                changed = frozenset([self._anew(one) for one in value])
            case dict():
                changed = {key: self._anew(one) for key, one in value.items()}
            case _:
                pass
        return changed  # type: ignore[no-any-return]  # each case keeps the type of what it was given

    def _struct(self, value: Struct) -> Struct:
        kind = type(value)
        if isinstance(value, EngineHost | EngineVm):
            self._learn(value)
        changes: dict[str, Any] = {}
        for name in value.__struct_fields__:
            before = getattr(value, name)
            after = self._field(kind, name, before, value)
            if after is not before:
                changes[name] = after
        return structs.replace(value, **changes) if changes else value

    def _field(self, kind: type, name: str, before: Any, value: Struct) -> Any:
        if name == "name" and kind in _ID_OF and before is not None:
            return getattr(value, _ID_OF[kind])
        if isinstance(before, str):
            if name == "by" or name == _PERSON.get(kind):
                return self._numbered("person", before)
            if name == _WRITTEN.get(kind):
                return self._written(before)
            if name == "network" and kind in (NeighbourAnswered, NeighbourWord):
                return self._numbered("network", before)
            if name == "detail" and isinstance(value, Proof):
                return self._detail(value)
            return before
        if name == "fields" and kind in (Notice, Reason):
            return {
                key: self._text(one) if isinstance(one, str) else one for key, one in before.items()
            }
        if isinstance(before, Struct | tuple | frozenset | dict):
            return self._anew(before)
        return before

    def _detail(self, proof: Proof) -> str:
        """An operator's proof says who, and why it was forced; who gave it may be long out of the ring."""
        if proof.kind is not ProofKind.OPERATOR:
            return self._text(proof.detail)
        by, forced, why = proof.detail.partition(FORCED)
        return self._numbered("person", by) + forced + self._written(why)

    def _numbered(self, what: str, word: str) -> str:
        known = self._word_for.get(word)
        if known is None:
            self._counts[what] = self._counts.get(what, 0) + 1
            known = self._word_for[word] = f"{what}-{self._counts[what]}"
        return known

    def _written(self, text: str) -> str:
        if text and text not in self._texts:
            self._texts[text] = f"text-{len(self._texts) + 1}"
        return self._texts.get(text, text)

    def _text(self, text: str) -> str:
        """Sentences, lists of names, and single names."""
        for written in sorted(self._texts, key=len, reverse=True):
            text = text.replace(written, self._texts[written])
        return "".join(self._word_for.get(word, word) for word in _WORDS.split(text))
