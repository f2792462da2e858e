"""Rules for all unit tests."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _leaks_are_told_where_they_are_made() -> Iterator[None]:
    """A socket or transport that nobody closed is an error when the collector finds it. Without this that
    is in some later test, of another file, that makes much garbage: a property test above all."""
    yield
    gc.collect()
