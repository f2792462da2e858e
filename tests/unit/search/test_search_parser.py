"""The search language: what is read, and what is refused, at which column."""

import pytest
from little_vocabulary import VOCABULARY

from virtha.model.errors import InvalidInput
from virtha.model.time import UtcMillis
from virtha.search import parse, print_query
from virtha.search.lexer import LENGTH_MAX
from virtha.search.moments import DAY_MS, Span, resolve
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
    Null,
    Number,
    Or,
    Pattern,
    Query,
    Relation,
    Sort,
    Word,
)


def read(text: str) -> Query:
    return parse(text, VOCABULARY, "Vms")


def one(field: str, value: Literal, relation: str = "=", related: str | None = None) -> Compare:
    return Compare(field=field, relation=Relation(relation), value=value, related=related)


def text(*parts: str) -> Pattern:
    return Pattern(parts=parts)


A, B, C = (one("name", text(letter)) for letter in "abc")


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ("", None),
        ("  ", None),
        ("Vms:", None),
        ("name=a", A),
        ("Vms:name=a", A),
        ("vM : NAME = a", A),
        ("vm :name= a", A),
        ('Vms:"a b"', FreeText(pattern=text("", "a b", ""))),
        ("name = a and name = b or name = c", Or(terms=(And(terms=(A, B)), C))),
        ("name = a or name = b and name = c", Or(terms=(A, And(terms=(B, C))))),
        ("name = a AND (name = b Or name = c)", And(terms=(A, Or(terms=(B, C))))),
        # Side by side binds loosest, as in oVirt.
        ("name = a or name = b name = c", And(terms=(Or(terms=(A, B)), C))),
        ("((name = a))", A),
        ("name=web*", one("name", text("web", ""))),
        ("name=**a**b", one("name", text("", "a", "b"))),
        ('name="a b(c)"', one("name", text("a b(c)"))),
        (r'name="\"\*\\"', one("name", text('"*\\'))),
        (r"name=DOMAIN\user", one("name", text(r"DOMAIN\user"))),
        (r"name=100\*", one("name", text("100*"))),
        ("name=a=b;c'd:e", one("name", text("a=b;c'd:e"))),
        ('name=""', one("name", text(""))),
        ('name="null"', one("name", text("null"))),
        ("host != NULL", one("host", Null(), "!=")),
        ('host = "null"', one("host", text("null"))),
        ("last_event != null", one("last_event", Null(), "!=")),
        ('last_event = "null"', one("last_event", Null())),
        ('last_event > "2026-01-01"', one("last_event", Day(date="2026-01-01"), ">")),
        ("last_event>=Today", one("last_event", NamedDay(name=DayName.TODAY), ">=")),
        ("last_event < monday", one("last_event", NamedDay(name=DayName.MONDAY), "<")),
        ("last_event > -1h30m", one("last_event", Ago(duration_ms=5_400_000), ">")),
        (
            "last_event <= 2026-01-01T01:00:00.5+01:00",
            one("last_event", Instant(at=UtcMillis(1_767_225_600_500)), "<="),
        ),
        (
            '"2026-01-01 00:00Z" last_event = "2026-01-01 00:00Z"',
            And(
                terms=(
                    FreeText(pattern=text("", "2026-01-01 00:00Z", "")),
                    one("last_event", Instant(at=UtcMillis(1_767_225_600_000))),
                )
            ),
        ),
        ("memory >= 512", one("memory", Number(number=512 << 20), ">=")),
        ("memory < 1.5GiB", one("memory", Number(number=3 << 29), "<")),
        ("policy.delay >= 1.5s", one("policy.delay", Number(number=1_500), ">=")),
        ("POLICY.delay_max = 1h30m", one("policy.delay_max", Number(number=5_400_000))),
        ("vcpus > -4", one("vcpus", Number(number=-4), ">")),
        ("STATUS = Up", one("status", Word(word="running"))),
        ("severity >= normal", one("severity", Word(word="info"), ">=")),
        ("Hosts.name = h1", one("name", text("h1"), related="Hosts")),
        ("host.NAME != h1", one("name", text("h1"), "!=", related="Hosts")),
        ("Vms.name = a", A),
        ("host = h1", one("host", text("h1"))),
        (
            "hosts != h1",
            FreeText(pattern=text("", "h1", ""), relation=Relation.UNEQUAL, related="Hosts"),
        ),
        ("web*1", FreeText(pattern=text("", "web", "1", ""))),
        ("*", FreeText(pattern=text("", ""))),
        ("52:54:00:ab", FreeText(pattern=text("", "52:54:00:ab", ""))),
        ("web.example.org", FreeText(pattern=text("", "web.example.org", ""))),
        ('"and"', FreeText(pattern=text("", "and", ""))),
        ('"not"', FreeText(pattern=text("", "not", ""))),
        (
            "web :8080",
            And(
                terms=(
                    FreeText(pattern=text("", "web", "")),
                    FreeText(pattern=text("", ":8080", "")),
                )
            ),
        ),
        (
            'memory = 4 "GiB"',
            And(
                terms=(
                    one("memory", Number(number=4 << 20)),
                    FreeText(pattern=text("", "GiB", "")),
                )
            ),
        ),
    ],
)
def test_what_is_read(written: str, where: object) -> None:
    query = read(written)
    assert query == Query(noun="Vms", where=query.where)
    assert query.where == where
    assert read(print_query(query, VOCABULARY)) == query


def test_sort_and_page() -> None:
    assert read("sortby NAME") == Query(noun="Vms", sort=Sort(field="name"))
    assert read("x SORTBY memory desc page 12").sort == Sort(field="memory", descending=True)
    assert read("Vms: page 3") == Query(noun="Vms", page=3)
    assert read("sortby name asc page 1").page == 1


@pytest.mark.parametrize(
    ("written", "column", "named"),
    [
        ("nme = x", 1, "did you mean name?"),
        ("name = a and satus = up", 14, "did you mean status?"),
        ("Hosts.nam = x", 1, "did you mean Hosts.name?"),
        ("Users.name = x", 1, "Hosts.…"),
        ("Vms = x", 1, "no field"),
        ("status = upp", 10, "allowed: running, down; did you mean up?"),
        ("status > up", 8, "allowed: =, !="),
        ("name >= a", 6, "allowed: =, !="),
        ("name == a", 7, "allowed: =, !=, >, <, >=, <="),
        ("name <> a", 7, "stands behind a relation"),
        ("memory = 4G", 10, "MiB"),
        ("memory = 1.0000000001GiB", 10, "whole number"),
        ("policy.delay = 5", 16, "1.5s"),
        ("policy.delay = 0.1ms", 16, "whole milliseconds"),
        ("policy.delay = 99999999999999999999999d", 16, "too long"),
        ("policy.dely = 5s", 1, "allowed: name, host, memory, vcpus, status, severity, policy.…, "),
        ("policy.dely = 5s", 1, "did you mean policy.delay?"),
        ("memory > 4 GiB", 12, 'write "4 GiB", or "GiB"'),
        ("policy.delay < 1h 30m", 19, 'write "1h30m"'),
        ("last_event > -1h 30m", 18, 'write "-1h30m"'),
        ("last_event > 2026-01-31 12:00Z", 25, 'write "2026-01-31 12:00Z"'),
        ("vcpus = four", 9, "a whole number"),
        ("vcpus = 99999999999999999999", 9, "a whole number"),
        ("vcpus = ٣", 9, "a whole number"),
        ("vcpus = 1*", 9, "no wildcards"),
        ("last_event > soon", 14, "yesterday"),
        ("last_event > 2026-02-30", 14, "2026-01-31"),
        ("last_event > 2026-01-01T12:00", 14, "2026-01-31T12:00:00Z"),
        ("last_event > 1969-12-31T23:00Z", 14, "2026"),
        ("last_event > -99999999999d", 14, "-2h"),
        ("last_event > -", 14, "-2h"),
        ("name = null", 8, 'write "null" for the text'),
        ("memory = null", 10, "always has a value"),
        ("name =", 7, "a value is missing"),
        ("name = )", 8, "a value is missing"),
        ('"name" = a', 1, "leave them out"),
        ("= a", 1, "allowed: name"),
        ("and", 1, "can't stand here"),
        ("not name = a", 1, "!= finds"),
        ("a and", 6, "ends where a condition"),
        ("a or )", 6, "closes none"),
        ("()", 2, "closes none"),
        ("(a", 3, "column 1 opens it"),
        ("a)", 2, "closes none"),
        ('"a', 1, "never closed"),
        ('"a\\"', 1, "never closed"),
        ('a"b"', 2, "inside a word"),
        ("sortby", 7, "allowed: name, host, memory, status"),
        ("sortby nam", 8, "did you mean name?"),
        ("sortby vcpus", 8, "allowed"),
        ("sortby name down", 13, "can't stand here"),
        ("sortby name and", 13, "can't stand here"),
        ("page", 5, "1 to"),
        ("page 0", 6, "1 to"),
        ("page -1", 6, "1 to"),
        ("page 1 name = a", 8, "allowed: the end"),
        ("page 99999999999999999999", 6, "1 to"),
        ("Hosts: x", 1, "not of Hosts"),
        ("Vmms: x", 1, "did you mean vms?"),
        ("a\0b", 2, "U+0000"),
        ("a\ud800b", 2, "U+D800"),
    ],
)
@pytest.mark.bad_input("search that can't be read")
def test_what_is_refused_and_where(written: str, column: int, named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(written)
    assert caught.value.code == "problem.search.syntax"
    assert caught.value.field == "search"
    assert caught.value.message.startswith(f"column {column}: ")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("(" * 100_000, "too long"),
        ("(" * (LENGTH_MAX - 1) + "a", "parentheses inside each other"),
        ("(" * 17 + "a" + ")" * 17, "parentheses inside each other"),
        ("name = " + "*a" * 9, "9 wildcards"),
        ("a " * 65, "too many conditions"),
        ("(a) " * 65, "too many conditions"),
    ],
)
@pytest.mark.bad_input("search that asks too much")
def test_a_search_has_bounds(written: str, named: str) -> None:
    with pytest.raises(InvalidInput, match=named) as caught:
        read(written)
    assert caught.value.allowed


def test_the_bounds_themselves_are_allowed() -> None:
    read("(" * 16 + "a" + ")" * 16)
    read("a " * 64)
    read("name = " + "*a" * 8)
    read("name = " + "*" * 1_000)
    read("a" * LENGTH_MAX)


NOW = UtcMillis(1_774_440_000_000)  # Wednesday, 2026-03-25T12:00:00Z
TODAY = NOW // DAY_MS * DAY_MS


@pytest.mark.parametrize(
    ("moment", "start", "length"),
    [
        (Instant(at=UtcMillis(5)), 5, 1),
        (Ago(duration_ms=1_000), NOW - 1_000, 1),
        (Day(date="1970-01-02"), DAY_MS, DAY_MS),
        (Day(date="9999-12-31"), 253_402_214_400_000, DAY_MS),
        (NamedDay(name=DayName.TODAY), TODAY, DAY_MS),
        (NamedDay(name=DayName.YESTERDAY), TODAY - DAY_MS, DAY_MS),
        (NamedDay(name=DayName.TUESDAY), TODAY - DAY_MS, DAY_MS),
        (NamedDay(name=DayName.WEDNESDAY), TODAY - 7 * DAY_MS, DAY_MS),
        (NamedDay(name=DayName.THURSDAY), TODAY - 6 * DAY_MS, DAY_MS),
    ],
)
def test_moments_are_seen_from_now(
    moment: Instant | Ago | Day | NamedDay, start: int, length: int
) -> None:
    assert resolve(moment, NOW) == Span(start, start + length)
