"""A real OpenID provider (idpyoidc, which the OpenID Foundation certified) on loopback, in a process of its own.

Only who is signed in at it is played: whoever was named last at `/who/NAME`. Codes, tokens, keys, PKCE and what clients
must prove are the library's.
"""

import contextlib
import json
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from own_authority import OwnAuthority, serving_tls

PEOPLE = {
    "diana": {"preferred_username": "diana", "groups": ["staff", "vm-admins"]},
    "otto": {"preferred_username": "otto", "groups": ["vm-operators"]},
    "nobody": {"preferred_username": "nobody", "groups": ["staff"]},
    "strange": {"preferred_username": "a b/../c", "groups": ["vm-operators"]},
    "admin": {"preferred_username": "admin", "groups": ["vm-admins"]},
    "administrator": {"preferred_username": "administrator", "groups": ["vm-admins"]},
}
CLIENT_ID = "virtha"
CLIENT_SECRET = "a secret: of+two %s"
KEYS = [{"type": "RSA", "use": ["sig"]}, {"type": "EC", "crv": "P-256", "use": ["sig"]}]
START_S = 120.0


@dataclass
class Provider:
    """``issuer``: where it runs."""

    issuer: str
    directory: Path
    redirect_uri: str
    trust: ssl.SSLContext | bool = True
    """Of a browser that knows its authority."""

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "scopes": ["openid", "profile", "groups"],
            "roles": {"vm-admins": "administrator", "vm-operators": "operator"},
            **more,
        }

    def new_keys(self) -> None:
        with self.browser() as browser:
            browser.get(f"{self.issuer}/new-keys").raise_for_status()

    def browser(self) -> httpx.Client:
        return httpx.Client(trust_env=False, timeout=START_S, verify=self.trust)

    def visit(self, url: str, person: str = "diana") -> dict[str, str]:
        """As the person's browser, which is signed in there: what it brings back."""
        with self.browser() as browser:
            browser.get(f"{self.issuer}/who/{person}").raise_for_status()
            answer = browser.get(url)
        assert answer.status_code == 303, answer.text
        brought = urlsplit(answer.headers["location"])
        assert answer.headers["location"].startswith(self.redirect_uri), answer.headers
        return {name: values[0] for name, values in parse_qs(brought.query).items()}


@contextlib.contextmanager
def providing(
    directory: Path, port: int, redirect_uri: str, authority: OwnAuthority | None = None
) -> Iterator[Provider]:
    """One process, with new keys each time. ``authority``: it speaks TLS, with a certificate of that."""
    directory.mkdir(parents=True, exist_ok=True)
    chain, trust = [], ssl.create_default_context()
    if authority is not None:
        chain = [str(authority.issue(directory / "provider.pem"))]
        trust = ssl.create_default_context(cadata=authority.pem)
    issuer = f"{'https' if chain else 'http'}://127.0.0.1:{port}"
    with (directory / "provider.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, issuer, redirect_uri, *chain],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (directory / "provider.log").read_text()
        yield Provider(issuer, directory, redirect_uri, trust)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make_server(issuer: str, redirect_uri: str) -> Any:
    warnings.simplefilter("ignore")  # the library's own way of being signed in without a password
    from idpyoidc.server import Server
    from idpyoidc.server.configure import OP_DEFAULT_CONFIG, OPConfiguration

    conf = {
        **OP_DEFAULT_CONFIG,
        "issuer": issuer,
        "httpc_params": {"verify": False},
        "key_conf": {
            "key_defs": KEYS,
            "uri_path": "jwks.json",
        },
        "scopes_to_claims": {
            "openid": ["sub"],
            "profile": ["preferred_username"],
            "groups": ["groups"],
        },
        "authentication": {
            "anyone": {
                "acr": "urn:oasis:names:tc:SAML:2.0:ac:classes:unspecified",
                "class": "idpyoidc.server.user_authn.user.NoAuthn",
                "kwargs": {"user": "diana"},
            }
        },
        "token_handler_args": {
            "jwks_def": {
                "private_path": "private/token_jwks.json",
                "key_defs": [{"type": "oct", "bytes": "24", "use": ["enc"], "kid": "code"}],
            },
            "code": {"kwargs": {"lifetime": 600}},
            "token": {
                "class": "idpyoidc.server.token.jwt_token.JWTToken",
                "kwargs": {"lifetime": 3600},
            },
            "id_token": {"class": "idpyoidc.server.token.id_token.IDToken", "kwargs": {}},
        },
        "userinfo": {
            "class": "idpyoidc.server.user_info.UserInfo",
            "kwargs": {"db": PEOPLE},
        },
        "add_ons": {
            "pkce": {
                "function": "idpyoidc.server.oauth2.add_on.pkce.add_support",
                "kwargs": {"essential": True, "code_challenge_method": "S256"},
            }
        },
    }
    server = Server(OPConfiguration(conf=conf, base_path="."), cwd=".")
    server.context.cdb[CLIENT_ID] = {
        "client_secret": CLIENT_SECRET,
        "redirect_uris": [(redirect_uri, None)],
        "response_types_supported": ["code"],
        "token_endpoint_auth_method": "client_secret_basic",
        "allowed_scopes": ["openid", "profile", "groups"],
        "client_salt": "salted",
    }
    server.keyjar.add_symmetric(CLIENT_ID, CLIENT_SECRET)
    return server


class Handler(BaseHTTPRequestHandler):
    op: Any

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path.startswith("/who/"):
            (method,) = self.op.context.authn_broker
            method.user = parts.path.rsplit("/", 1)[1]
            self.reply(200, "{}")
        elif parts.path == "/new-keys":
            self.op.keyjar.rotate_keys(KEYS)
            self.reply(200, "{}")
        elif parts.path == "/jwks.json":
            self.reply(200, self.op.keyjar.export_jwks_as_json())
        else:
            self.serve(parts.path, asked)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.serve(self.path, {name: values[0] for name, values in parse_qs(body).items()})

    def serve(self, path: str, asked: dict[str, str]) -> None:
        for endpoint in self.op.endpoint.values():
            if f"/{endpoint.endpoint_path}" == path:
                return self.ask(endpoint, asked)
        self.reply(404, "{}")

    def ask(self, endpoint: Any, asked: dict[str, str]) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        http_info = {"headers": headers, "method": self.command, "url": self.path}
        try:
            request = endpoint.parse_request(asked, http_info=http_info)
            if "error" in request:
                return self.reply(400, request.to_json())
            arguments = endpoint.process_request(request, http_info=http_info)
            if "error" in arguments:
                found = (
                    arguments.to_json() if hasattr(arguments, "to_json") else json.dumps(arguments)
                )
                return self.reply(400, found)
            answer = endpoint.do_response(request=request, **arguments)
        except Exception as error:  # its library tells what is wrong with a request in many kinds
            self.log_error("%r", error)
            return self.reply(400, json.dumps({"error": "invalid_request", "why": str(error)}))
        if answer.get("response_placement", endpoint.response_placement) == "url":
            self.send_response(303)
            self.send_header("Location", answer["response"])
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.reply(200, answer["response"])

    def reply(self, status: int, body: str) -> None:
        raw = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


if __name__ == "__main__":
    issuer, redirect_uri, *chain = sys.argv[1:]
    Handler.op = make_server(issuer, redirect_uri)
    listening = HTTPServer(("127.0.0.1", int(issuer.rpartition(":")[2])), Handler)
    for path in chain:
        listening.socket = serving_tls(path).wrap_socket(listening.socket, server_side=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    listening.serve_forever()
