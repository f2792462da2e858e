"""Which objects can be searched for, and by which fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from virtha.search.tree import Relation

_SAMENESS = (Relation.EQUAL, Relation.UNEQUAL)
_ORDER = tuple(Relation)


class Kind(StrEnum):
    """What a field's values are."""

    TEXT = "text"
    NUMBER = "number"
    SIZE = "size"
    """Bytes. A bare number is MiB, as in oVirt."""
    DURATION = "duration"
    """Milliseconds."""
    WORD = "word"
    TIME = "time"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a noun. Names and words are lower case; users may write them in any."""

    name: str
    kind: Kind
    help: str
    nullable: bool = False
    """It may have no value: ``= null`` asks for that."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Of ``WORD``: each way of writing one -> the word."""
    ordered: bool = False
    """Of ``WORD``: they are in order, the least first."""
    free: bool = False
    """Free text looks at it."""
    sortable: bool = True
    described_by: str = ""
    """The noun whose field of this name the reference describes; empty: it is described itself."""

    def __post_init__(self) -> None:
        assert self.name == self.name.lower(), self.name
        assert (self.kind is Kind.WORD) == bool(self.words), f"{self.name}: words"
        assert not self.free or self.kind is Kind.TEXT, f"{self.name}: free text is text"

    @property
    def relations(self) -> tuple[Relation, ...]:
        if self.kind is Kind.TEXT or (self.kind is Kind.WORD and not self.ordered):
            return _SAMENESS
        return _ORDER

    @property
    def own_words(self) -> tuple[str, ...]:
        """Without other ways of writing them, in their order."""
        return tuple(dict.fromkeys(self.words.values()))


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One kind of object. ``related``: the nouns whose fields it can be searched by."""

    name: str
    """As it is written before the colon: ``Vms``."""
    aliases: tuple[str, ...]
    """Other ways of writing it, in lower case."""
    fields: Mapping[str, Field]
    related: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.name.lower(), *self.aliases)


Vocabulary = Mapping[str, Noun]
"""By name."""


def find_noun(vocabulary: Vocabulary, written: str) -> Noun | None:
    """In any case, in the singular and the plural."""
    wanted = written.lower()
    return next((noun for noun in vocabulary.values() if wanted in noun.spellings), None)
