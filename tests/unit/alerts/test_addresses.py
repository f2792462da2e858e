"""What must hold of addresses at the moment they are used."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.alerts.addresses import forbidden_address, mail_address
from virtha.model.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ops@example.org", ("ops", "example.org")),
        ("a.b+c@sub.example.org", ("a.b+c", "sub.example.org")),
        ("root@localhost", ("root", "localhost")),
        ("ops@bücher.example", ("ops", "xn--bcher-kva.example")),
        ("börse@example.org", ("börse", "example.org")),
        ("ops@[192.0.2.1]", ("ops", "[192.0.2.1]")),
        ("ops@[IPv6:2001:db8::1]", ("ops", "[IPv6:2001:db8::1]")),
    ],
)
def test_addresses(text: str, parts: tuple[str, str]) -> None:
    assert mail_address(text) == parts


@pytest.mark.bad_input("address with a line break")
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "@",
            "a@",
            "@b",
            "a b@c",
            "a@b c",
            "a@b,c@d",
            "<a@b>",
            "N <a@b>",
            '"a b"@c',
            "a@b\r\n",
        ),
        *(
            "a@b\nBcc: c@d",
            "a\x00@b",
            "a@b\u2028c",
            "a@b>",
            "a@b\u202e",
            "a" * 65 + "@b",
            "a@" + "b" * 300,
        ),
    ],
)
def test_what_is_no_bare_address(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mail_address(text)
    assert caught.value.field == "address"
    assert str(caught.value).isprintable()


@given(st.text(max_size=80))
def test_whatever_passes_can_end_no_line_and_no_command(text: str) -> None:
    try:
        local, domain = mail_address(f"a{text}@example.org")
    except InvalidInput:
        return
    assert not set(f"{local}@{domain}") & set('\r\n\0 <>,;:"\\\t\u2028\u2029\x85')


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert not forbidden_address(ip_address(address))


@pytest.mark.bad_input("webhook into our own network")
@pytest.mark.parametrize(
    "address", ["2002:7f00:1::", "2002:a00:1::", "64:ff9b::a00:1", "::ffff:10.0.0.1", "2001::1"]
)
def test_what_wraps_a_private_address_is_one(address: str) -> None:
    assert forbidden_address(ip_address(address))
