"""Lists of the use cases, page by page, as oVirt's clients ask for them: all at once, searched, at most ``max``."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from virtha.api.ovirt.parameters import Parameters
from virtha.api.ovirt.search import Search, parse_search, select
from virtha.control.requests import LIST_LIMIT_MAX
from virtha.control.views import Page

T = TypeVar("T")
GetPage = Callable[[int, str | None], Awaitable[Page[T]]]
"""By limit and cursor."""


async def listed(
    parameters: Parameters, get_page: GetPage[T], words: Callable[[T], Mapping[str, str]]
) -> list[T]:
    """``words``: what one can be found by. Raises InvalidInput."""
    search = parse_search(parameters.search)
    plain = search == Search()
    items = await gather(get_page, parameters.max if plain else None)
    if plain:
        return items
    return select([(words(item), item) for item in items], search, parameters)


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
