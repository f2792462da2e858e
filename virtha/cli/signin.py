"""`virtha login`, `logout`, `whoami`."""

import json
import os
import sys
from typing import Any

import httpx
import typer

from virtha.cli.client import (
    ANSWER_S,
    CONNECT_S,
    Client,
    Target,
    find_target,
    fingerprint_of,
    normal_url,
)
from virtha.cli.options import Options, options
from virtha.cli.output import View, emit_one, moment, note
from virtha.cli.problem import error_from_answer, error_from_transport
from virtha.cli.profile import Login, load_profile, profile_path, save_profile
from virtha.cli.provider_login import sign_in_by_browser
from virtha.cli.session import connected, read_secret, report
from virtha.model.errors import Failed, InvalidInput, Refused, Unauthenticated, Unavailable

login_app = typer.Typer()
logout_app = typer.Typer()
whoami_app = typer.Typer()

HOW_TO_COMPARE = (
    "compare with what `virtha server init` showed, or on the server: openssl x509 -noout "
    "-fingerprint -sha256 -in /var/lib/virtha/server/authority/authority.crt"
)


@login_app.command()
def login(
    ctx: typer.Context,
    url: str = typer.Argument(metavar="URL", help="The server, for example https://server1:8443."),
    user: str | None = typer.Option(None, help="User name; asked for if not given."),
    password_stdin: bool = typer.Option(
        False, "--password-stdin", help="Read the password's line from stdin."
    ),
    provider: bool = typer.Option(
        False, "--provider", help="By the server's provider of sign-ins, in a browser."
    ),
    paste: bool = typer.Option(
        False, "--paste", help="With --provider: the browser is on another machine."
    ),
    redirect_port: int | None = typer.Option(
        None, min=1, max=65_535, help="With --provider: where the browser returns to; default: any."
    ),
    fingerprint: str | None = typer.Option(
        None, metavar="HEX", help="SHA-256 of the server's authority: checked instead of asked."
    ),
) -> None:
    """Sign in. The first time, the server's authority is checked by its fingerprint and kept."""
    url = normal_url(url, field="URL")
    profile = load_profile()
    pinned = profile.login_for(url).authority_pem
    authority = _trusted_authority(url, pinned, _normal_fingerprint(fingerprint))
    # From here on the connection is verified: what is secret goes to no one but that authority's server.
    if provider:
        if user is not None or password_stdin:
            raise InvalidInput(
                "the provider asks for name and password", field="--provider", fix="leave them out"
            )
        with Client(Target(url=url, authority_pem=authority)) as client:
            session = sign_in_by_browser(client, paste=paste, port=redirect_port)
    else:
        session = _by_password(url, authority, user, password_stdin=password_stdin)
    entry = Login(authority_pem=authority, token=session["token"])
    path = save_profile(profile.with_login(url, entry, current=True))
    shown = {key: value for key, value in session.items() if key != "token"}
    who = f"{session['user']} ({session['role']}) until {moment(session['expires'])}"
    report(ctx, shown, f"signed in to {url} as {who}; kept in {path}")


def _by_password(url: str, authority: str, user: str | None, *, password_stdin: bool) -> Any:
    if user is None:
        if not sys.stdin.isatty() or password_stdin:
            raise InvalidInput("the user's name is missing", field="--user", fix="give --user NAME")
        user = str(typer.prompt("User", err=True))
    password = read_secret(f"Password of {user}", from_stdin=password_stdin)
    with Client(Target(url=url, authority_pem=authority)) as client:
        return client.post("/v1/sessions", {"user": user, "password": password})


def _normal_fingerprint(text: str | None) -> str | None:
    if text is None:
        return None
    bare = text.strip().removeprefix("sha256:").replace(":", "").lower()
    if len(bare) != 64 or any(digit not in "0123456789abcdef" for digit in bare):
        raise InvalidInput(
            "not a SHA-256 fingerprint",
            field="--fingerprint",
            allowed=("64 hexadecimal digits, colons allowed",),
        )
    return bare


def _trusted_authority(url: str, pinned: str, wanted: str | None) -> str:
    """The authority to trust. Raises Refused when it isn't the wanted or the kept one, or when
    nobody is here who could compare it."""
    if url.startswith("http://"):
        # Only this machine itself (see normal_url): there is no one between.
        return ""
    offered = _fetch_authority(url)
    found = fingerprint_of(offered)
    if wanted is not None:
        if found != wanted:
            raise Refused(
                f"the authority of {url} has fingerprint {found}, not the one you gave",
                code="problem.authority.wrong",
                fix=f"nothing was sent to it; {HOW_TO_COMPARE}",
            )
        return offered
    if pinned:
        if fingerprint_of(pinned) != found:
            raise Refused(
                f"the authority of {url} has changed: it is {found} now",
                code="problem.authority.wrong",
                fix=f"if the server was set up anew, give --fingerprint; {HOW_TO_COMPARE}",
            )
        return pinned
    if not sys.stdin.isatty():
        raise Refused(
            f"the authority of {url} is not known yet and nobody is here to compare it: {found}",
            code="problem.authority.wrong",
            fix=f"give --fingerprint HEX; {HOW_TO_COMPARE}",
        )
    pairs = ":".join(found[i : i + 2] for i in range(0, 64, 2))
    typer.echo(f"The authority of {url} is not known yet. Its SHA-256 fingerprint:", err=True)
    typer.echo(f"  {pairs}\n({HOW_TO_COMPARE})", err=True)
    if not typer.confirm("Trust it?", err=True):
        raise Refused("not trusted; nothing was sent to it", code="problem.authority.wrong")
    return offered


def _fetch_authority(url: str) -> str:
    """The one request that goes out unverified: it carries no secret, and its answer is only
    believed after the fingerprint was compared."""
    try:
        answer = httpx.get(
            f"{url}/v1/authority",
            verify=False,  # noqa: S501 - no secret goes out, and the fingerprint decides what is believed
            trust_env=False,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        )
    except httpx.HTTPError as exc:
        raise error_from_transport(exc, where=url, changes=False) from exc
    if answer.status_code >= 300:
        raise error_from_answer(answer.status_code, answer.content)
    try:
        return str(json.loads(answer.content)["certificate_pem"])
    except (ValueError, KeyError, TypeError) as exc:
        raise Failed(f"{url} did not send its authority: is it a virtha server?") from exc


@logout_app.command()
def logout(ctx: typer.Context) -> None:
    """End the sign-in, here and on the server. The server's authority stays known."""
    given = options(ctx)
    profile = load_profile()
    url = normal_url(given.url, field="--url") if given.url else profile.current
    entry = profile.login_for(url)
    if not entry.token:
        note(given, "you are not signed in")
        return
    try:
        target = Target(url=url, token=entry.token, authority_pem=entry.authority_pem)
        with Client(target) as client:
            client.delete("/v1/sessions/current")
    except Unauthenticated:
        note(given, "the sign-in had ended already")
    except Unavailable as exc:
        note(
            given, f"{exc.message}; the token is removed here and stays good there until it expires"
        )
    forgotten = Login(authority_pem=entry.authority_pem)
    save_profile(profile.with_login(url, forgotten, current=False))
    report(ctx, {"url": url}, f"signed out of {url}")


WHO = View(
    name=lambda item: str(item["user"]),
    columns=(),
    details=lambda item: [
        ("server", item["server"]),
        ("user", item["user"]),
        ("role", item["role"]),
        *[
            (f"in {name}", ", ".join(found))
            for name, found in sorted((item.get("clusters") or {}).items())
        ],
        ("signed in with", item["from"]),
        *[("signed in", moment(item["created"]))] * bool(item["created"]),
        *[("good until", moment(item["expires"]))] * bool(item["expires"]),
    ],
)


@whoami_app.command()
def whoami(ctx: typer.Context) -> None:
    """Which server commands go to, as whom, and whether the sign-in still holds."""
    given = options(ctx)
    target = find_target(given)
    with connected(ctx) as client:
        session = client.get("/v1/sessions/current")
    emit_one(given, {"server": target.place, "from": _source(given, target), **session}, WHO)


def _source(given: Options, target: Target) -> str:
    """Where the command line had its credentials from."""
    if not target.token:
        return "the server's socket"
    if given.token:
        return "--token"
    if os.environ.get("VIRTHA_TOKEN"):
        return "VIRTHA_TOKEN"
    return str(profile_path())
