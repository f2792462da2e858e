"""Where a request came from, by the word of proxies that are believed and of nobody else."""

import asyncio
from typing import Any

import pytest

from virtha.server.listeners import believing

PROXIES = ("192.0.2.10", "2001:db8::/64")


def seen(sender: str, *told: str) -> str:
    """As whom the application sees a request of ``sender`` with these lines of ``X-Forwarded-For``."""
    found = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        found.append(scope["client"][0])

    headers = [(b"x-forwarded-for", line.encode()) for line in told]
    scope: Any = {"type": "http", "client": (sender, 1), "headers": headers, "scheme": "https"}
    asyncio.run(believing(app, PROXIES)(scope, None, None))  # type: ignore[arg-type]  # the app receives and sends nothing
    return str(found[0])


@pytest.mark.parametrize(
    ("sender", "told", "where"),
    [
        ("192.0.2.10", ("203.0.113.7",), "203.0.113.7"),
        ("192.0.2.10", (), "192.0.2.10"),
        # Where the server listens on [::].
        ("::ffff:192.0.2.10", ("203.0.113.7",), "203.0.113.7"),
        ("2001:db8::7", ("2001:db8:1::9",), "2001:db8:1::9"),
        # Of what a client made up, nothing: each proxy adds whom it sees on the right.
        ("192.0.2.10", ("10.0.0.1, 203.0.113.7",), "203.0.113.7"),
        ("192.0.2.10", ("10.0.0.1", "203.0.113.7"), "203.0.113.7"),
        ("192.0.2.10", ("10.0.0.1, 203.0.113.7, 2001:db8::8",), "203.0.113.7"),
        # Nobody else is believed.
        ("192.0.2.11", ("203.0.113.7",), "192.0.2.11"),
        ("2001:db8:0:1::7", ("203.0.113.7",), "2001:db8:0:1::7"),
        ("127.0.0.1", ("203.0.113.7",), "127.0.0.1"),
    ],
)
def test_only_a_proxy_that_is_named_says_where_others_come_from(
    sender: str, told: tuple[str, ...], where: str
) -> None:
    assert seen(sender, *told) == where
