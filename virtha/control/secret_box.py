"""Secrets at rest: encrypted with a key that lies beside the database, never in it.

AES-256-GCM; a sealed text is bound to the record that it belongs to, so that one can't be put in another's
place, and names the key, so that a wrong one is told as such.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from virtha.model.errors import Failed, VirthaError

KEY_BYTES = 32
_NONCE_BYTES = 12
_FORMAT = "1"


class SecretBox(Protocol):
    def seal(self, secrets: Mapping[str, str], *, of: str) -> str:
        """``of``: the record's id. Raises Failed, which names the key's file."""
        ...

    def open(self, sealed: str, *, of: str) -> dict[str, str]:
        """Raises Failed, which names the key's file."""
        ...


class KeyBox:
    """With a key. ``where``: its file, for errors."""

    def __init__(self, key: bytes, *, where: str) -> None:
        assert len(key) == KEY_BYTES, "the file's reader checks it"
        self._cipher = AESGCM(key)
        self._key_id = hashlib.sha256(b"virtha secrets key" + key).hexdigest()[:16]
        self._where = where

    def __repr__(self) -> str:
        return f"KeyBox({self._where})"

    def seal(self, secrets: Mapping[str, str], *, of: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        closed = self._cipher.encrypt(nonce, msgspec.json.encode(dict(secrets)), of.encode())
        return f"{_FORMAT}:{self._key_id}:{base64.b64encode(nonce + closed).decode()}"

    def open(self, sealed: str, *, of: str) -> dict[str, str]:
        form, _, rest = sealed.partition(":")
        key_id, _, text = rest.partition(":")
        if form != _FORMAT:
            raise _unreadable("they were sealed by a newer version")
        if key_id != self._key_id:
            raise _unreadable(f"they were sealed with another key than {self._where} holds")
        try:
            raw = base64.b64decode(text, validate=True)
            plain = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], of.encode())
            return msgspec.json.decode(plain, type=dict[str, str])
        except (InvalidTag, binascii.Error, ValueError):
            # From None: what was decrypted so far must not hang on to the error.
            raise _unreadable("they are damaged in the database") from None


class NoKeyBox:
    """Without one: everything that needs no secret goes on. ``problem``: why there is none."""

    def __init__(self, problem: VirthaError | None = None) -> None:
        self._problem = problem or _unreadable("this server has no key for them")

    def seal(self, secrets: Mapping[str, str], *, of: str) -> str:
        raise self._again()

    def open(self, sealed: str, *, of: str) -> dict[str, str]:
        raise self._again()

    def _again(self) -> Failed:
        """A new one each time: a raised error keeps what it was raised from."""
        return Failed(self._problem.message, code=self._problem.code, fix=self._problem.fix)


def _unreadable(why: str) -> Failed:
    return Failed(
        f"the secrets can't be read: {why}",
        fix="restore secrets.key from a backup of this installation and restart the server; or "
        "'virtha server new-secrets-key', restart, and give each receiver its secrets anew",
    )
