"""A provider of sign-ins that says what a test wants: for what a real one (real_provider.py) never does."""

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import RSAKey

from virtha.model.sign_in import BegunSignIn, SignInProvider
from virtha.model.time import Millis, UtcMillis

KEY = RSAKey.generate_key(2048, {"kid": "one"})
NEXT_KEY = RSAKey.generate_key(2048, {"kid": "two"})
WALL_MS = 1_800_000_000_000
BEGUN = BegunSignIn(
    redirect_uri="http://127.0.0.1:1/back", state="s" * 43, nonce="n" * 43, verifier="v" * 43
)
Said = tuple[int, dict[str, str], bytes]


class Clock:
    now = 0

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(WALL_MS + self.now)


def said(value: Any, status: int = 200, **headers: str) -> Said:
    return status, headers, value if isinstance(value, bytes) else json.dumps(value).encode()


class Told:
    """``says``: by path, what is answered. ``asked``: (path, headers, form)."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.asked: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []
        self.key = KEY
        self.says: dict[str, Callable[[], Said]] = {
            "/.well-known/openid-configuration": lambda: said(self.published()),
            "/keys": lambda: said({"keys": [self.key.as_dict(private=False)]}),
            "/token": lambda: said({"id_token": self.token(), "access_token": "access"}),
            "/me": lambda: said({"sub": "4711", "groups": ["g"]}),
        }

    def published(self, **more: Any) -> dict[str, Any]:
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?tenant=1",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/me",
            **more,
        }
        return {name: value for name, value in found.items() if value is not None}

    def token(self, at_s: int = WALL_MS // 1_000, **more: Any) -> str:
        """``at_s``: when it was made. ``more``: claims that take the place of the right ones."""
        claims = {"iss": self.issuer, "sub": "4711", "aud": "virtha"}
        claims |= {"iat": at_s, "exp": at_s + 3_600}
        claims |= {"nonce": BEGUN.nonce, "preferred_username": "diana", **more}
        header = {"alg": "RS256", **({"kid": self.key.kid} if self.key.kid else {})}
        return jwt.encode(header, claims, self.key, algorithms=["RS256"])

    def provider(self, **more: Any) -> SignInProvider:
        return SignInProvider(issuer=self.issuer, client_id="virtha", **more)

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@contextlib.contextmanager
def telling(tls: ssl.SSLContext | None = None) -> Iterator[Told]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.asked.append((self.path, headers, parse_qs(form)))
            status, more, raw = told.says[self.path]()
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    told = Told(f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
