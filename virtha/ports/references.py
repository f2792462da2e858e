"""What the use cases may ask of this server's reference addresses (J4): implemented by the server."""

from typing import Protocol

from virtha.model.value import Value


class ReferencesSeen(Value, frozen=True, kw_only=True):
    """``addresses``: as they are configured. ``reached``: one of them answered when they were asked last; None: not asked yet.
    ``why``: of each why not, in words, where none did."""

    addresses: tuple[str, ...] = ()
    reached: bool | None = None
    why: str = ""


class References(Protocol):
    def seen(self) -> ReferencesSeen: ...


class NoReferences:
    """Of a server that has none."""

    def seen(self) -> ReferencesSeen:
        return ReferencesSeen()
