"""The sign-in of one user of this machine: `$XDG_CONFIG_HOME/virtha/config.json`, mode 0600."""

import os
import tempfile
from pathlib import Path

import msgspec

from virtha.model.errors import Failed
from virtha.model.value import Value


class Login(Value, frozen=True, kw_only=True):
    """One server: its pinned authority (kept after `logout`) and, while signed in, the token."""

    authority_pem: str = ""
    token: str = ""


class Profile(Value, frozen=True, kw_only=True):
    """``current`` is the URL that commands go to when nothing else names one; empty: none."""

    current: str = ""
    servers: dict[str, Login] = {}

    def login_for(self, url: str) -> Login:
        return self.servers.get(url, Login())

    def with_login(self, url: str, login: Login, *, current: bool) -> "Profile":
        servers = {**self.servers, url: login}
        return Profile(current=url if current else self.current, servers=servers)


def profile_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "virtha" / "config.json"


def load_profile() -> Profile:
    """The stored profile; an empty one when there is none. Raises Failed when it can't be read."""
    path = profile_path()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Profile()
    except OSError as exc:
        raise Failed(f"can't read {path}: {exc.strerror}") from exc
    try:
        return msgspec.json.decode(raw, type=Profile)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise Failed(
            f"{path} is damaged: {exc}", fix=f"remove {path}, then sign in again: virtha login URL"
        ) from exc


def save_profile(profile: Profile) -> Path:
    """Replace the profile in one step, so that a full disk or a crash leaves the old one whole."""
    path = profile_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp makes the file 0600 from its first byte on: the token is never readable by others.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(msgspec.json.format(msgspec.json.encode(profile), indent=2))
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise Failed(f"can't write {path}: {exc.strerror}") from exc
    return path
