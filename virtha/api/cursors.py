"""Pages of lists: each cursor is of one list and one search, and lists that come whole are cut here.

Control knows where a page ended by a name or a number; what goes out is that place with a digest of the list that it is a place of,
so that another list's is refused instead of being read as a place in this one.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, get_origin

import msgspec

from virtha.api.route import Answer, PartQuery, Route
from virtha.control.names import check_limit
from virtha.control.views import Page
from virtha.model.errors import Gone, InvalidInput

_AFTER = "after"
_DIGEST_BYTES = 6
"""Against mistakes, not against forgers: whoever makes a cursor by hand sees what the list's reader may see anyway."""
_LENGTH_MAX = 8_192
_OF_A_PAGE = {_AFTER: None, "limit": 0}
"""What may differ from one page to the next."""


def placed(one: Route, path: dict[str, str], query: Any) -> Any:
    """The query with the place where the page before it ended. Raises InvalidInput."""
    if not _has_cursor(one.query, one.answer) or query.after is None:
        return query
    cursor: str = query.after
    try:
        if len(cursor) > _LENGTH_MAX:
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, place = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:].decode()
        if _text(raw) != cursor:
            raise ValueError
    except (ValueError, binascii.Error):
        raise InvalidInput(
            "is no cursor", field=_AFTER, fix="use `next` of the page before, as it is"
        ) from None
    if digest != _digest(one, path, query, place):
        raise InvalidInput(
            "is no cursor of this list and this search",
            field=_AFTER,
            fix="use `next` of the page before, for what that was asked for; or begin anew without it",
        )
    return msgspec.structs.replace(query, after=place)


def paged(one: Route, path: dict[str, str], query: Any, answer: Answer) -> Answer:
    """The answer with a cursor. Raises InvalidInput and Gone."""
    if not _has_cursor(one.query, one.answer):
        return answer
    page: Page[Any] = answer.body
    if one.cut_by is not None:
        page = _cut(page, query, one.cut_by)
    if page.next is not None:
        raw = _digest(one, path, query, page.next) + page.next.encode()
        page = msgspec.structs.replace(page, next=_text(raw))
    return replace(answer, body=page)


@cache
def _has_cursor(query: type, answer: Any) -> bool:
    """Events are followed by their revision, which is no secret, and consoles by bytes."""
    fields = {field.name: field.type for field in msgspec.structs.fields(query)}
    return get_origin(answer) is Page and fields.get(_AFTER) == (str | None)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _digest(one: Route, path: dict[str, str], query: Any, place: str) -> bytes:
    asked = msgspec.structs.replace(query, **_OF_A_PAGE)
    said = msgspec.json.encode([one.path, path, asked, place], order="sorted")
    return hashlib.blake2b(said, digest_size=_DIGEST_BYTES).digest()


def _cut(page: Page[Any], query: PartQuery, key_of: Callable[[Any], str]) -> Page[Any]:
    """One page of a list that came whole."""
    limit = check_limit(query.limit) if query.limit is not None else len(page.items)
    first = 0
    if query.after is not None:
        keys = [key_of(item) for item in page.items]
        if query.after not in keys:
            raise Gone(
                "what the page before ended with is no longer there",
                field=_AFTER,
                fix="load the list from its beginning",
            )
        first = keys.index(query.after) + 1
    shown = page.items[first : first + limit]
    more = first + limit < len(page.items)
    return msgspec.structs.replace(page, items=shown, next=key_of(shown[-1]) if more else None)
