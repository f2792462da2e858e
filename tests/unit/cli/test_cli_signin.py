"""Signing in: whom the password is sent to, and where the token is kept."""

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import Answer, Api, Authority, Ran, make_authority
from cli_shapes import NOON, page, vm_view

from virtha.cli.profile import Login, Profile, load_profile, profile_path, save_profile
from virtha.control.views import CurrentSession, SessionView
from virtha.model.errors import Failed
from virtha.model.ids import TokenId
from virtha.model.time import UtcMillis
from virtha.model.user import Role

Run = Callable[..., Ran]
StartTls = Callable[[Authority], Api]
SESSION = SessionView(
    token="virtha-access.1.secret", expires=UtcMillis(NOON), user="admin", role=Role.ADMINISTRATOR
)

CURRENT = CurrentSession(
    user="admin",
    role=Role.ADMINISTRATOR,
    by="token",
    token_id=TokenId("1"),
    created=UtcMillis(NOON - 3_600_000),
    expires=NOON,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path / "ca")


@pytest.fixture
def server(tls_api: StartTls, authority: Authority) -> Api:
    api = tls_api(authority)
    offered = {"certificate_pem": authority.certificate_pem, "fingerprint": authority.fingerprint}
    api.on("GET", "/v1/authority", offered)
    api.on("POST", "/v1/sessions", Answer(SESSION, status=201))
    api.on("GET", "/v1/vms", page(vm_view()))
    api.on("GET", "/v1/sessions/current", CURRENT)
    api.on("DELETE", "/v1/sessions/current", Answer(status=204))
    return api


@pytest.fixture
def sign_in(run: Run, server: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def sign_in(*more: str, password: str = "secret\n") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(password))
        return run("login", server.url, "--user", "admin", "--password-stdin", *more)

    return sign_in


@pytest.mark.req("L6")
def test_login_keeps_a_token_that_works(
    sign_in: Callable[..., Ran], server: Api, authority: Authority, run: Run
) -> None:
    ran = sign_in("--fingerprint", authority.fingerprint)
    assert ran.code == 0
    assert "virtha-access" not in ran.out + ran.err
    assert "as admin (administrator) until 2026-01-01 12:00:00Z" in ran.out
    assert server.calls("POST")[0].body == {"user": "admin", "password": "secret"}
    path = profile_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert run("vm", "list", "-q") == Ran(0, "web1\n", "")
    assert server.calls("GET", "/v1/vms")[0].headers["authorization"] == f"Bearer {SESSION.token}"
    who = json.loads(run("whoami", "-o", "json").out)
    assert (who["server"], who["user"], who["role"]) == (server.url, "admin", "administrator")


@pytest.mark.parametrize(
    "shape", [str, str.upper, lambda hex: ":".join(hex[i : i + 2] for i in range(0, 64, 2))]
)
def test_fingerprints_as_tools_print_them(
    shape: Callable[[str], str], sign_in: Callable[..., Ran], authority: Authority
) -> None:
    assert sign_in("--fingerprint", shape(authority.fingerprint)).code == 0


@pytest.mark.req("L6")
@pytest.mark.bad_input("wrong authority")
def test_a_wrong_fingerprint_sends_no_password(
    sign_in: Callable[..., Ran], server: Api, authority: Authority
) -> None:
    ran = sign_in("--fingerprint", "0" * 64)
    assert ran.code == 4
    assert authority.fingerprint in ran.err and "code: problem.authority.wrong" in ran.err
    assert server.calls("POST") == []
    assert not profile_path().exists()


def test_no_fingerprint_and_nobody_to_ask(
    sign_in: Callable[..., Ran], server: Api, authority: Authority
) -> None:
    ran = sign_in()
    assert ran.code == 4
    assert authority.fingerprint in ran.err and "give --fingerprint HEX" in ran.err
    assert server.calls("POST") == []


@pytest.mark.parametrize("text", ["", "12", "g" * 64, "0" * 65])
def test_what_is_no_fingerprint(text: str, sign_in: Callable[..., Ran], server: Api) -> None:
    assert sign_in("--fingerprint", text).code == 2
    assert server.asked == []


def test_a_kept_authority_is_not_asked_about_again(
    sign_in: Callable[..., Ran], authority: Authority
) -> None:
    assert sign_in("--fingerprint", authority.fingerprint).code == 0
    assert sign_in().code == 0


@pytest.mark.req("L6")
@pytest.mark.bad_input("wrong authority")
def test_a_changed_authority_is_refused(
    sign_in: Callable[..., Ran], server: Api, tmp_path: Path
) -> None:
    other = make_authority(tmp_path / "other")
    entry = Login(authority_pem=other.certificate_pem, token="old")
    save_profile(Profile(current=server.url, servers={server.url: entry}))
    ran = sign_in()
    assert ran.code == 4
    assert "has changed" in ran.err
    assert server.calls("POST") == []
    assert load_profile().login_for(server.url).token == "old"


@pytest.mark.req("L6")
def test_a_stolen_certificate_text_does_not_help_a_stranger(
    tls_api: StartTls,
    authority: Authority,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In between: it shows the right authority, which is public, but its own key serves TLS."""
    stranger = tls_api(make_authority(tmp_path / "stranger"))
    stranger.on(
        "GET",
        "/v1/authority",
        {"certificate_pem": authority.certificate_pem, "fingerprint": authority.fingerprint},
    )
    stranger.on("POST", "/v1/sessions", Answer(SESSION, status=201))
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    argv = ["--user", "admin", "--password-stdin", "--fingerprint", authority.fingerprint]
    ran = run("login", stranger.url, *argv)
    assert ran.code == 4
    assert stranger.calls("POST") == []


@pytest.mark.parametrize(
    "answer",
    [{}, [], {"certificate_pem": "no certificate"}, Answer(raw=b"<html>")],
    ids=["empty", "list", "not pem", "html"],
)
def test_a_server_that_is_none_of_ours(
    answer: Any, sign_in: Callable[..., Ran], server: Api
) -> None:
    server.on("GET", "/v1/authority", answer)
    ran = sign_in("--fingerprint", "0" * 64)
    assert ran.code == 1
    assert server.calls("POST") == []


@pytest.mark.bad_input("wrong password")
def test_wrong_password(sign_in: Callable[..., Ran], server: Api, authority: Authority) -> None:
    problem = {"code": "problem.password.wrong", "detail": "user name or password is wrong"}
    server.on("POST", "/v1/sessions", Answer(problem, status=401))
    ran = sign_in("--fingerprint", authority.fingerprint)
    assert ran.code == 6
    assert "code: problem.password.wrong" in ran.err
    assert not profile_path().exists()


def test_empty_password(sign_in: Callable[..., Ran], server: Api, authority: Authority) -> None:
    assert sign_in("--fingerprint", authority.fingerprint, password="\n").code == 2
    assert server.calls("POST") == []


def test_login_over_plain_http_stays_on_this_machine(run: Run) -> None:
    assert run("login", "http://server1:8443", "--user", "admin").code == 2


def test_logout_ends_it_on_both_sides(
    sign_in: Callable[..., Ran], server: Api, authority: Authority, run: Run
) -> None:
    sign_in("--fingerprint", authority.fingerprint)
    assert run("logout").code == 0
    assert server.calls("DELETE")[0].headers["authorization"] == f"Bearer {SESSION.token}"
    kept = load_profile().login_for(server.url)
    assert (kept.token, bool(kept.authority_pem)) == ("", True)
    ran = run("logout")
    assert (ran.code, ran.err) == (0, "you are not signed in\n")


@pytest.mark.parametrize("status", [401, 503])
def test_logout_forgets_even_when_the_server_can_not_help(
    status: int, sign_in: Callable[..., Ran], server: Api, authority: Authority, run: Run
) -> None:
    sign_in("--fingerprint", authority.fingerprint)
    server.on("DELETE", "/v1/sessions/current", Answer({"detail": "no"}, status=status))
    ran = run("logout")
    assert ran.code == 0
    assert ran.err != ""
    assert load_profile().login_for(server.url).token == ""


def test_whoami_says_when_the_sign_in_has_ended(
    sign_in: Callable[..., Ran], server: Api, authority: Authority, run: Run
) -> None:
    sign_in("--fingerprint", authority.fingerprint)
    server.on("GET", "/v1/sessions/current", Answer({"code": "problem.token.expired"}, status=401))
    ran = run("whoami")
    assert ran.code == 6
    assert "sign in: virtha login" in ran.err


def test_whoami_on_the_socket(socket_api: Api, home: Path, run: Run) -> None:
    session = CurrentSession(user="root", role=Role.ADMINISTRATOR, by="socket")
    socket_api.on("GET", "/v1/sessions/current", session)
    assert run("whoami", "--root", str(home)).out.splitlines()[1:] == [
        "user\troot",
        "role\tadministrator",
        "signed in with\tthe server's socket",
    ]


@pytest.mark.parametrize("given", ["option", "environment"])
def test_whoami_with_a_bare_token_asks_the_server(
    given: str, api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.on("GET", "/v1/sessions/current", CURRENT)
    argv = ["--token", "virtha-access.1.s"] if given == "option" else []
    monkeypatch.setenv("VIRTHA_TOKEN", "" if argv else "virtha-access.1.s")
    ran = run("whoami", *argv)
    assert ran == Ran(
        0,
        f"server\t{api.url}\nuser\tadmin\nrole\tadministrator\n"
        f"signed in with\t{'--token' if argv else 'VIRTHA_TOKEN'}\n"
        "signed in\t2026-01-01 11:00:00Z\ngood until\t2026-01-01 12:00:00Z\n",
        "",
    )
    assert api.asked[0].headers["authorization"] == "Bearer virtha-access.1.s"
    assert "expires: '2026-01-01T12:00:00.000Z'" in run("whoami", *argv, "-o", "yaml").out


def test_a_damaged_profile_says_what_to_do(run: Run) -> None:
    path = profile_path()
    path.parent.mkdir(parents=True)
    path.write_text('{"current": ')
    ran = run("vm", "list")
    assert ran.code == 1
    assert f"remove {path}" in ran.err


def test_a_profile_that_can_not_be_written_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_profile(Profile(current="https://a:1"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Failed, match="No space left"):
        save_profile(Profile(current="https://b:1"))
    assert load_profile().current == "https://a:1"
    assert [p.name for p in profile_path().parent.iterdir()] == ["config.json"]
