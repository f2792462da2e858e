"""The OpenID driver against providers that misbehave: small HTTP servers on loopback that say what a test wants."""

import asyncio
import base64
import gzip
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from joserfc.jwk import RSAKey
from own_authority import OwnAuthority, serving_tls
from telling_provider import BEGUN, KEY, NEXT_KEY, Clock, Said, Told, said, telling

from virtha.drivers.oidc import (
    ANSWER_BYTES_MAX,
    ANSWERS_NOT_MS,
    KEPT_MS,
    KEYS_AGAIN_MS,
    OidcProvider,
    read_published,
    safe_url,
)
from virtha.model.errors import Unauthenticated, Unavailable
from virtha.model.sign_in import SignInProvider


@pytest.fixture
def told() -> Iterator[Told]:
    with telling() as found:
        yield found


def redeem(
    told: Told, secret: str | None = None, driver: OidcProvider | None = None, **more: Any
) -> Any:
    used = driver or OidcProvider(Clock())
    return asyncio.run(used.redeem(told.provider(**more), secret, BEGUN, "the code"))


def test_the_browser_is_sent_with_all_that_protects_the_sign_in(told: Told) -> None:
    url = asyncio.run(OidcProvider(Clock()).address(told.provider(), BEGUN))
    parts = urlsplit(url)
    asked = {name: one for name, (one,) in parse_qs(parts.query, strict_parsing=True).items()}
    assert url.startswith(f"{told.issuer}/authorize?tenant=1&")
    # SHA-256 of the verifier, as in RFC 7636, appendix B; the verifier itself goes to the token endpoint only.
    assert asked.pop("code_challenge") == "7w_YNF9DSfIdPf_pRjSq646_kPr-2-o9NAl16JGghdM"
    assert BEGUN.verifier not in url
    assert asked == {
        "tenant": "1",
        "response_type": "code",
        "client_id": "virtha",
        "redirect_uri": BEGUN.redirect_uri,
        "scope": "openid profile email",
        "state": BEGUN.state,
        "nonce": BEGUN.nonce,
        "code_challenge_method": "S256",
    }


def test_claims_come_from_the_token_and_what_it_lacks_from_userinfo(told: Told) -> None:
    identity = redeem(told)
    assert (identity.issuer, identity.subject) == (told.issuer, "4711")
    assert identity.claims["groups"] == ["g"] and identity.claims["preferred_username"] == "diana"
    assert told.asked[-1][0] == "/me" and told.asked[-1][1]["authorization"] == "Bearer access"
    told.says["/token"] = lambda: said({"id_token": told.token(groups=["h"]), "access_token": "x"})
    told.says["/me"] = lambda: said({"sub": "4711", "groups": ["never asked"]})
    assert redeem(told).claims["groups"] == ["h"]


@pytest.mark.parametrize(
    ("ways", "secret", "in_header"),
    [
        (None, "a b:c+%", True),
        (["client_secret_basic"], "a b:c+%", True),
        (["client_secret_post", "client_secret_basic"], "a b:c+%", False),
        (["client_secret_post"], None, False),
    ],
)
def test_how_we_prove_who_we_are(
    told: Told, ways: list[str] | None, secret: str | None, in_header: bool
) -> None:
    published = told.published(token_endpoint_auth_methods_supported=ways)
    told.says["/.well-known/openid-configuration"] = lambda: said(published)
    redeem(told, secret)
    (headers, form), *_ = [(h, f) for path, h, f in told.asked if path == "/token"]
    assert form["code_verifier"] == [BEGUN.verifier] and form["code"] == ["the code"]
    if in_header:
        assert base64.b64decode(headers["authorization"].split()[1]) == b"virtha:a%20b%3Ac%2B%25"
        assert "client_secret" not in form
    else:
        assert "authorization" not in headers and form["client_id"] == ["virtha"]
        assert form.get("client_secret") == ([secret] if secret else None)


def test_keys_are_asked_for_again_when_a_token_has_a_new_one_but_not_each_time(told: Told) -> None:
    clock = Clock()
    driver = OidcProvider(clock)
    redeem(told, driver=driver)
    told.key = NEXT_KEY
    with pytest.raises(Unauthenticated, match="doesn't publish"):
        redeem(told, driver=driver)
    assert told.paths().count("/keys") == 1, "a stranger's tokens make us ask no more often"
    clock.now += KEYS_AGAIN_MS
    assert redeem(told, driver=driver).subject == "4711"
    assert told.paths().count("/keys") == 2
    redeem(told, driver=driver)
    assert told.paths().count("/keys") == 2
    assert told.paths().count("/.well-known/openid-configuration") == 1
    clock.now += KEPT_MS
    redeem(told, driver=driver)
    assert told.paths().count("/.well-known/openid-configuration") == 2


@pytest.mark.bad_input("provider of sign-ins that answers garbage")
@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        ("/.well-known/openid-configuration", said(b"<html>"), "no JSON object"),
        ("/.well-known/openid-configuration", said([]), "no JSON object"),
        ("/.well-known/openid-configuration", said(b"[" * 100_000), "no JSON object"),
        ("/.well-known/openid-configuration", said(b"\xff\xfe"), "no JSON object"),
        ("/.well-known/openid-configuration", said({}, 404), "answers 404"),
        ("/.well-known/openid-configuration", said({}), "calls itself 'None'"),
        ("/.well-known/openid-configuration", said(b"x" * (ANSWER_BYTES_MAX + 1)), "more than"),
        ("/.well-known/openid-configuration", said({}, 302, Location="/keys"), "answers 302"),
        ("/token", said(b""), "no JSON object"),
        ("/token", said({}), "no ID token"),
        ("/token", said({"id_token": 3}), "no ID token"),
        ("/token", said({"error": "invalid_client"}, 401), "invalid_client"),
        ("/token", said({"error": ["x"]}, 500), "answers 500"),
        ("/keys", said({"keys": []}), "no usable key"),
        ("/keys", said({}, 500), "keys answer 500"),
        ("/me", said({}, 500), "tells nothing"),
        ("/me", said(b"\x00", Content_Encoding="gzip"), "packed"),
        ("/me", said(gzip.compress(b'{"sub": "4711"}'), Content_Encoding="GZIP"), "packed"),
        ("/token", said({"error": "\ud800\0"}, 401), "(??)"),
        ("/keys", said({}, 302, Location="/me"), "keys answer 302"),
    ],
)
def test_what_can_not_be_used_is_told_and_nobody_signed_in(
    told: Told, path: str, answer: Said, why: str
) -> None:
    told.says[path] = lambda: answer
    with pytest.raises(Unavailable) as problem:
        redeem(told)
    assert problem.value.code == "problem.sign_in.provider"
    assert why in problem.value.message, problem.value.message
    assert "passwords" in problem.value.fix


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"issuer": "https://elsewhere.example"}, "calls itself 'https://elsewhere.example'"),
        ({"token_endpoint": None}, "token_endpoint"),
        ({"token_endpoint": "http://op.example/token"}, "token_endpoint"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
        ({"userinfo_endpoint": ["https://x"]}, "userinfo_endpoint"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"code_challenge_methods_supported": "S256"}, "PKCE"),
    ],
)
def test_what_it_says_of_itself_must_be_safe(told: Told, more: dict[str, Any], why: str) -> None:
    told.says["/.well-known/openid-configuration"] = lambda: said(told.published(**more))
    with pytest.raises(Unavailable, match="provider") as problem:
        redeem(told)
    assert why in problem.value.message


def test_a_provider_elsewhere_has_no_addresses_on_this_machine() -> None:
    """It could have us call what listens only here."""
    right = {
        "issuer": "https://op.example",
        "authorization_endpoint": "https://op.example/authorize",
        "token_endpoint": "https://op.example/token",
        "jwks_uri": "https://keys.example/",
    }
    assert read_published(right, right["issuer"]).jwks_uri == right["jwks_uri"]
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
        for url in ("http://127.0.0.1:80/", "HTTP://localhost/"):
            with pytest.raises(Unavailable, match=name):
                read_published({**right, name: url}, right["issuer"])


@pytest.mark.bad_input("provider of sign-ins that tells of another person")
def test_another_persons_claims_are_nobodys(told: Told) -> None:
    told.says["/me"] = lambda: said({"sub": "other", "groups": ["admins"]})
    with pytest.raises(Unauthenticated, match="somebody else"):
        redeem(told)


@pytest.mark.bad_input("sign-in code used twice")
def test_what_the_provider_takes_for_no_code_of_its_own_is_refused(told: Told) -> None:
    told.says["/token"] = lambda: said({"error": "invalid_grant"}, 400)
    with pytest.raises(Unauthenticated, match="invalid_grant"):
        redeem(told)
    told.says["/token"] = lambda: said({"id_token": told.token(nonce="other")})
    with pytest.raises(Unauthenticated, match="nonce"):
        redeem(told)


@pytest.mark.bad_input("provider of sign-ins that is away")
def test_a_provider_that_hangs_or_is_away(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtha.drivers.oidc.DEADLINE_S", 0.2)
    free = threading.Event()

    def hang() -> Said:
        free.wait(60)
        return said({})

    told.says["/.well-known/openid-configuration"] = hang
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            redeem(told)
    finally:
        free.set()
    away = SignInProvider(issuer="http://127.0.0.1:9", client_id="virtha")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        asyncio.run(OidcProvider(Clock()).redeem(away, None, BEGUN, "code"))


def test_a_crowd_that_begins_is_one_question_and_one_wait(told: Told) -> None:
    """Anybody may begin: a provider that is away is asked once, and all others are told at once."""
    clock = Clock()
    driver = OidcProvider(clock)
    right = told.says["/.well-known/openid-configuration"]
    told.says["/.well-known/openid-configuration"] = lambda: said({}, 503)

    async def crowd() -> list[Any]:
        asked = (driver.address(told.provider(), BEGUN) for _ in range(20))
        return await asyncio.gather(*asked, return_exceptions=True)

    async def crowds() -> None:
        for _ in range(2):
            answers = await crowd()
            assert {type(one) for one in answers} == {Unavailable}
            assert "answers 503" in str(answers[9])
            assert told.paths() == ["/.well-known/openid-configuration"]
        told.says["/.well-known/openid-configuration"] = right
        clock.now += ANSWERS_NOT_MS
        assert {type(one) for one in await crowd()} == {str}
        assert told.paths() == ["/.well-known/openid-configuration"] * 2

    asyncio.run(crowds())


def test_new_keys_are_found_for_tokens_that_name_none_too(told: Told) -> None:
    clock = Clock()
    driver = OidcProvider(clock)
    redeem(told, driver=driver)
    told.key = RSAKey.generate_key(2048)
    assert told.key.kid is None
    with pytest.raises(Unauthenticated, match="doesn't publish"):
        redeem(told, driver=driver)
    clock.now += KEYS_AGAIN_MS
    assert redeem(told, driver=driver).subject == "4711"
    assert told.paths().count("/keys") == 2


def test_keys_that_became_garbage_are_asked_for_no_more_often(told: Told) -> None:
    clock = Clock()
    driver = OidcProvider(clock)
    redeem(told, driver=driver)
    told.key = NEXT_KEY
    clock.now += KEYS_AGAIN_MS
    told.says["/keys"] = lambda: said(b"<html>")
    with pytest.raises(Unavailable):
        redeem(told, driver=driver)
    for _ in range(5):
        with pytest.raises(Unauthenticated, match="doesn't publish"):
            redeem(told, driver=driver)
    assert told.paths().count("/keys") == 2
    told.key = KEY
    assert redeem(told, driver=driver).subject == "4711", "those we have are believed still"


def test_an_authority_that_can_not_be_read_is_named(told: Told) -> None:
    with pytest.raises(Unavailable, match="authority can't be read") as problem:
        redeem(told, authority_pem="no certificate")
    assert problem.value.field == "authority_pem" and "PEM" in problem.value.fix
    assert told.asked == []


@pytest.mark.bad_input("provider of sign-ins whose certificate is not trusted")
@pytest.mark.parametrize(
    ("certificate", "trusted", "field", "why", "fix"),
    [
        ({}, "its own", None, "", ""),
        ({}, "another's", "authority_pem", "another authority than", "--authority FILE"),
        ({}, None, "authority_pem", "none that the system trusts", "--authority FILE"),
        ({"ends_in": timedelta(hours=-1)}, "its own", "issuer", "expired", "clock"),
        ({"of": x509.DNSName("op.example")}, "its own", "issuer", "IP address", "by a name"),
    ],
)
def test_only_who_shows_the_right_certificate_is_asked(
    tmp_path: Path,
    certificate: dict[str, Any],
    trusted: str | None,
    field: str | None,
    why: str,
    fix: str,
) -> None:
    """Each refusal says which setting to look at."""
    authority = OwnAuthority()
    by_words = {"its own": authority.pem, "another's": OwnAuthority().pem, None: None}
    clock = Clock()
    driver = OidcProvider(clock)
    with telling(serving_tls(authority.issue(tmp_path / "op.pem", **certificate))) as told:
        if field is None:
            found = redeem(told, "a secret", driver, authority_pem=by_words[trusted])
            assert found.subject == "4711" and told.paths()[-1] == "/me"
            return
        for _ in range(2):
            # Once asked, and once more said of what was found.
            with pytest.raises(Unavailable) as problem:
                redeem(told, "a secret", driver, authority_pem=by_words[trusted])
            assert (problem.value.code, problem.value.field) == ("problem.sign_in.provider", field)
            assert why in problem.value.message and told.issuer in problem.value.message
            assert fix in problem.value.fix and "passwords" in problem.value.fix
        assert told.asked == [], "nothing is sent to it"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://op.example/x", True),
        ("http://127.0.0.1:80/x", True),
        ("http://[::1]/x", True),
        ("http://localhost/", True),
        ("http://op.example/", False),
        ("https://user@op.example/", False),
        ("https://op.example/#x", False),
        ("ftp://op.example/", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_addresses_that_are_safe(url: str, safe: bool) -> None:
    assert safe_url(url) is safe
