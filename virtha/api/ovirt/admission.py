"""What a request must be before anything of it is carried out, whoever sends it."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from virtha.api.problems import TooLarge, UnsupportedMediaType
from virtha.api.route import JSON
from virtha.model.errors import Forbidden, InvalidInput

XML = "application/xml"
BODY_KINDS = (XML, "text/xml", JSON)
FORM_BYTES_MAX = 64 << 10
"""Of the single sign-on: it is read before anybody has signed in."""
READING = ("GET", "HEAD")
_OWN_SITES = ("same-origin", "none")


def check_site(method: str, headers: Mapping[str, str]) -> None:
    """A browser that knows a name and password sends them along with whatever another site makes it send: it says so in
    ``Sec-Fetch-Site``, or in ``Origin``. oVirt's clients are no browsers and send neither. Raises Forbidden."""
    if method in READING:
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = site is not None and site.strip().lower() not in _OWN_SITES
    if origin is not None and not foreign:
        foreign = _place(origin) != headers.get("host", "").strip().lower()
    if foreign:
        raise Forbidden(
            f"it comes from another site: {(origin or site or '')[:200]}",
            field="Origin" if origin is not None else "Sec-Fetch-Site",
            fix="send it from no web page, or from one of this server's own",
        )


def _place(origin: str) -> str | None:
    """Host and port as in ``Host``; None: an origin that hides itself (``null``), or is none."""
    try:
        return urlsplit(origin.strip()).netloc.lower() or None
    except ValueError:
        return None


def check_removal(raw: bytes) -> None:
    """Version 3 of oVirt's API said ``detach_only`` in the body of a DELETE: to ignore it would be to delete the data that
    was to be kept. Raises InvalidInput."""
    if raw.strip():
        raise InvalidInput(
            "a DELETE has a body, which is not read",
            field="body",
            fix="leave it out; to keep the disks say detach_only in the query: DELETE …?detach_only=true",
        )


def body_kind(header: str | None) -> str:
    """Which of ``BODY_KINDS``. One that is not said is not guessed: forms of other sites say none. Raises
    UnsupportedMediaType."""
    kind = (header or "").partition(";")[0].strip().lower()
    if kind not in BODY_KINDS:
        said = f"is {kind[:64]}" if kind else "has no Content-Type"
        raise UnsupportedMediaType(
            f"the body {said}", field="Content-Type", allowed=(XML, JSON), fix=f"send {XML}"
        )
    return kind


def check_form_size(raw: bytes) -> None:
    """Raises TooLarge."""
    if len(raw) > FORM_BYTES_MAX:
        raise TooLarge(
            "the form is too large", field="body", allowed=(f"up to {FORM_BYTES_MAX} bytes",)
        )
