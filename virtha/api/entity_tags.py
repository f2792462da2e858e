"""Entity tags: `"REVISION-DIGEST"` of what a GET shows, `"REVISION"` of what a change has made.

The revision is that of the object itself, and it alone decides about If-Match: a VM that was started in between may still be
changed. What a GET shows of it moves on without it (states, hosts, reasons): the digest of the answer tells If-None-Match.
"""

import hashlib
import re

from virtha.model.errors import InvalidInput
from virtha.model.ids import ANY_REVISION, Revision

DIGEST_BYTES = 12
_DIGEST = f"-[0-9a-f]{{{2 * DIGEST_BYTES}}}"
IF_MATCH = f'^((W/)?"[0-9]{{1,18}}({_DIGEST})?"|\\*)$'
_ANY_TAG = '(W/)?"[!#-~]*"'
IF_NONE_MATCH = f"^({_ANY_TAG}( *, *{_ANY_TAG})*|\\*)$"
_LIST = re.compile(IF_NONE_MATCH)
_TAG = re.compile(f'(?:W/)?"(?P<revision>[0-9]{{1,18}})?(?:{_DIGEST})?"')
"""Weak ones too: a proxy that compresses weakens them."""


def tag_of(revision: int | None, shown: bytes | None = None) -> str:
    """``shown``: the answer's body, of a GET."""
    number = "" if revision is None else str(revision)
    if shown is None:
        return f'"{number}"'
    return f'"{number}-{hashlib.blake2b(shown, digest_size=DIGEST_BYTES).hexdigest()}"'


def revision_in(header: str) -> Revision:
    """Of If-Match; of ``*`` ``ANY_REVISION``. Raises InvalidInput."""
    text = header.strip()
    if text == "*":
        return ANY_REVISION
    found = _TAG.fullmatch(text)
    if found is None or found["revision"] is None:
        raise InvalidInput(
            f"'{header[:64]}' is no ETag of an object",
            field="If-Match",
            fix='send the one ETag that the object came with, for example "42"',
        )
    return Revision(int(found["revision"]))


def is_known(header: str, tag: str) -> bool:
    """By If-None-Match: whether its sender has what carries ``tag``. Raises InvalidInput."""
    text = header.strip()
    if _LIST.fullmatch(text) is None:
        raise InvalidInput(
            f"'{header[:64]}' is no list of ETags",
            field="If-None-Match",
            fix="send the ETag that the answer came with, in its quotation marks",
        )
    return text == "*" or tag in re.findall('"[^"]*"', text)
