"""Lists by the search language: the text into a page of keys, and the place where a page ended into its cursor."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from virtha.control.names import check_limit
from virtha.control.requests import SearchQuery
from virtha.model.errors import InvalidInput
from virtha.model.time import UtcMillis
from virtha.search import Query, parse, print_query
from virtha.search.vocabulary import Vocabulary
from virtha.store.search import Place, Wanted, find
from virtha.store.search import too_costly as too_costly
from virtha.store.search_fields import CLIENTS_VOCABULARY as CLIENTS_VOCABULARY
from virtha.store.search_fields import VOCABULARY
from virtha.store.search_source import Condition, Rows
from virtha.store.search_status import OVIRT_STATUS as OVIRT_STATUS
from virtha.store.store import Transaction

Besides = Callable[[Rows], Sequence[Condition]]
_CURSOR_MAX = 4_096
"""A remark of 1,000 characters of four bytes each fits, in base64, with a name."""


class Keys(NamedTuple):
    ids: tuple[str, ...]
    next: str | None


def read_search(
    text: str, noun: str, *, after: object, vocabulary: Vocabulary = VOCABULARY
) -> Query:
    """Raises InvalidInput (`problem.search.syntax`; a numbered page that goes on from a cursor)."""
    query = parse(text, vocabulary, noun)
    if query.page is not None and after is not None:
        raise InvalidInput(
            "a page is asked for by its number in the search, or by a cursor",
            field="after",
            fix="leave one of them out",
        )
    return query


def show_search(query: Query) -> str:
    """``read_search`` reads it back as the same."""
    return print_query(query, VOCABULARY)


async def page_of_search(
    tx: Transaction,
    noun: str,
    text: str,
    query: SearchQuery,
    *,
    now: UtcMillis,
    besides: Besides | None = None,
) -> Keys:
    """Ids in their order. ``now``: the wall clock, for days and durations. Raises InvalidInput."""
    limit = check_limit(query.limit)
    searched = read_search(text, noun, after=query.after)
    after = _place(query.after) if query.after is not None else None
    wanted = Wanted(searched, now, query.case_sensitive, limit, besides)
    found = await find(tx, wanted, after)
    return Keys(found.keys, _cursor(found.next) if found.next is not None else None)


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        if len(cursor) > _CURSOR_MAX:
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=Place)
        if isinstance(place.value, int) and abs(place.value) >= 1 << 63:
            raise ValueError
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise InvalidInput(
            "is no cursor of a search", field="after", fix="use `next` of the page before"
        ) from None
    return place
