"""The judgement of the demo's host story: what may be said to have held."""

import pytest

from virtha.lab.host_story import runs_once_where_it_should


@pytest.mark.parametrize(
    ("copies", "home", "holds"),
    [
        (["h2"], "h1", True),
        (["h3"], "h3", True),
        (["h1"], "h1", False),
        ([], "h1", False),
        (["h1", "h2"], "h1", False),
        (["h2"], "h3", False),
        (["h1"], "h3", False),
        (["h2", "h3"], "h3", False),
        ([], "h3", False),
    ],
    ids=[
        "of the lost host, elsewhere now",
        "of another host, still there",
        "still where the power went",
        "of the lost host, nowhere",
        "of the lost host, twice",
        "of another host, gone from there",
        "of another host, now where the power went",
        "of another host, twice",
        "of another host, nowhere",
    ],
)
def test_each_vm_runs_once_and_where_it_should(copies: list[str], home: str, holds: bool) -> None:
    assert runs_once_where_it_should(copies, home=home, victim="h1") is holds
