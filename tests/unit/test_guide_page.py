"""How pages of the guide are read as what is to be done: ``tests/guide_page.py``."""

import pytest
from guide_page import is_seen, parse_page, read_page

PAGE = """# First

Type:

```sh server
virtha one
virtha two
```

```text
all is well
```

## Then

```sh host
virtha three
```
"""


def test_blocks_come_in_order_with_machine_and_section() -> None:
    first, second = parse_page(PAGE, "p.md")
    assert (first.section, first.machine, first.lines) == (
        "First",
        "server",
        "virtha one\nvirtha two",
    )
    assert (first.seen, first.line) == ("all is well", 8)
    assert (second.section, second.machine, second.seen) == ("Then", "host", "")


@pytest.mark.parametrize(
    "text",
    [
        "    virtha one\n",  # nobody would run it
        "```sh\nvirtha one\n```\n",
        "```console server\nvirtha one\n```\n",
        "```text\nseen before anything was typed\n```\n",
        "```sh server\nvirtha one\n",
        f"{PAGE}\n```text\na\n```\n```text\nb\n```\n",
    ],
)
def test_a_page_of_which_something_would_not_be_followed_is_refused(text: str) -> None:
    with pytest.raises(AssertionError, match=r"p\.md"):
        parse_page(text, "p.md")


@pytest.mark.parametrize("name", ["install.md", "first-cluster.md"])
def test_the_pages_that_are_followed_can_be_read(name: str) -> None:
    """The lab follows them; what breaks their form is told here."""
    assert {block.machine for block in read_page(name)} >= {"server"}


@pytest.mark.parametrize(
    ("seen", "said", "is_there"),
    [
        ("h1  up", "name state\nh1    up  \nh2 down\n", True),
        ("h1  up", "h1  upset\n", False),
        ("took …s", "took 4.3s\n", True),
        ("took …s", "took\n4.3s\n", False),
        ("a\n…\nd", "a\nb\nc\nd\n", True),
        ("a\n…\nd", "d\nb\na\n", False),
        ("a.c", "abc\n", False),
    ],
)
def test_what_a_page_shows_is_found_in_what_was_said(seen: str, said: str, is_there: bool) -> None:
    assert is_seen(seen, said) is is_there
