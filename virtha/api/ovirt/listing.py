"""Lists of the use cases, page by page, as oVirt's clients ask for them: all at once, searched, at most ``max``."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from virtha.api.ovirt.parameters import Parameters
from virtha.api.ovirt.search import page_size
from virtha.api.ovirt.shape import TURN, Node
from virtha.api.ovirt.sign_in import DOMAIN
from virtha.control.requests import LIST_LIMIT_MAX, SearchQuery
from virtha.control.searching import (
    CLIENTS_VOCABULARY,
    OVIRT_STATUS,
    read_search,
    show_search,
)
from virtha.control.views import Page
from virtha.model.errors import InvalidInput
from virtha.search import Query
from virtha.search.tree import And, Compare, Or, Pattern, Relation, Sort
from virtha.search.tree import Node as Condition

T = TypeVar("T")
Q = TypeVar("Q", bound=SearchQuery)
GetPage = Callable[[int, str | None], Awaitable[Page[T]]]
"""By limit and cursor."""


async def listed(
    parameters: Parameters,
    noun: str,
    get: Callable[[Q], Awaitable[Page[T]]],
    query: Q,
    *,
    cluster: str | None = None,
    renamed: Callable[[T], tuple[str, str]] | None = None,
) -> list[T]:
    """``noun``: of the search language. ``query``: what else is asked of the use case. ``cluster``: by id, those of it
    alone: before ``max`` and pages are counted. ``renamed``: id and name of one, where names may change: each is there
    once, whatever its name was when its page was read. Raises InvalidInput."""
    search = the_search(parameters, noun)
    if cluster is not None:
        search = _within(search, noun, cluster)
    if search is not None:
        query = msgspec.structs.replace(
            query, search=show_search(search), case_sensitive=parameters.case_sensitive
        )
    if search is not None and search.page is not None:
        return list(
            (await get(msgspec.structs.replace(query, limit=size_of_page(parameters)))).items
        )

    async def page(limit: int, after: str | None) -> Page[T]:
        return await get(msgspec.structs.replace(query, limit=limit, after=after))

    at_most = parameters.max
    sorted_by_name = search is None or search.sort is None
    if renamed is None or not sorted_by_name or (at_most is not None and at_most <= LIST_LIMIT_MAX):
        return await gather(page, at_most)
    first = await page(LIST_LIMIT_MAX, None)
    if first.next is None:
        return list(first.items)
    # By what stays: a name that changes between two pages would be on both of them, or on none.
    by_id = msgspec.structs.replace(search or Query(noun=noun), sort=Sort(field="id"))
    query = msgspec.structs.replace(
        query, search=show_search(by_id), case_sensitive=parameters.case_sensitive
    )
    found = {renamed(one)[0]: one for one in await gather(page)}
    return sorted(found.values(), key=lambda one: renamed(one)[1])[:at_most]


def the_search(parameters: Parameters, noun: str) -> Query | None:
    """None: all are asked for. Raises InvalidInput, which points at the column."""
    if not parameters.search.strip():
        return None
    query = read_search(parameters.search, noun, after=None, vocabulary=CLIENTS_VOCABULARY)
    where, sort = query.where, query.sort
    if where is not None:
        where = _own_names(where, noun)
    if sort is not None:
        sort = msgspec.structs.replace(sort, field=_own_field(sort.field, noun))
    return msgspec.structs.replace(query, where=where, sort=sort)


def _within(search: Query | None, noun: str, cluster: str) -> Query:
    wanted = Pattern(parts=(cluster,))
    own = Compare(field="id", relation=Relation.EQUAL, value=wanted, related="Clusters")
    if search is None or search.where is None:
        return msgspec.structs.replace(search or Query(noun=noun), where=own)
    return msgspec.structs.replace(search, where=And(terms=(own, search.where)))


def _own_names(node: Condition, noun: str) -> Condition:
    """``usrname = admin@internal`` is our ``admin``, ``status`` what their clients are shown."""
    match node:
        case And() | Or():
            terms = tuple(_own_names(term, noun) for term in node.terms)
            return msgspec.structs.replace(node, terms=terms)
        case Compare(field="usrname", value=Pattern(parts=(*before, last))):
            parts = (*before, last.removesuffix(f"@{DOMAIN}"))
            return msgspec.structs.replace(node, value=Pattern(parts=parts))
        case Compare():
            return msgspec.structs.replace(node, field=_own_field(node.field, node.related or noun))
        case _:
            return node


def _own_field(name: str, noun: str) -> str:
    is_shown = name == "status" and OVIRT_STATUS in CLIENTS_VOCABULARY[noun].fields
    return OVIRT_STATUS if is_shown else name


def size_of_page(parameters: Parameters) -> int:
    """Of ``page N``. Raises InvalidInput."""
    size = page_size(parameters)
    if not 1 <= size <= LIST_LIMIT_MAX:
        raise InvalidInput(
            f"a page of {size}", field="max", allowed=(f"1 to {LIST_LIMIT_MAX}, with page N",)
        )
    return size


async def in_turns(items: Sequence[T], make: Callable[[T], Node]) -> list[Node]:
    """With looks at what else the server has to do."""
    found: list[Node] = []
    for begin in range(0, len(items), TURN):
        found += map(make, items[begin : begin + TURN])
        await asyncio.sleep(0)
    return found


async def gather(get_page: GetPage[T], at_most: int | None = None) -> list[T]:
    found: list[T] = []
    after: str | None = None
    while at_most is None or len(found) < at_most:
        left = LIST_LIMIT_MAX if at_most is None else min(LIST_LIMIT_MAX, at_most - len(found))
        page = await get_page(left, after)
        found += page.items
        after = page.next
        if after is None:
            break
    return found
