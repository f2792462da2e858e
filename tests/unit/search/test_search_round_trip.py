"""Whatever a search says can be written down and is read back as the same; and no text but is read or refused."""

from hypothesis import given, settings
from hypothesis import strategies as st
from little_vocabulary import VOCABULARY

from virtha.model.errors import InvalidInput
from virtha.search import Query, parse, print_query
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
    Relation,
    Sort,
    Word,
)
from virtha.search.vocabulary import Field, Kind

NOUNS = sorted(VOCABULARY)
SEEN = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=8)
PART = st.one_of(SEEN, st.sampled_from(['"', "\\", "*", "null", "and", "(", "page", "Vms:", "\\*"]))


@st.composite
def patterns(draw: st.DrawFn, *, anywhere: bool) -> Pattern:
    inner = draw(st.lists(PART.filter(bool), max_size=4))
    before = anywhere or draw(st.booleans())
    behind = anywhere or draw(st.booleans())
    parts = [*([""] if before else []), *inner, *([""] if behind else [])]
    if len(parts) == 0 or (anywhere and len(parts) == 1):
        parts = [""]
    return Pattern(parts=tuple(parts))


def literals(field: Field) -> st.SearchStrategy[Literal]:
    of_kind: dict[Kind, st.SearchStrategy[Literal]] = {
        Kind.TEXT: patterns(anywhere=False),
        Kind.NUMBER: st.integers(-(2**63) + 1, 2**63 - 1).map(lambda n: Number(number=n)),
        Kind.SIZE: st.integers(0, 2**63 - 1).map(lambda n: Number(number=n)),
        Kind.WORD: st.sampled_from(field.own_words or ("",)).map(lambda word: Word(word=word)),
        Kind.TIME: st.one_of(
            st.integers(0, 253_402_300_799_999).map(lambda at: Instant(at=at)),
            st.dates().map(lambda date: Day(date=date.isoformat())),
            st.sampled_from(DayName).map(lambda name: NamedDay(name=name)),
            st.integers(0, 100 * 366 * 86_400_000).map(lambda ms: Ago(duration_ms=ms)),
        ),
    }
    return of_kind[field.kind]


@st.composite
def conditions(draw: st.DrawFn, noun: str) -> Node:
    related = draw(st.sampled_from((None, *VOCABULARY[noun].related)))
    if draw(st.booleans()):
        relation = draw(st.sampled_from([Relation.EQUAL, Relation.UNEQUAL]))
        return FreeText(
            pattern=draw(patterns(anywhere=True)),
            relation=relation if related is not None else Relation.EQUAL,
            related=related,
        )
    field = draw(st.sampled_from(list(VOCABULARY[related or noun].fields.values())))
    if field.nullable and draw(st.integers(0, 4)) == 0:
        return Compare(
            field=field.name,
            relation=draw(st.sampled_from([Relation.EQUAL, Relation.UNEQUAL])),
            value=Null(),
            related=related,
        )
    return Compare(
        field=field.name,
        relation=draw(st.sampled_from(field.relations)),
        value=draw(literals(field)),
        related=related,
    )


def nodes(noun: str) -> st.SearchStrategy[Node]:
    return st.recursive(
        conditions(noun),
        lambda inner: st.builds(
            lambda joint, terms: joint(terms=tuple(terms)),
            st.sampled_from([And, Or]),
            st.lists(inner, min_size=2, max_size=3),
        ),
        max_leaves=8,
    )


@st.composite
def queries(draw: st.DrawFn) -> Query:
    noun = draw(st.sampled_from(NOUNS))
    sortable = [field.name for field in VOCABULARY[noun].fields.values() if field.sortable]
    sorts = st.builds(Sort, field=st.sampled_from(sortable), descending=st.booleans())
    return Query(
        noun=noun,
        where=draw(st.none() | nodes(noun)),
        sort=draw(st.none() | sorts),
        page=draw(st.none() | st.integers(1, 1_000_000)),
    )


@given(queries())
@settings(max_examples=150)
def test_what_is_written_down_is_read_back_as_the_same(query: Query) -> None:
    assert parse(print_query(query, VOCABULARY), VOCABULARY, query.noun) == query


WORDS = st.sampled_from(
    (
        '( ) " \\ * = != > <= and or sortby page desc null name memory last_event status Vms: Hosts.name'
        " . : - 1 2026-01-01 today -2h 4GiB é x"
    ).split()
    + [" ", "\n", "\0", "\ud800"]
)


@given(
    st.text(max_size=60) | st.lists(WORDS, max_size=25).map(" ".join) | st.lists(WORDS).map("".join)
)
@settings(max_examples=500)
def test_any_text_is_read_or_refused_with_its_column(text: str) -> None:
    try:
        query = parse(text, VOCABULARY, "Vms")
    except InvalidInput as error:
        assert error.message.startswith("column "), error
        assert error.code == "problem.search.syntax"
        column = int(error.message.split(":")[0].removeprefix("column "))
        assert 1 <= column <= len(text) + 1
    else:
        assert parse(print_query(query, VOCABULARY), VOCABULARY, "Vms") == query
