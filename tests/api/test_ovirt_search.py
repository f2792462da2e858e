"""``search`` and ``max`` of the façade: what it searches itself, and what it says to the store's search."""

import pytest

from virtha.api.ovirt.listing import size_of_page, the_search
from virtha.api.ovirt.parameters import read_parameters
from virtha.api.ovirt.search import Anything, fits, noun, select
from virtha.control.searching import show_search
from virtha.model.errors import InvalidInput
from virtha.search import Query, parse
from virtha.search.tree import Compare, Pattern, Relation
from virtha.store.search_fields import VOCABULARY

ROWS = [
    ({"name": name, "description": text}, name)
    for name, text in (("web1", "front"), ("web2", "back"), ("db", "back"))
]
THINGS = noun("Things", "thing", fields=("name", "description"))


def found(text: str, **parameters: str) -> list[str]:
    pairs = [("search", text), *parameters.items()]
    return select(THINGS, ROWS, read_parameters(pairs))


def test_what_no_table_has_is_searched_in_the_same_language() -> None:
    assert found("") == ["web1", "web2", "db"]
    assert found("name=web1") == found('name = "web1"') == found("Things: name=web1") == ["web1"]
    assert found("name=web*") == ["web1", "web2"] and found("name=*b*") == ["web1", "web2", "db"]
    assert found("name=web* and description=back") == ["web2"]
    assert found("description != back") == ["web1"] and found("front") == ["web1"]
    assert found("name=db or (name=web* and description=front)") == ["web1", "db"]
    assert found("name=WEB1") == [] and found("name=WEB1", case_sensitive="false") == ["web1"]
    assert found("sortby name asc page 2", max="2") == ["web2"]
    assert found("sortby name desc") == ["web2", "web1", "db"]
    assert found("page 1") == ["web1", "web2", "db"] and found("page 2") == []
    assert found("name=*1*1*") == [] and found("name=w*e*b*1") == ["web1"]
    assert found("name=*", max="1") == ["web1"]


def test_what_has_no_value_is_found_by_its_absence_alone() -> None:
    query = parse("host = null", VOCABULARY, "Vms")
    plain = read_parameters([])
    assert fits(query, {"name": "web1"}, plain) and not fits(query, {"host": "h1"}, plain)
    for text, holds in (
        ("host = h1", False),
        ("host != h1", True),
        ("memory > 1GiB", False),
        ("memory != 1GiB", True),
        ("Hosts.name = h1", False),
        ("Hosts = h1", False),
        ("status = up", False),
    ):
        assert fits(parse(text, VOCABULARY, "Vms"), {"name": "web1"}, plain) is holds, text
    anywhere = {"name": "Blank", "status": "ready", "cluster": Anything.FITS}
    for text in ("name=Blank and cluster=west", "cluster != west", "status = ok"):
        assert fits(parse(text, VOCABULARY, "Templates"), anywhere, plain), text
    assert not fits(parse("west", VOCABULARY, "Templates"), anywhere, plain)


@pytest.mark.bad_input("search that can't be read")
@pytest.mark.parametrize(
    "text",
    [
        "name=x;drop table vm or",
        "name =",
        "=x",
        'name="x',
        "colour=red",
        "(" * 1_000,
        "Vms: name=x",
    ],
)
def test_a_search_that_is_not_understood_names_the_column(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        found(text)
    assert refused.value.field == "search" and "column" in refused.value.message
    assert refused.value.code == "problem.search.syntax"


def test_a_flood_of_wildcards_costs_nothing() -> None:
    pattern = Pattern(parts=("a",) * 1_500 + ("b",))
    query = Query(
        noun="Things", where=Compare(field="name", relation=Relation.EQUAL, value=pattern)
    )
    assert not fits(query, {"name": "a" * 1_000}, read_parameters([]))


def test_users_are_found_by_the_name_that_ovirt_gives_them() -> None:
    """``admin@internal`` is how its clients write ``admin``."""

    def searched(text: str) -> str:
        query = the_search(read_parameters([("search", text)]), "Users")
        assert query is not None
        return show_search(query)

    assert searched("usrname=admin@internal") == 'Users: usrname = "admin"'
    assert searched("usrname=*@internal or usrname!=eve") == (
        'Users: usrname = "*" or usrname != "eve"'
    )
    assert searched("name=admin@internal") == 'Users: name = "admin@internal"'
    assert the_search(read_parameters([("search", "  ")]), "Users") is None


@pytest.mark.bad_input("huge max")
def test_a_numbered_page_has_a_size() -> None:
    assert size_of_page(read_parameters([])) == 100
    assert size_of_page(read_parameters([("max", "1000")])) == 1_000
    for wrong in ("0", "1001", str(1 << 62)):
        with pytest.raises(InvalidInput) as refused:
            size_of_page(read_parameters([("max", wrong)]))
        assert refused.value.field == "max"
