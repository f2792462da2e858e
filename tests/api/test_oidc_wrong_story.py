"""Signing in by a provider that is wrong, or taken over: a real server believes nothing that it can't check."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from server_process import Server, initialise, serving, sign_in
from telling_provider import KEY, NEXT_KEY, Told, said, telling


class Installation:
    def __init__(self, server: Server, told: Told) -> None:
        self.server, self.told = server, told

    def sign_in(self, token: Callable[[str], str] | None = None) -> httpx.Response:
        """``token``: what the provider signs, of the nonce; if left out, what it should."""
        make = token or (lambda nonce: self.token(nonce))
        with self.server.rest() as client:
            begun = client.post("/v1/sign-ins", json={"redirect_uri": "http://127.0.0.1:1/"})
            if begun.status_code != 201:
                return begun
            asked = parse_qs(urlsplit(begun.json()["url"]).query)
            body = {"id_token": make(asked["nonce"][0]), "access_token": "access"}
            self.told.says["/token"] = lambda: said(body)
            brought = {"code": "a code", "state": asked["state"][0]}
            return client.post(
                "/v1/sign-ins/finish", json={"sign_in": begun.json()["sign_in"], **brought}
            )

    def token(self, nonce: str, **claims: Any) -> str:
        return self.told.token(int(time.time()), nonce=nonce, **claims)

    def is_right_again(self) -> None:
        """And what was refused was so for what was wrong with it; the brake begins anew."""
        session = self.sign_in()
        assert session.status_code == 201, session.text
        assert session.json()["user"] == "diana"


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    root = tmp_path_factory.mktemp("wrong-oidc")
    initialise(root)
    with telling() as told, serving(root) as server, server.rest() as client:
        client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
        settings = {"issuer": told.issuer, "client_id": "virtha", "roles": {"g": "administrator"}}
        assert client.put("/v1/sign-in-provider", json=settings).is_success
        yield Installation(server, told)


def refused(answer: httpx.Response, status: int, code: str, word: str) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert word in problem["detail"] and problem["fix"], problem


@pytest.mark.bad_input("token of a provider that is not right", story=True)
def test_a_token_for_another_of_another_time_or_sign_in_lets_nobody_in(
    initialised: Installation,
) -> None:
    long_ago = int(time.time()) - 86_400
    for claims, word in (
        ({"iss": "https://elsewhere.example"}, "issuer"),
        ({"aud": "wiki"}, "aud"),
        ({"exp": long_ago}, "expired"),
        ({"nonce": "of another sign-in"}, "nonce"),
    ):
        answer = initialised.sign_in(
            lambda nonce, more=claims: initialised.token(**{"nonce": nonce, **more})
        )
        refused(answer, 401, "problem.sign_in.refused", word)
    initialised.is_right_again()


@pytest.mark.bad_input("token of a provider that is not signed by it", story=True)
def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(initialised: Installation) -> None:
    def unsigned(nonce: str) -> str:
        _, claims, _ = initialised.token(nonce).split(".")
        head = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
        return f"{head}.{claims}."

    def of_other_keys(nonce: str) -> str:
        initialised.told.key = NEXT_KEY
        made = initialised.token(nonce)
        initialised.told.key = KEY
        return made

    initialised.is_right_again()
    refused(initialised.sign_in(unsigned), 401, "problem.sign_in.refused", "'none'")
    refused(initialised.sign_in(of_other_keys), 401, "problem.sign_in.refused", "publish")
    initialised.is_right_again()


@pytest.mark.bad_input("provider of sign-ins that tells of another person", story=True)
def test_what_is_told_of_another_person_is_nobodys(initialised: Installation) -> None:
    right = initialised.told.says["/me"]
    initialised.told.says["/me"] = lambda: said({"sub": "another", "groups": ["g"]})
    refused(initialised.sign_in(), 401, "problem.sign_in.refused", "somebody else")
    initialised.told.says["/me"] = right
    initialised.is_right_again()


@pytest.mark.bad_input("provider of sign-ins that answers garbage", story=True)
def test_garbage_lets_nobody_in_and_is_told_as_the_providers(initialised: Installation) -> None:
    right = initialised.told.says["/me"]
    for raw in (b"<html>", b"\xff", b"[" * 100_000):
        initialised.told.says["/me"] = lambda garbage=raw: said(garbage)
        refused(initialised.sign_in(), 503, "problem.sign_in.provider", "/me")
    initialised.told.says["/me"] = right
    initialised.is_right_again()
