"""What the gateway tells a process of a host that it does not take in."""

from virtha.model.errors import Unavailable, VirthaError


def overtaken() -> VirthaError:
    return VirthaError(
        "another boot of this host was heard after this connection was opened: connect again",
        code="wire.refused.overtaken",
        field="boot",
    )


def unavailable(message: str) -> VirthaError:
    return Unavailable(message, code="wire.refused.unavailable")


def revoked() -> VirthaError:
    return VirthaError(
        "this host's certificate is not accepted any more",
        code="wire.refused.revoked",
        fix="join the host again: virtha agent join",
    )
