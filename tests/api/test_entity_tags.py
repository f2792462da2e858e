"""Entity tags by themselves: what is written, and what is read of a header."""

import pytest

from virtha.api.entity_tags import is_known, revision_in, tag_of
from virtha.model.errors import InvalidInput

SHOWN = tag_of(42, b"{}")


def test_a_tag_tells_the_object_and_what_is_shown_of_it() -> None:
    assert tag_of(42) == '"42"'
    assert SHOWN.startswith('"42-') and tag_of(42, b"{ }") != SHOWN
    assert tag_of(None, b"{}") == '"' + SHOWN.removeprefix('"42')


@pytest.mark.parametrize("header", ['"42"', 'W/"42"', ' "42" ', SHOWN, f"W/{SHOWN}"])
def test_the_revision_is_read_of_either(header: str) -> None:
    assert revision_in(header) == 42
    assert revision_in("*") is None


@pytest.mark.bad_input("condition that nobody looks at")
@pytest.mark.parametrize(
    "header",
    [
        "",
        "42",
        '"',
        '""',
        '"42',
        '"-42"',
        '"x"',
        '"1", "2"',
        '"٤"',
        f'"{"9" * 19}"',
        '"42-x"',
        tag_of(None, b"{}"),
        '"42"\n"43"',
        "*, *",
        '"42-' + "0" * 25 + '"',
    ],
)
def test_what_is_no_objects_tag_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        revision_in(header)
    assert caught.value.field == "If-Match" and caught.value.fix


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (SHOWN, True),
        (f"W/{SHOWN}", True),
        (f'"a" , {SHOWN},"b"', True),
        ("*", True),
        ('"42"', False),
        ('""', False),
        (f'"a{SHOWN[1:]}', False),
    ],
)
def test_what_is_known_is_not_sent_again(header: str, known: bool) -> None:
    assert is_known(header, SHOWN) is known


@pytest.mark.bad_input("condition that nobody looks at")
@pytest.mark.parametrize("header", ["", "42", '"a" "b"', '"a",', ',"a"', '*,"a"', '"a', '"é"'])
def test_what_is_no_list_of_tags_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        is_known(header, SHOWN)
    assert caught.value.field == "If-None-Match"


def test_a_long_header_is_read_at_once() -> None:
    """No pattern that tries again and again."""
    with pytest.raises(InvalidInput):
        is_known('"a" , ' * 10_000 + "x", SHOWN)
    with pytest.raises(InvalidInput):
        is_known('"a"' + " " * 50_000 + "x", SHOWN)
