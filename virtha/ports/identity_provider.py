"""Who vouches for people: one attempt each."""

from typing import Protocol

from virtha.model.errors import Unavailable
from virtha.model.sign_in import BegunSignIn, Identity, SignInProvider


class IdentityProvider(Protocol):
    """All of it raises Unavailable (`problem.sign_in.provider`) when the provider gives no answer in time, or none that
    can be used."""

    async def address(self, provider: SignInProvider, begun: BegunSignIn) -> str:
        """The URL where the person's browser asks the provider."""
        ...

    async def redeem(
        self, provider: SignInProvider, secret: str | None, begun: BegunSignIn, code: str
    ) -> Identity:
        """Whom ``code`` stands for. ``secret``: what we prove ourselves with; None: with PKCE alone.

        Raises Unauthenticated (`problem.sign_in.refused`): the provider refuses the code, or what it vouches with is
        not right: signature, issuer, audience, nonce, times.
        """
        ...


class NoIdentityProvider:
    """Where the wiring has none."""

    async def address(self, provider: SignInProvider, begun: BegunSignIn) -> str:
        raise self._none()

    async def redeem(
        self, provider: SignInProvider, secret: str | None, begun: BegunSignIn, code: str
    ) -> Identity:
        raise self._none()

    def _none(self) -> Unavailable:
        return Unavailable("this server asks no provider", code="problem.sign_in.provider")
