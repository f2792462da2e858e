"""``secrets.key`` in the server's state: made once, read at each start, never in the database."""

import base64
import binascii
import contextlib
import os
from pathlib import Path

from virtha.control.secret_box import KEY_BYTES, KeyBox, NoKeyBox, SecretBox
from virtha.model.errors import Conflict, Failed
from virtha.server.config import ServerPaths
from virtha.server.files import write_whole
from virtha.store import Store
from virtha.store.notifications import sealed_count
from virtha.store.power import sealed_power_count
from virtha.store.sign_in import sealed_provider_count

FILE_BYTES_MAX = 1_000
NEW_KEY_FIX = (
    "restore it from a backup of this installation and restart the server; without one: "
    "'virtha server new-secrets-key', restart, and give each receiver and power device its secrets anew"
)


async def store_has_sealed(store: Store) -> bool:
    async with store.read() as tx:
        sealed = await sealed_count(tx) + await sealed_power_count(tx)
        return sealed + await sealed_provider_count(tx) > 0


def open_box(paths: ServerPaths, *, sealed: bool) -> SecretBox:
    """``sealed``: something was encrypted with a key already; then a missing one is not made anew, for the
    old one may still be found. Raises nothing: without a key, all that needs no secret goes on."""
    path = paths.secrets_key
    try:
        if not path.exists() and not sealed:
            write_new_key(paths)
        return KeyBox(read_key(path), where=str(path))
    except FileNotFoundError:
        problem = Failed(f"the secrets can't be read: there is no {path}", fix=NEW_KEY_FIX)
    except OSError as error:
        problem = Failed(
            f"the secrets can't be read: {path}: {error.strerror or error}", fix="check its rights"
        )
    except Failed as error:
        problem = error
    return NoKeyBox(problem)


def read_key(path: Path) -> bytes:
    """Raises FileNotFoundError, OSError, and Failed when it holds no key."""
    raw = path.read_bytes()[:FILE_BYTES_MAX]
    with contextlib.suppress(binascii.Error, ValueError):
        key = base64.b64decode(raw.strip(), validate=True)
        if len(key) == KEY_BYTES:
            return key
    raise Failed(f"the secrets can't be read: {path} holds no key", fix=NEW_KEY_FIX)


def write_new_key(paths: ServerPaths) -> Path | None:
    """Returns where the present one was moved to; None: there was none."""
    path = paths.secrets_key
    aside = None
    if path.exists():
        aside = _free_name(path)
        path.rename(aside)
    write_whole(path, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n", mode=0o600)
    return aside


def _free_name(path: Path) -> Path:
    for number in range(1, 1_000):
        aside = path.with_name(f"{path.name}.old-{number}")
        if not aside.exists():
            return aside
    raise Conflict(f"there are too many old keys beside {path}", fix="move them away")
