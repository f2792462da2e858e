"""Recursive descent over the tokens of a search.

query     = [noun ":"] [all] ["sortby" field ["asc" | "desc"]] ["page" number]
all       = either {either}                    conditions side by side must all hold: they bind loosest, as in oVirt
either    = both {"or" both}
both      = single {"and" single}
single    = "(" all ")" | condition
condition = field relation value | noun "." field relation value | noun relation text | text
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from virtha.search.lexer import Kind, Token, fault, tokens
from virtha.search.tree import And, Compare, FreeText, Node, Or, Pattern, Query, Relation, Sort
from virtha.search.values import check_not_torn, read_value
from virtha.search.vocabulary import Field, Noun, Vocabulary, find_noun

DEPTH_MAX = 16
"""Of parentheses."""
TERMS_MAX = 64
"""Conditions of one search."""
PAGE_MAX = 1_000_000
_SORTBY, _PAGE, _AND, _OR = "sortby", "page", "and", "or"
_JOINTS = (_AND, _OR)


def parse(text: str, vocabulary: Vocabulary, noun: str) -> Query:
    """``noun``: what the list is of; the text may name it, and nothing else. Raises InvalidInput, which points at the column,
    names what is allowed there and a near word; never anything else."""
    return _Parser(tokens(text), vocabulary, vocabulary[noun]).query()


class _Parser:
    def __init__(self, found: tuple[Token, ...], vocabulary: Vocabulary, noun: Noun) -> None:
        self._tokens = found
        self._index = 0
        self._depth = 0
        self._terms = 0
        self._vocabulary = vocabulary
        self._noun = noun

    def query(self) -> Query:
        self._prefix()
        where = None if self._at_tail() else self._all()
        sort = self._sort()
        page = self._page()
        if self._now.kind is not Kind.END:
            self._unexpected()
        return Query(noun=self._noun.name, where=where, sort=sort, page=page)

    @property
    def _now(self) -> Token:
        return self._tokens[self._index]

    def _stands(self, kind: Kind) -> bool:
        return self._now.kind is kind

    def _take(self) -> Token:
        token = self._now
        self._index += 1
        return token

    def _is(self, *words: str) -> bool:
        return self._now.kind is Kind.WORD and self._now.raw.lower() in words

    def _at_tail(self) -> bool:
        return self._now.kind is Kind.END or self._is(_SORTBY, _PAGE)

    def _prefix(self) -> None:
        """``Vms:``, with or without a blank before the colon, and with or without one behind it."""
        token = self._now
        if token.kind is not Kind.WORD:
            return
        written, colon, rest = token.raw.partition(":")
        following = self._tokens[self._index + 1]
        parted = not colon and following.kind is Kind.WORD and following.raw.startswith(":")
        if parted:
            colon, rest, token = ":", following.raw[1:], following
        if not colon:
            return
        named = find_noun(self._vocabulary, written)
        if named is None and rest:
            return  # `52:54:00:…` is free text, and so is `web :8080`
        if named is not self._noun:
            self._wrong_noun(written, named)
        self._index += 2 if parted else 1
        if rest:
            self._split(token, len(token.raw) - len(rest))

    def _split(self, token: Token, behind: int) -> None:
        """What follows the colon without a blank is a word of its own."""
        (rest, *_) = tokens(token.raw[behind:])
        self._index -= 1
        moved = rest._replace(at=token.at + behind)
        self._tokens = (*self._tokens[: self._index], moved, *self._tokens[self._index + 1 :])

    def _wrong_noun(self, written: str, named: Noun | None) -> NoReturn:
        at = self._tokens[0].at
        if named is not None:
            fault(
                at,
                f"this is a list of {self._noun.name}, not of {named.name}",
                allowed=(f"{self._noun.name}:",),
                fix="leave it out, or search in the other list",
            )
        spellings = [word for noun in self._vocabulary.values() for word in noun.spellings]
        near = get_close_matches(written.lower(), spellings, n=1)
        fault(
            at,
            f"there is no object '{written[:40]}'",
            allowed=(f"{self._noun.name}:",),
            fix=f"did you mean {near[0]}?" if near else "put free text between quotation marks",
        )

    def _all(self) -> Node:
        found = [self._either()]
        while not self._at_tail() and self._now.kind is not Kind.CLOSE:
            found.append(self._either())
        return found[0] if len(found) == 1 else And(terms=tuple(found))

    def _either(self) -> Node:
        found = [self._both()]
        while self._is(_OR):
            self._take()
            found.append(self._both())
        return found[0] if len(found) == 1 else Or(terms=tuple(found))

    def _both(self) -> Node:
        found = [self._single()]
        while self._is(_AND):
            self._take()
            found.append(self._single())
        return found[0] if len(found) == 1 else And(terms=tuple(found))

    def _single(self) -> Node:
        if not self._stands(Kind.OPEN):
            return self._condition()
        opened = self._take()
        self._depth += 1
        if self._depth > DEPTH_MAX:
            fault(opened.at, "too many parentheses inside each other", allowed=(f"{DEPTH_MAX}",))
        found = self._all()
        if not self._stands(Kind.CLOSE):
            fault(
                self._now.at, "a parenthesis is not closed", fix=f"column {opened.at + 1} opens it"
            )
        self._take()
        self._depth -= 1
        return found

    def _condition(self) -> Node:
        token = self._now
        if token.kind not in (Kind.WORD, Kind.QUOTED) or self._is(*_JOINTS) or self._at_tail():
            self._unexpected()
        if self._is("not"):
            fault(
                token.at,
                "there is no 'not'",
                fix="!= finds what = doesn't; put it between quotation marks to look for the word",
            )
        self._terms += 1
        if self._terms > TERMS_MAX:
            fault(token.at, "too many conditions", allowed=(f"at most {TERMS_MAX}",))
        self._take()
        if self._now.kind is not Kind.RELATION:
            return FreeText(pattern=_anywhere(token))
        if token.kind is Kind.QUOTED:
            fault(token.at, "a field is not written between quotation marks", fix="leave them out")
        return self._comparison(token)

    def _comparison(self, token: Token) -> Node:
        written = token.raw.lower()
        before, dot, behind = written.partition(".")
        own = self._noun.fields.get(written)
        if own is not None:
            return self._compare(token, own, None)
        other = find_noun(self._vocabulary, before)
        if other is None or not self._reaches(other):
            self._unknown_field(token, written, self._noun, "")
        related = None if other is self._noun else other.name
        if not dot:
            return self._text_of(token, related)
        field = other.fields.get(behind)
        if field is None:
            self._unknown_field(token, behind, other, f"{other.name}.")
        return self._compare(token, field, related)

    def _reaches(self, other: Noun) -> bool:
        return other is self._noun or other.name in self._noun.related

    def _compare(self, token: Token, field: Field, related: str | None) -> Compare:
        relation = self._relation(token, field.relations)
        written = self._value()
        value = read_value(written, field)
        check_not_torn(written, self._now, field)
        return Compare(field=field.name, relation=relation, value=value, related=related)

    def _text_of(self, token: Token, related: str | None) -> FreeText:
        """`Hosts = web*`: free text of a related object."""
        if related is None:
            self._unknown_field(token, token.raw, self._noun, "")
        relation = self._relation(token, (Relation.EQUAL, Relation.UNEQUAL))
        return FreeText(pattern=_anywhere(self._value()), relation=relation, related=related)

    def _relation(self, of: Token, allowed: tuple[Relation, ...]) -> Relation:
        token = self._take()
        relation = Relation(token.raw)
        if relation not in allowed:
            fault(token.at, f"{of.shown} can't be compared by {token.raw}", allowed=allowed)
        return relation

    def _value(self) -> Token:
        if self._now.kind not in (Kind.WORD, Kind.QUOTED):
            fault(
                self._now.at,
                "a value is missing",
                fix='write it behind the relation; put parentheses and blanks between quotation marks, "" is the empty text',
            )
        return self._take()

    def _sort(self) -> Sort | None:
        if not self._is(_SORTBY):
            return None
        self._take()
        token = self._now
        field = self._noun.fields.get(token.raw.lower()) if token.kind is Kind.WORD else None
        sortable = tuple(one.name for one in self._noun.fields.values() if one.sortable)
        if field is None or not field.sortable:
            near = get_close_matches(token.raw.lower(), sortable, n=1)
            fault(
                token.at,
                f"{self._noun.name} can't be sorted by '{token.shown}'",
                allowed=_shortened(sortable),
                fix=f"did you mean {near[0]}?" if near else "",
            )
        self._take()
        descending = self._is("desc")
        if self._is("asc", "desc"):
            self._take()
        return Sort(field=field.name, descending=descending)

    def _page(self) -> int | None:
        if not self._is(_PAGE):
            return None
        self._take()
        token = self._now
        digits = (
            token.raw.isascii() and token.raw.isdigit() and len(token.raw) <= len(str(PAGE_MAX))
        )
        if token.kind is not Kind.WORD or not digits or not 1 <= int(token.raw) <= PAGE_MAX:
            fault(token.at, f"'{token.shown}' is no page", allowed=(f"1 to {PAGE_MAX}",))
        self._take()
        return int(token.raw)

    def _unknown_field(self, token: Token, written: str, noun: Noun, before: str) -> NoReturn:
        names = [f"{before}{name}" for name in _shortened(noun.fields)]
        if not before:
            names += [f"{name}.…" for name in noun.related]
        near = get_close_matches(written.lower(), noun.fields, n=1)
        fault(
            token.at,
            f"{noun.name} have no field '{written[:40]}'",
            allowed=tuple(names),
            fix=f"did you mean {before}{near[0]}?" if near else "",
        )

    def _unexpected(self) -> NoReturn:
        token = self._now
        if token.kind is Kind.END:
            fault(token.at, "the search ends where a condition should stand")
        wanted: tuple[str, ...] = ("a condition", "(")
        if token.kind is Kind.CLOSE:
            fault(token.at, "this parenthesis closes none", fix="leave it out")
        if token.kind is Kind.RELATION:
            fault(
                token.at,
                f"'{token.raw}' has no field before it",
                allowed=_shortened(self._noun.fields),
            )
        if self._index and self._tokens[self._index - 1].raw.isdigit():
            wanted = ("the end",)
        fault(
            token.at,
            f"'{token.shown}' can't stand here",
            allowed=wanted,
            fix="put it between quotation marks to look for the word",
        )


def _shortened(names: Iterable[str]) -> tuple[str, ...]:
    """Those of one family (`policy.lease.enabled`) by its name only."""
    return tuple(dict.fromkeys(family(name) if "." in name else name for name in names))


def family(name: str) -> str:
    return f"{name.partition('.')[0]}.…"


def _anywhere(token: Token) -> Pattern:
    """Free text may stand anywhere in a field: oVirt puts a wildcard before and behind it."""
    parts = token.parts
    if parts[0]:
        parts = ("", *parts)
    if parts[-1]:
        parts = (*parts, "")
    return Pattern(parts=parts if len(parts) > 1 else ("", ""))
