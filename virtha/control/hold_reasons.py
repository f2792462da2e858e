"""What the engine says of a hold, as its reader may know it: that there is one concerns everybody, why is of the whole installation."""

import msgspec

from virtha.model.vm import Reason
from virtha.store.reach import HOLD_REASON, reach_now

OF_HOLD = frozenset({"fence.blocked.hold", "recovery.blocked.hold"})
"""Their field `why` is the hold's reason."""


def as_seen(reasons: tuple[Reason, ...]) -> tuple[Reason, ...]:
    """The engine's word, which comes from memory: no query's filter has been over it."""
    if reach_now() is None:
        return reasons
    return tuple(
        msgspec.structs.replace(one, fields={**one.fields, "why": HOLD_REASON})
        if one.code in OF_HOLD
        else one
        for one in reasons
    )
