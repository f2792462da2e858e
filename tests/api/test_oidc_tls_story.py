"""Signing in by a real OpenID provider behind TLS, whose certificate is of an authority of its own: who is believed to be it, and who not."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from free_port import free_port
from own_authority import OwnAuthority
from real_provider import Provider, providing
from server_process import PASSWORD, Server, initialise, serving, sign_in


class Installation:
    def __init__(self, server: Server, op: Provider, authority: OwnAuthority) -> None:
        self.server, self.op, self.authority = server, op, authority

    def set_up(self, **more: Any) -> None:
        with self.server.rest() as client:
            client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
            put = client.put("/v1/sign-in-provider", json=self.op.settings(**more))
        assert put.status_code == 200, put.text

    def begin(self) -> httpx.Response:
        with self.server.rest() as client:
            return client.post("/v1/sign-ins", json={"redirect_uri": self.op.redirect_uri})

    def sign_in(self) -> httpx.Response:
        begun = self.begin()
        assert begun.status_code == 201, begun.text
        brought = self.op.visit(begun.json()["url"])
        wanted = {name: brought[name] for name in ("code", "state", "iss")}
        with self.server.rest() as client:
            body = {"sign_in": begun.json()["sign_in"], **wanted}
            return client.post("/v1/sign-ins/finish", json=body)


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    directory, authority = tmp_path_factory.mktemp("oidc-tls"), OwnAuthority()
    root = directory / "server"
    root.mkdir()
    initialise(root)
    redirect = f"http://127.0.0.1:{free_port()}/signed-in"
    with (
        providing(directory / "provider", free_port(), redirect, authority) as op,
        serving(root) as server,
    ):
        yield Installation(server, op, authority)


def test_a_provider_of_the_given_authority_signs_people_in(initialised: Installation) -> None:
    """Discovery, keys, code and token all go over TLS; nothing of it is left unchecked."""
    assert initialised.op.issuer.startswith("https://")
    initialised.set_up(authority_pem=initialised.authority.pem)
    session = initialised.sign_in()
    assert session.status_code == 201, session.text
    assert (session.json()["user"], session.json()["role"]) == ("diana", "administrator")


@pytest.mark.bad_input("provider of sign-ins whose certificate is not trusted", story=True)
@pytest.mark.parametrize(
    ("given", "why"),
    [(None, "none that the system trusts"), ("another", "another authority than the one given")],
)
def test_who_can_not_show_a_certificate_that_is_trusted_is_told_nothing(
    initialised: Installation, given: str | None, why: str
) -> None:
    """No code and no secret goes to it; the answer says which setting to look at, and what to give there."""
    # Of the same name: what counts is the key.
    initialised.set_up(authority_pem=OwnAuthority().pem if given else None)
    answer = initialised.begin()
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "problem.sign_in.provider"), problem
    assert problem["field"] == "authority_pem", problem
    assert why in problem["detail"] and initialised.op.issuer in problem["detail"], problem
    assert "--authority FILE" in problem["fix"] and "passwords" in problem["fix"], problem
    with initialised.server.rest() as client:
        assert sign_in(client, PASSWORD).status_code == 201, "local users do as ever"
    initialised.set_up(authority_pem=initialised.authority.pem)
    assert initialised.sign_in().status_code == 201, "what was wrong is not remembered"
