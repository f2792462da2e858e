"""The part of `virtha login --provider` that a browser does: an authorization code by way of this machine (RFC 8252)."""

import time
import webbrowser
from html import escape
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import typer

from virtha.cli.client import Client
from virtha.model.errors import Failed, InvalidInput, Unauthenticated

PATH = "/signed-in"
WAIT_S = 600.0
"""As long as the server lets a sign-in take."""
PASTED_PORT = 8400
"""Nothing listens there when the address is pasted; the provider only has to know it."""
PAGE = "<!doctype html><title>virtha</title><p>{text} You can close this page."
Brought = dict[str, str]


def sign_in_by_browser(client: Client, *, paste: bool, port: int | None) -> Any:
    """The session that the server gives in the end. ``port``: of 127.0.0.1, for providers that want it known beforehand.

    ``paste``: the browser runs on another machine, which can't reach this one; the address that it ends at is typed in.
    Raises Unauthenticated, Failed, InvalidInput.
    """
    if paste:
        begun = _begin(client, port or PASTED_PORT)
        typer.echo(f"Open this in a browser, and sign in:\n\n  {begun['url']}\n", err=True)
        typer.echo("It ends at a page that can't be shown. Copy that page's address.", err=True)
        brought = read_address(str(typer.prompt("Address", err=True)), begun["url"])
    else:
        begun, brought = _by_this_machine(client, port)
    body = {"sign_in": begun["sign_in"], "code": brought["code"], "state": brought["state"]}
    if "iss" in brought:
        body["iss"] = brought["iss"]
    return client.post("/v1/sign-ins/finish", body)


def _begin(client: Client, port: int) -> Any:
    return client.post("/v1/sign-ins", {"redirect_uri": f"http://127.0.0.1:{port}{PATH}"})


def _by_this_machine(client: Client, port: int | None) -> tuple[Any, Brought]:
    try:
        waiting = _Waiting(port or 0)
    except OSError as error:
        raise InvalidInput(
            f"port {port} of 127.0.0.1 can't be used: {error.strerror}",
            field="--redirect-port",
            fix="give another one that the provider knows",
        ) from None
    with waiting:
        begun = _begin(client, waiting.server_port)
        typer.echo(f"Sign in in your browser. If it doesn't open:\n\n  {begun['url']}\n", err=True)
        webbrowser.open(begun["url"])
        return begun, waiting.until_back(begun["url"])


class _Waiting(HTTPServer):
    """On loopback, for one browser to come back."""

    allow_reuse_address = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Back)
        self.url = ""
        self.brought: Brought | None = None
        self.failed: Exception | None = None

    def until_back(self, url: str) -> Brought:
        self.url = url
        until = time.monotonic() + WAIT_S
        while self.brought is None:
            self.timeout = max(0.0, until - time.monotonic())
            self.handle_request()
            if self.failed is not None:
                raise self.failed
            if time.monotonic() >= until:
                raise Failed(
                    "nobody signed in", fix="try again; on a machine without browser: --paste"
                )
        return self.brought


class _Back(BaseHTTPRequestHandler):
    server: _Waiting
    timeout = 10
    """For one who connects and says nothing."""

    def do_GET(self) -> None:
        if urlsplit(self.path).path != PATH:
            return self._show(404, "There is nothing here.")
        try:
            self.server.brought = read_address(self.path, self.server.url)
        except InvalidInput:
            # Any page in any browser may call us: what is not of this sign-in ends nothing.
            return self._show(400, "This is not the sign-in that was begun.")
        except Unauthenticated as error:
            self.server.failed = error
            return self._show(200, error.message)
        self._show(200, "The browser's part is done.")

    def _show(self, status: int, text: str) -> None:
        raw = PAGE.format(text=escape(text)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """The code is nobody else's business."""


def read_address(address: str, asked: str) -> Brought:
    """What the browser brought back to ``address``, after it was sent to ``asked``.

    Raises InvalidInput: it belongs to another sign-in; Unauthenticated: the provider said no.
    """
    try:
        found = {name: one[0] for name, one in parse_qs(urlsplit(address.strip()).query).items()}
    except ValueError:
        found = {}
    state = parse_qs(urlsplit(asked).query).get("state", [""])[0]
    if not state or found.get("state") != state:
        raise InvalidInput(
            "is not where this sign-in ends",
            field="Address",
            fix="copy all of the address, beginning with http",
        )
    if "error" in found:
        why = found.get("error_description", "")[:200]
        said = f"{found['error'][:50]}{': ' if why else ''}{why}"
        # A terminal obeys what can't be printed.
        shown = "".join(one if one.isprintable() else "?" for one in said)
        raise Unauthenticated(
            f"the provider says {shown}",
            code="problem.sign_in.refused",
        )
    if "code" not in found:
        raise InvalidInput("has no code", field="Address", fix="copy all of the address")
    return found
