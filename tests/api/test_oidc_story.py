"""Signing in by a real OpenID provider: over the API, from the command line, and what it can't be talked into."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from free_port import free_port
from real_provider import CLIENT_SECRET, Provider, providing
from server_process import PASSWORD, Server, command, environment, initialise, serving, sign_in

WAIT_S = 90.0


class Installation:
    def __init__(self, directory: Path, server: Server, fingerprint: str, op: Provider) -> None:
        self.directory, self.server, self.fingerprint, self.op = directory, server, fingerprint, op

    def as_admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        with self.server.rest() as client:
            client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
            return client.request(method, path, json=body)

    def post(self, path: str, body: Any) -> httpx.Response:
        with self.server.rest() as client:
            return client.post(path, json=body)

    def begin(self) -> dict[str, Any]:
        begun = self.post("/v1/sign-ins", {"redirect_uri": self.op.redirect_uri})
        assert begun.status_code == 201, begun.text
        found: dict[str, Any] = begun.json()
        return found

    def finish(self, begun: dict[str, Any], **brought: str) -> httpx.Response:
        wanted = {name: brought[name] for name in ("code", "state", "iss")}
        return self.post("/v1/sign-ins/finish", {"sign_in": begun["sign_in"], **wanted})

    def sign_in(self, person: str) -> httpx.Response:
        begun = self.begin()
        return self.finish(begun, **self.op.visit(begun["url"], person))

    def events(self, code: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.as_admin("GET", f"/v1/events?code={code}").json()[
            "items"
        ]
        return found


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A server whose provider is a real one."""
    directory = tmp_path_factory.mktemp("oidc")
    root = directory / "server"
    root.mkdir()
    made = initialise(root)
    redirect = f"http://127.0.0.1:{free_port()}/signed-in"
    with (
        providing(directory / "provider", free_port(), redirect) as op,
        serving(root) as server,
    ):
        found = Installation(directory, server, made["authority_fingerprint"], op)
        put = found.as_admin("PUT", "/v1/sign-in-provider", op.settings())
        assert put.status_code == 200, put.text
        assert CLIENT_SECRET not in put.text and put.json()["has_secret"]
        yield found


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    for word in words:
        assert word in str(problem), problem
    return problem


def test_whom_the_provider_vouches_for_is_signed_in_with_the_role_of_its_groups(
    initialised: Installation,
) -> None:
    session = initialised.sign_in("diana")
    assert session.status_code == 201, session.text
    assert (session.json()["user"], session.json()["role"]) == ("diana", "administrator")
    with initialised.server.rest(Authorization=f"Bearer {session.json()['token']}") as client:
        assert client.get("/v1/sessions/current").json()["user"] == "diana"
        users = {one["name"] for one in client.get("/v1/users").json()["items"]}
    assert users == {"admin", "diana"}
    again = initialised.sign_in("diana")
    assert again.status_code == 201 and again.json()["token"] != session.json()["token"]
    assert len(initialised.events("user.created")) == 2, "the first of all, and diana, once"
    password = initialised.post("/v1/sessions", {"user": "diana", "password": ""})
    refused(password, 401, "problem.password.wrong")


def test_the_provider_says_what_its_users_may(initialised: Installation) -> None:
    assert initialised.sign_in("otto").json()["role"] == "operator"
    for change in ({"password": "long enough 1"}, {"role": "administrator"}):
        answer = initialised.as_admin("PATCH", "/v1/users/otto", change)
        refused(answer, 409, "problem.user.of_provider", next(iter(change)))
    settings = initialised.op.settings(
        roles={"vm-operators": "viewer", "vm-admins": "administrator"}
    )
    assert initialised.as_admin("PUT", "/v1/sign-in-provider", settings).status_code == 200
    assert initialised.sign_in("otto").json()["role"] == "viewer"
    assert initialised.as_admin("PUT", "/v1/sign-in-provider", initialised.op.settings()).is_success
    assert initialised.as_admin("PATCH", "/v1/users/otto", {"enabled": False}).is_success
    refused(initialised.sign_in("otto"), 401, "problem.sign_in.refused", "locked out")
    assert initialised.as_admin("DELETE", "/v1/users/otto").is_success


@pytest.mark.bad_input("person of a provider without a role here", story=True)
def test_who_has_no_role_here_gets_none_and_what_was_open_ends(initialised: Installation) -> None:
    refused(initialised.sign_in("nobody"), 403, "problem.sign_in.no_role", "groups")
    session = initialised.sign_in("otto").json()
    only = initialised.op.settings(roles={"vm-admins": "administrator"})
    assert initialised.as_admin("PUT", "/v1/sign-in-provider", only).is_success
    refused(initialised.sign_in("otto"), 403, "problem.sign_in.no_role")
    with initialised.server.rest(Authorization=f"Bearer {session['token']}") as client:
        assert client.get("/v1/sessions/current").status_code == 401
    assert initialised.as_admin("PUT", "/v1/sign-in-provider", initialised.op.settings()).is_success
    assert initialised.events("sign_in_provider.refused")


@pytest.mark.bad_input("person of a provider with a local user's name", story=True)
def test_nobody_takes_over_a_local_user_by_being_called_so_elsewhere(
    initialised: Installation,
) -> None:
    refused(initialised.sign_in("admin"), 409, "problem.name_taken", "admin")
    refused(initialised.sign_in("strange"), 409, "problem.sign_in.refused", "preferred_username")
    with initialised.server.rest() as client:
        assert sign_in(client).status_code == 201


def test_the_last_local_administrator_stays_whoever_else_is_one(initialised: Installation) -> None:
    assert initialised.sign_in("diana").json()["role"] == "administrator"
    refused(initialised.as_admin("DELETE", "/v1/users/admin"), 422, "problem.administrator.last")
    for method, body in (("PATCH", {"enabled": False}), ("PATCH", {"enabled": True})):
        assert initialised.as_admin(method, "/v1/users/diana", body).is_success
    assert initialised.as_admin("DELETE", "/v1/users/diana").is_success


@pytest.mark.bad_input("sign-in code used twice", story=True)
def test_a_code_is_good_once(initialised: Installation) -> None:
    begun = initialised.begin()
    brought = initialised.op.visit(begun["url"])
    assert initialised.finish(begun, **brought).status_code == 201
    refused(initialised.finish(begun, **brought), 401, "problem.sign_in.refused", "invalid_grant")


@pytest.mark.bad_input("sign-in with another's state", story=True)
def test_what_belongs_to_another_sign_in_is_refused(initialised: Installation) -> None:
    mine, theirs = initialised.begin(), initialised.begin()
    brought = initialised.op.visit(theirs["url"])
    refused(initialised.finish(mine, **brought), 401, "problem.sign_in.refused", "state")
    # Their code under my state: the provider wants the verifier that belongs to it (PKCE).
    state = re.search(r"state=([^&]+)", mine["url"])
    assert state is not None
    mixed = initialised.finish(mine, **{**brought, "state": state[1]})
    refused(mixed, 401, "problem.sign_in.refused", "invalid_grant")
    elsewhere = initialised.finish(theirs, **{**brought, "iss": "https://elsewhere.example"})
    refused(elsewhere, 401, "problem.sign_in.refused", "iss")
    for sealed in ("", "1:junk", mine["sign_in"][:-8] + "AAAAAAA="):
        answer = initialised.finish({"sign_in": sealed}, **brought)
        assert (answer.status_code, answer.json()["field"]) == (400, "sign_in"), answer.text


def test_new_keys_of_the_provider_are_found(initialised: Installation) -> None:
    assert initialised.sign_in("diana").status_code == 201
    initialised.op.new_keys()
    deadline = time.monotonic() + WAIT_S
    while (session := initialised.sign_in("diana")).status_code != 201:
        # It asks for keys again only now and then.
        refused(session, 401, "problem.sign_in.refused")
        assert time.monotonic() < deadline
        time.sleep(15)  # five refusals a minute, and the brake refuses more


@pytest.mark.bad_input("redirect to elsewhere", story=True)
@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/back",
        "http://evil.example/back",
        "http://127.0.0.1.evil.example/",
        "http://localhost:1/",
        "javascript:alert(1)",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:1/#x",
        "http://127.0.0.1:99999/",
        "",
        "http://[",
    ],
)
def test_browsers_are_sent_nowhere_else(initialised: Installation, uri: str) -> None:
    answer = initialised.post("/v1/sign-ins", {"redirect_uri": uri})
    assert (answer.status_code, answer.json()["field"]) == (400, "redirect_uri"), answer.text


def test_the_command_line_signs_in_by_a_browser_and_signs_out(initialised: Installation) -> None:
    port = initialised.op.redirect_uri.split(":")[2].split("/")[0]
    config = {"XDG_CONFIG_HOME": str(initialised.directory / "diana"), "BROWSER": "true"}
    words = ("login", initialised.server.ready["url"], "--provider", "--redirect-port", port)
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "virtha.cli.main", *words),
            *("--fingerprint", initialised.fingerprint),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**config),
    )
    assert running.stderr is not None
    url = next(line.strip() for line in running.stderr if "response_type=code" in line)
    strangers = f"http://127.0.0.1:{port}"
    with httpx.Client(trust_env=False, timeout=WAIT_S) as browser:
        assert browser.get(f"{strangers}/favicon.ico").status_code == 404
        assert browser.get(f"{strangers}/signed-in?code=x&state=y").status_code == 400
        brought = initialised.op.visit(url)
        assert "done" in browser.get(f"{strangers}/signed-in", params=brought).text
    out, errors = running.communicate(timeout=WAIT_S)
    assert running.returncode == 0, errors
    assert "as diana (administrator)" in out
    who = command("whoami", **config)
    assert "diana" in who.stdout and brought["code"] not in out + errors
    assert command("logout", **config).returncode == 0


def test_a_server_starts_without_its_provider(tmp_path: Path) -> None:
    initialise(tmp_path)
    settings = {"client_id": "virtha", "client_secret": "s", "roles": {"a": "viewer"}}
    settings["issuer"] = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path) as server, server.rest() as client:
        client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
        assert client.put("/v1/sign-in-provider", json=settings).is_success
    with serving(tmp_path) as server, server.rest() as client:
        assert sign_in(client).status_code == 201
        begun = client.post("/v1/sign-ins", json={"redirect_uri": "http://127.0.0.1:1/"})
        refused(begun, 503, "problem.sign_in.provider")


@pytest.mark.bad_input("provider of sign-ins that is away", story=True)
def test_a_provider_that_is_away_locks_no_local_user_out(initialised: Installation) -> None:
    settings = initialised.op.settings(issuer=f"http://127.0.0.1:{free_port()}")
    kept = {name: value for name, value in settings.items() if name != "client_secret"}
    answer = initialised.as_admin("PUT", "/v1/sign-in-provider", kept)
    assert (answer.status_code, answer.json()["field"]) == (400, "client_secret"), answer.text
    assert initialised.as_admin("PUT", "/v1/sign-in-provider", settings).is_success
    answer = initialised.post("/v1/sign-ins", {"redirect_uri": initialised.op.redirect_uri})
    refused(answer, 503, "problem.sign_in.provider", "passwords")
    with initialised.server.rest() as client:
        assert sign_in(client, PASSWORD).status_code == 201
    assert initialised.as_admin("DELETE", "/v1/sign-in-provider").is_success
    answer = initialised.post("/v1/sign-ins", {"redirect_uri": initialised.op.redirect_uri})
    refused(answer, 404, "problem.sign_in.none")
