"""What others say, told without the secrets that we gave them."""

import base64
from collections.abc import Iterable
from urllib.parse import quote

from virtha.alerts.notice import one_line

DETAIL_CHARACTERS = 500


class Blots:
    """A password, plain or in the coding of a protocol, is blotted out."""

    def __init__(self, secrets: Iterable[str], user: str | None = None) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if secret:
                forms |= {secret, _base64(secret), quote(secret, safe="")}
                forms.add(_base64(f"\0{user or ''}\0{secret}"))
                forms.add(_base64(f"{user or ''}:{secret}"))
        self._forms = sorted(forms, key=len, reverse=True)

    def line(self, text: str) -> str:
        """One line, of at most ``DETAIL_CHARACTERS``."""
        for form in self._forms:
            text = text.replace(form, "***")
        return one_line(text, DETAIL_CHARACTERS)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
