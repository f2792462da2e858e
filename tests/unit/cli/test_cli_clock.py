"""A certificate that is not valid *now* is first of all a wrong clock, on whichever side; it must be said."""

import ssl

import httpx
import pytest

from virtha.agent.join import _send
from virtha.cli.problem import error_from_transport
from virtha.model.errors import Refused, Unavailable

pytestmark = [pytest.mark.req("L6"), pytest.mark.bad_input("agent with a wrong clock")]


def not_valid_now(code: int) -> httpx.ConnectError:
    """As httpx raises it: what OpenSSL said is below it."""
    said = ssl.SSLCertVerificationError(1, "certificate verify failed")
    said.verify_code, said.verify_message = code, "certificate is not yet valid"
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.__cause__ = said
    return error


@pytest.mark.parametrize("code", [9, 10])
def test_a_command_asks_about_the_clock(code: int) -> None:
    error = error_from_transport(not_valid_now(code), where="https://m:8443", changes=False)
    assert isinstance(error, Refused)
    assert "not valid now: certificate is not yet valid" in error.message
    assert "clock" in error.fix


def test_an_untrusted_certificate_is_no_matter_of_clocks() -> None:
    error = error_from_transport(not_valid_now(19), where="https://m:8443", changes=False)
    assert error.code == "problem.authority.wrong"
    assert "clock" not in error.fix and "sign in again" in error.fix


@pytest.mark.parametrize(("code", "asks"), [(9, True), (10, True), (19, False)])
def test_joining_asks_about_the_clock(code: int, asks: bool) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise not_valid_now(code)

    with (
        httpx.Client(transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(Unavailable) as told,
    ):
        _send(client, "POST", "https://m:8443/v1/join")
    assert ("clock" in told.value.fix) is asks
