"""Whatever a search says can be written down and is read back as the same; and no text but is read or refused."""

from hypothesis import given, settings
from hypothesis import strategies as st
from little_vocabulary import VOCABULARY
from msgspec.structs import replace
from searches import queries

from virtha.model.errors import InvalidInput
from virtha.search import Query, parse, print_query

SEEN = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=8)
PART = st.one_of(SEEN, st.sampled_from(['"', "\\", "*", "null", "and", "(", "page", "Vms:", "\\*"]))


@given(
    st.sampled_from(sorted(VOCABULARY)).flatmap(lambda noun: queries(VOCABULARY, noun, PART)),
    st.none() | st.integers(1, 1_000_000),
)
@settings(max_examples=200)
def test_what_is_written_down_is_read_back_as_the_same(query: Query, page: int | None) -> None:
    query = replace(query, page=page)
    assert parse(print_query(query, VOCABULARY), VOCABULARY, query.noun) == query


# fmt: off
WORDS = st.sampled_from([
    "(", ")", '"', "\\", "*", "=", "!=", ">", "<=", "and", "or", "sortby", "page", "desc", "null",
    "name", "memory", "last_event", "status", "Vms:", "Hosts.name", ".", ":", "-", "1", "2026-01-01",
    "today", "-2h", "4GiB", "é", "x", " ", "\n", "\0", "\ud800",
])
# fmt: on


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
