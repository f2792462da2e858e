"""What an ID token must be, each rule by a token that breaks this one only."""

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from virtha.drivers.oidc_token import (
    CLOCK_SKEW_S,
    TOKEN_LENGTH_MAX,
    Keys,
    UnknownKey,
    check_id_token,
    read_keys,
)
from virtha.model.errors import Unauthenticated, Unavailable

ISSUER, CLIENT, NONCE, NOW = "https://op.example", "virtha", "n" * 43, 1_800_000_000.0
RSA = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "two", "use": "sig"})
PUBLISHED = {"keys": [RSA.as_dict(private=False), EC.as_dict(private=False)]}
Claims = dict[str, Any]


def claims(**more: Any) -> Claims:
    return {
        "iss": ISSUER,
        "sub": "4711",
        "aud": CLIENT,
        "exp": int(NOW) + 300,
        "iat": int(NOW),
        "nonce": NONCE,
        **more,
    }


def without(name: str) -> Claims:
    return {key: value for key, value in claims().items() if key != name}


def signed(content: Claims, key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    payload = json.dumps(content).encode()
    return jws.serialize_compact({"alg": alg, "kid": "one", **header}, payload, key, [alg])


def signed_by(key: Any, alg: str = "RS256") -> str:
    """Without the key's name."""
    return jwt.encode({"alg": alg}, claims(), key, algorithms=[alg])


def check(token: str, keys: Keys | None = None) -> Claims:
    return check_id_token(
        token,
        keys or read_keys(PUBLISHED),
        issuer=ISSUER,
        client_id=CLIENT,
        nonce=NONCE,
        now_s=NOW,
    )


@pytest.mark.parametrize(
    "content",
    [
        claims(),
        claims(aud=[CLIENT]),
        claims(aud=[CLIENT, "other"], azp=CLIENT),
        claims(azp=CLIENT),
        claims(exp=int(NOW) - CLOCK_SKEW_S + 1),
        claims(iat=int(NOW) + CLOCK_SKEW_S),
        claims(nbf=int(NOW)),
        claims(exp=NOW + 0.5),
    ],
)
def test_a_right_token_is_believed(content: Claims) -> None:
    assert check(signed(content)) == content
    assert check(signed(content, EC, "ES256", kid="two")) == content


@pytest.mark.bad_input("token of a provider that is not right")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (claims(iss="https://op.example/"), "another issuer"),
        (claims(iss=[ISSUER]), "another issuer"),
        (without("iss"), "another issuer"),
        (claims(aud="somebody"), "(aud)"),
        (claims(aud=[]), "(aud)"),
        (without("aud"), "(aud)"),
        (claims(aud=[CLIENT, "other"]), "(azp)"),
        (claims(aud=[CLIENT, "other"], azp="other"), "(azp)"),
        (claims(azp="other"), "(azp)"),
        (claims(exp=int(NOW) - CLOCK_SKEW_S), "expired"),
        (claims(exp="never"), "'exp'"),
        (claims(exp=True), "'exp'"),
        (claims(exp=float("nan")), "'exp'"),
        (claims(exp=float("inf")), "'exp'"),
        (claims(exp=-(10**400)), "expired"),
        (without("exp"), "'exp'"),
        (claims(iat=int(NOW) + CLOCK_SKEW_S + 1), "future"),
        (without("iat"), "'iat'"),
        (claims(nbf=int(NOW) + CLOCK_SKEW_S + 1), "not valid yet"),
        (claims(nbf="x"), "'nbf'"),
        (claims(nonce="m" * 43), "(nonce)"),
        (claims(nonce=None), "(nonce)"),
        (without("nonce"), "(nonce)"),
        (claims(sub=""), "(sub)"),
        (claims(sub="x" * 256), "(sub)"),
        (claims(sub=4711), "(sub)"),
        (claims(sub="4711\0"), "(sub)"),
        (claims(sub="\ud800"), "(sub)"),
        (without("sub"), "(sub)"),
    ],
)
def test_a_token_that_breaks_one_rule_is_refused(content: Claims, why: str) -> None:
    with pytest.raises(Unauthenticated, match=why.replace("(", r"\(").replace(")", r"\)")) as told:
        check(signed(content))
    assert told.value.code == "problem.sign_in.refused"


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned() -> str:
    return f"{part({'alg': 'none'})}.{part(claims())}."


def signed_with_the_public_key() -> str:
    """HS256 with what everybody knows: believed by those who let the token choose how it is checked."""
    text = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims())}"
    digest = hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def changed() -> str:
    head, _, signature = signed(claims()).split(".")
    return f"{head}.{part(claims(sub='root'))}.{signature}"


@pytest.mark.bad_input("token of a provider that is not signed by it")
@pytest.mark.parametrize(
    "make",
    [
        unsigned,
        signed_with_the_public_key,
        changed,
        lambda: signed(claims(), RSAKey.generate_key(2048)),
        lambda: signed(claims(), EC, "ES256"),  # the other's key id
        lambda: "x" * (TOKEN_LENGTH_MAX + 1),
        lambda: "",
        lambda: "a.b",
        lambda: "a.b.c.d.e",
        lambda: "\ud800.x.y".encode("utf-8", "replace").decode(),
        lambda: f"{part([])}.{part(claims())}.AAAA",
        lambda: f"{part({'alg': ['RS256']})}.{part(claims())}.AAAA",
        lambda: f"{part({'alg': 'RS256', 'kid': 'one', 'crit': ['x']})}.{part(claims())}.AAAA",
    ],
)
def test_what_the_provider_did_not_sign_is_refused(make: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated):
        check(make())


def test_a_token_whose_key_we_lack_may_be_of_new_keys() -> None:
    with pytest.raises(UnknownKey):
        check(signed(claims(), kid="three"))


def test_where_a_token_names_no_key_any_of_the_providers_may_have_signed_it() -> None:
    for token in (signed_by(RSA), signed_by(EC, "ES256")):
        assert check(token)["sub"] == "4711"
    stranger = signed_by(RSAKey.generate_key(2048))
    with pytest.raises(UnknownKey):  # or it is of new keys: it is for who asks for these to say
        check(stranger)
    nameless = {name: value for name, value in RSA.as_dict(private=False).items() if name != "kid"}
    keys = read_keys({"keys": [EC.as_dict(private=False), nameless]})
    assert check(signed(claims()), keys)["sub"] == "4711"
    with pytest.raises(UnknownKey):
        check(signed(claims(), RSAKey.generate_key(2048)), keys)


def test_a_key_is_used_for_what_the_provider_made_it_for() -> None:
    keys = read_keys({"keys": [{**RSA.as_dict(private=False), "alg": "PS256"}]})
    assert check(signed(claims(), alg="PS256"), keys)["sub"] == "4711"
    with pytest.raises(Unauthenticated):
        check(signed(claims()), keys)


def test_a_key_that_can_not_be_used_hides_no_other() -> None:
    """RFC 7517, section 5."""
    odd = [
        None,
        {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA", "kid": "three"},
        {"kty": "RSA", "kid": "four"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "five"},
        {"kty": ["RSA"], "kid": "six"},
        {"kty": "RSA", "n": 3, "e": "AQAB", "kid": "seven"},
    ]
    keys = read_keys({"keys": [*odd, *PUBLISHED["keys"]]})
    assert check(signed(claims()), keys)["sub"] == "4711"


def test_what_the_provider_said_is_shown_without_what_can_not_be_kept() -> None:
    with pytest.raises(Unauthenticated) as told:
        check(signed(claims(iss="\ud800\0\x1b[2J")))
    assert "'???[2J'" in told.value.message


@pytest.mark.parametrize(
    "published",
    [
        None,
        [],
        {},
        {"keys": "x"},
        {"keys": []},
        {"keys": [None, 3, {}]},
        {"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}]},
        {"keys": [{**RSA.as_dict(private=False), "use": "enc"}]},
        {"keys": [{"kty": "RSA", "kid": "one"}]},
        {"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]},
        {"keys": [{"kty": "RSA", "n": "_" * 341, "e": "AQAB"}]},  # 2,046 bits
        {"keys": [{"kty": "RSA", "n": "!" * 342, "e": "AQAB"}]},
    ],
)
def test_keys_that_are_none(published: Any) -> None:
    with pytest.raises(Unavailable, match="no usable key"):
        read_keys(published)
