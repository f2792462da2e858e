"""The REST client: one server, over TLS with its pinned authority or over the local Unix socket."""

import hashlib
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from virtha import __version__
from virtha.cli.file_errors import read_text_within
from virtha.cli.options import Options
from virtha.cli.problem import error_from_answer, error_from_transport
from virtha.cli.profile import Login, load_profile
from virtha.cli.stream import ServerEvent, parse_events, split_lines
from virtha.model.errors import Failed, InvalidInput, Refused, Unavailable

CONNECT_S = 5.0
ANSWER_S = 30.0
STREAM_SILENCE_S = 35.0
"""A stream this long without a byte counts as broken: the server sends a comment every 10 s."""
PAGES_MAX = 10_000
PAGE_ITEMS_MAX = 1_000
"""The most that the API gives at once."""
PORT_DEFAULT = 8443
AUTHORITY_BYTES_MAX = 1 << 20
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Target(NamedTuple):
    """Where to go. ``socket`` None: to ``url`` over the network. ``token`` may be empty."""

    url: str
    token: str = ""
    authority_pem: str = ""
    socket: Path | None = None

    @property
    def place(self) -> str:
        return str(self.socket) if self.socket else self.url


class Answer(NamedTuple):
    body: Any
    etag: str | None = None
    location: str | None = None


def normal_url(text: str, *, field: str) -> str:
    """``server1`` -> ``https://server1:8443``. Raises InvalidInput.

    Plain HTTP goes to this machine only: passwords and tokens never cross a network in the clear.
    """
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:  # half a bracket of an IPv6 address
        raise _no_address(text, field) from None
    try:
        port = parts.port
    except ValueError:
        port = -1
    usable = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("https", "http") or not parts.hostname or port == -1 or not usable:
        raise _no_address(text, field)
    if parts.username is not None:
        raise InvalidInput("no user name or password in the address", field=field, fix="use --user")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise InvalidInput(
            f"'{text}' is not encrypted", field=field, fix=f"use https://{parts.hostname}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or (PORT_DEFAULT if parts.scheme == 'https' else 80)}"


def _no_address(text: str, field: str) -> InvalidInput:
    return InvalidInput(
        f"'{text}' is not a server's address",
        field=field,
        fix="write for example https://server1:8443",
    )


def _given_token(given: Options) -> str:
    """Empty: none was given. Raises InvalidInput, without the token, for what can't stand in a request's header."""
    token = (given.token or os.environ.get("VIRTHA_TOKEN") or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInput(
            "holds spaces, control characters or letters beyond ASCII: no token does",
            field="--token" if given.token else "VIRTHA_TOKEN",
            fix="copy the token alone, in one line",
        )
    return token


def fingerprint_of(certificate_pem: str) -> str:
    """SHA-256 of the certificate (DER), 64 hexadecimal digits. Raises Failed when it is none."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem)).hexdigest()
    except ValueError as exc:
        raise Failed("the authority that the server sent is no certificate") from exc


def find_target(given: Options) -> Target:
    """Where this call goes: --url, VIRTHA_URL, the root that was named, the login, the local socket."""
    named = given.url or os.environ.get("VIRTHA_URL")
    token = _given_token(given)
    if named:
        url = normal_url(named, field="--url" if given.url else "VIRTHA_URL")
        return _over_network(url, token, load_profile().login_for(url))
    socket = (given.root_given or Path("/")) / "run" / "virtha" / "server.sock"
    if given.root_given and socket.exists():
        return Target(url="http://virtha", token=token, socket=socket)
    profile = load_profile()
    if profile.current:
        return _over_network(profile.current, token, profile.login_for(profile.current))
    if socket.exists():
        return Target(url="http://virtha", token=token, socket=socket)
    raise Unavailable(
        f"no server is known: you are not signed in, and there is no {socket}",
        fix="sign in: virtha login URL (or set VIRTHA_URL and VIRTHA_TOKEN)",
    )


def _over_network(url: str, token: str, login: Login) -> Target:
    authority = login.authority_pem
    if named := os.environ.get("VIRTHA_AUTHORITY"):
        try:
            authority = read_text_within(Path(named), AUTHORITY_BYTES_MAX)
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is no text"
            raise InvalidInput(
                f"can't read {named}: {why}",
                field="VIRTHA_AUTHORITY",
                fix="name a copy of the server's authority.crt",
            ) from exc
    return Target(url=url, token=token or login.token, authority_pem=authority)


def pinned_context(authority_pem: str) -> ssl.SSLContext:
    """TLS that trusts this authority only: none of the system's, for nobody else may speak for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=authority_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise InvalidInput(
            "the authority is no certificate",
            field="VIRTHA_AUTHORITY",
            fix="name a copy of the server's authority.crt, or sign in: virtha login URL",
        ) from exc
    return context


def _transport(target: Target) -> httpx.HTTPTransport:
    if target.socket is not None:
        return httpx.HTTPTransport(uds=str(target.socket), verify=False)
    if target.url.startswith("http://"):
        # This machine only (see normal_url); no TLS, so no certificates to load.
        return httpx.HTTPTransport(verify=False)
    if not target.authority_pem:
        raise Refused(
            f"the authority of {target.url} is not known, so its answers can't be trusted",
            code="problem.authority.wrong",
            fix=f"virtha login {target.url} (or set VIRTHA_AUTHORITY to its certificate file)",
        )
    return httpx.HTTPTransport(verify=pinned_context(target.authority_pem))


class Client:
    """One server's REST API. Every error is one of `virtha.model.errors`."""

    def __init__(self, target: Target, *, transport: httpx.BaseTransport | None = None) -> None:
        self.target = target
        headers = {"User-Agent": f"virtha/{__version__}", "Accept": "application/json"}
        if target.token:
            headers["Authorization"] = f"Bearer {target.token}"
        self._http = httpx.Client(
            base_url=target.url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            transport=transport or _transport(target),
            trust_env=False,  # a proxy of the environment must not see tokens
            follow_redirects=False,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, Any] | None = None,
        if_match: str | None = None,
        answer_s: float = ANSWER_S,
    ) -> Answer:
        """One request, one attempt: a repeated POST could do a thing twice."""
        headers = {"If-Match": if_match} if if_match else {}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        try:
            answer = self._http.request(
                method,
                path,
                content=content,
                params=_given(params),
                headers=headers,
                timeout=httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s)),
            )
        except httpx.HTTPError as exc:
            raise error_from_transport(
                exc, where=self.target.place, changes=method != "GET"
            ) from exc
        if answer.status_code >= 300:
            raise error_from_answer(answer.status_code, answer.content)
        return Answer(
            body=_decode(answer.content, self.target.place),
            etag=answer.headers.get("ETag"),
            location=answer.headers.get("Location"),
        )

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params=params).body

    def post(self, path: str, body: Any = None, **params: Any) -> Any:
        return self.call("POST", path, body=body, params=params).body

    def get_bytes(self, path: str) -> bytes:
        """An answer that is no JSON, such as a picture."""
        try:
            answer = self._http.get(path, headers={"Accept": "*/*"})
        except httpx.HTTPError as exc:
            raise error_from_transport(exc, where=self.target.place, changes=False) from exc
        if answer.status_code >= 300:
            raise error_from_answer(answer.status_code, answer.content)
        return answer.content

    def delete(self, path: str, **params: Any) -> Any:
        return self.call("DELETE", path, params=params).body

    def items(self, path: str, *, limit: int | None = None, **params: Any) -> list[Any]:
        """A list, page by page to its end, or to ``limit`` items."""
        found: list[Any] = []
        after = params.pop("after", None)
        for _ in range(PAGES_MAX):
            left = None if limit is None else min(limit - len(found), PAGE_ITEMS_MAX)
            page = self.get(path, **params, after=after, limit=left)
            found += page["items"]
            after = page.get("next")
            if after is None or (limit is not None and len(found) >= limit):
                return found if limit is None else found[:limit]
        raise Failed(f"{path} has more than {PAGES_MAX} pages")

    @contextmanager
    def events(
        self, after: int | None, *, last_id: str = "", **params: Any
    ) -> Iterator[Iterator[ServerEvent]]:
        """The live event stream from revision ``after`` on (None: from now), or behind the event with ``last_id``."""
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        else:
            params["after"] = after
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=CONNECT_S)
        try:
            with self._http.stream(
                "GET", "/v1/events/stream", params=_given(params), headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code >= 300:
                    raise error_from_answer(answer.status_code, answer.read())
                yield parse_events(split_lines(answer.iter_bytes()))
        except httpx.HTTPError as exc:
            raise error_from_transport(exc, where=self.target.place, changes=False) from exc


def _given(params: dict[str, Any] | None) -> dict[str, Any]:
    """Only what was given; true and false as the API reads them."""
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in (params or {}).items()
        if value is not None
    }


def _decode(content: bytes, place: str) -> Any:
    if not content:
        return None
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as exc:
        raise Failed(f"{place} sent something that is no JSON: is it a virtha server?") from exc


def ref(name: str, *, field: str) -> str:
    """A name or id as one part of a path. Raises InvalidInput when it can't be one."""
    if not name or name in (".", ".."):
        raise InvalidInput(f"'{name}' is no name or id", field=field)
    if "/" in name:  # decoded on its way, it would be a path of its own
        raise InvalidInput(
            f"'{name}' is no name or id", field=field, fix="give the name alone: none holds a /"
        )
    return quote(name, safe="")
