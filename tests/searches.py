"""Strategies for searches of any vocabulary, as trees."""

from collections.abc import Callable, Mapping, Sequence

from hypothesis import strategies as st

from virtha.search.tree import (
    Ago,
    And,
    Compare,
    Day,
    DayName,
    FreeText,
    Instant,
    Literal,
    NamedDay,
    Node,
    Null,
    Number,
    Or,
    Pattern,
    Query,
    Relation,
    Sort,
    Word,
)
from virtha.search.vocabulary import Field, Kind, Noun

SAME = (Relation.EQUAL, Relation.UNEQUAL)
Literals = Callable[[Field], st.SearchStrategy[Literal]]


def patterns(part: st.SearchStrategy[str], *, anywhere: bool) -> st.SearchStrategy[Pattern]:
    """``anywhere``: as free text is, with a wildcard before and behind."""

    def made(inner: Sequence[str], before: bool, behind: bool) -> Pattern:
        before, behind = before or anywhere, behind or anywhere
        parts = [*([""] if before else []), *inner, *([""] if behind else [])]
        return Pattern(parts=tuple(parts or [""]))

    sometimes = st.booleans()
    return st.builds(made, st.lists(part.filter(bool), max_size=3), sometimes, sometimes)


def moments() -> st.SearchStrategy[Literal]:
    return st.one_of(
        st.integers(0, 253_402_300_799_999).map(lambda at: Instant(at=at)),
        st.dates().map(lambda date: Day(date=date.isoformat())),
        st.sampled_from(DayName).map(lambda name: NamedDay(name=name)),
        st.integers(0, 100 * 366 * 86_400_000).map(lambda ms: Ago(duration_ms=ms)),
    )


def any_literals(part: st.SearchStrategy[str]) -> Literals:
    def of(field: Field) -> st.SearchStrategy[Literal]:
        match field.kind:
            case Kind.TEXT:
                return patterns(part, anywhere=False)
            case Kind.NUMBER:
                return st.integers(-(2**63) + 1, 2**63 - 1).map(lambda n: Number(number=n))
            case Kind.SIZE | Kind.DURATION:
                return st.integers(0, 2**63 - 1).map(lambda n: Number(number=n))
            case Kind.WORD:
                return st.sampled_from(field.own_words).map(lambda word: Word(word=word))
            case Kind.TIME:
                return moments()

    return of


class From:
    """What conditions are made from. Its repr is short: Hypothesis writes down what strategies are made of."""

    def __init__(
        self, vocabulary: Mapping[str, Noun], part: st.SearchStrategy[str], literals: Literals
    ) -> None:
        self.vocabulary, self.part, self.literals = vocabulary, part, literals


@st.composite
def conditions(draw: st.DrawFn, noun: str, made: From) -> Node:
    vocabulary, part, literals = made.vocabulary, made.part, made.literals
    related = draw(st.sampled_from((None, None, *vocabulary[noun].related)))
    if draw(st.integers(0, 3)) == 0:
        return FreeText(
            pattern=draw(patterns(part, anywhere=True)),
            relation=draw(st.sampled_from(SAME)) if related is not None else Relation.EQUAL,
            related=related,
        )
    # First the family: of each other field there would be ninety of `policy.…`.
    families: dict[str, list[Field]] = {}
    for one in vocabulary[related or noun].fields.values():
        families.setdefault(one.name.partition(".")[0], []).append(one)
    field = draw(st.sampled_from(families[draw(st.sampled_from(list(families)))]))
    if field.nullable and draw(st.integers(0, 3)) == 0:
        relation = draw(st.sampled_from(SAME))
        return Compare(field=field.name, relation=relation, value=Null(), related=related)
    return Compare(
        field=field.name,
        relation=draw(st.sampled_from(field.relations)),
        value=draw(literals(field)),
        related=related,
    )


def nodes(one: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def joined(several: type[And] | type[Or], terms: list[Node]) -> Node:
        return several(terms=tuple(terms))

    return st.recursive(
        one,
        lambda inner: st.builds(
            joined, st.sampled_from([And, Or]), st.lists(inner, min_size=2, max_size=3)
        ),
        max_leaves=6,
    )


def queries(
    vocabulary: Mapping[str, Noun],
    noun: str,
    part: st.SearchStrategy[str],
    literals: Literals | None = None,
) -> st.SearchStrategy[Query]:
    """``part``: what stands between wildcards."""
    sortable = [field.name for field in vocabulary[noun].fields.values() if field.sortable]
    one = conditions(noun, From(vocabulary, part, literals or any_literals(part)))
    sorts = st.builds(Sort, field=st.sampled_from(sortable), descending=st.booleans())
    return st.builds(
        Query,
        noun=st.just(noun),
        where=st.none() | nodes(one),
        sort=st.none() | sorts,
        page=st.none(),
    )
