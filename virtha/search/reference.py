"""The reference page of what can be searched for: one table per object, from the vocabulary."""

from virtha.search.lexer import LENGTH_MAX, WILDCARDS_MAX
from virtha.search.parser import DEPTH_MAX, PAGE_MAX, TERMS_MAX, family
from virtha.search.tree import DayName
from virtha.search.vocabulary import Field, Kind, Noun, Vocabulary

_VALUES = {
    Kind.TEXT: "text, `*` for anything",
    Kind.NUMBER: "a whole number",
    Kind.SIZE: "a size: `4GiB`; a bare number is MiB",
    Kind.DURATION: "a duration: `1.5s`",
    Kind.TIME: "a time",
}


def reference_markdown(vocabulary: Vocabulary) -> str:
    lines = [
        "# Fields of the search language",
        "",
        "Generated from the program by `make docs`. How searches are written: [Searching](../guide/search.md).",
        "",
        "| bound | at most |",
        "|---|---|",
        f"| characters | {LENGTH_MAX} |",
        f"| conditions | {TERMS_MAX} |",
        f"| parentheses inside each other | {DEPTH_MAX} |",
        f"| wildcards in one value | {WILDCARDS_MAX} |",
        f"| `page` | {PAGE_MAX} |",
        "",
        "Times: `2026-01-31` (a day in UTC), `2026-01-31T12:00:00Z` (any zone), "
        + ", ".join(f"`{name.value}`" for name in DayName)
        + ", and `-2h` (two hours ago; `ms s m h d`).",
    ]
    for noun in vocabulary.values():
        lines += _noun(noun)
    return "\n".join(lines) + "\n"


def _noun(noun: Noun) -> list[str]:
    lines = ["", f"## {noun.name}", ""]
    if noun.related:
        lines += [f"By fields of: {', '.join(f'`{name}.`' for name in noun.related)}", ""]
    lines += [
        "| field | what | values | relations | null | free text | sort |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_field(one) for one in noun.fields.values() if not one.described_by]
    elsewhere = {(family(one.name), one.described_by) for one in noun.fields.values()}
    for name, other in sorted(elsewhere):
        if other:
            lines += [
                "",
                f"And `{name}`, of the one that it belongs to: [{other}](#{other.lower()}).",
            ]
    return lines


def _field(one: Field) -> str:
    values = _VALUES.get(one.kind) or _words(one)
    relations = " ".join(f"`{relation.value}`" for relation in one.relations)
    marks = [("yes" if told else "") for told in (one.nullable, one.free, one.sortable)]
    return f"| `{one.name}` | {one.help} | {values} | {relations} | {' | '.join(marks)} |"


def _words(one: Field) -> str:
    """In order, each with other ways of writing it."""
    told = []
    for word in one.own_words:
        also = [f"`{name}`" for name, meant in one.words.items() if meant == word and name != word]
        told.append(f"`{word}`" + (f" ({', '.join(also)})" if also else ""))
    return ", ".join(told)
