"""When something was told, by the events' own times. All machines of a lab, and the test, share one clock."""

from virtha.lab.api import Json
from virtha.model.time import parse_utc


def seconds_after(began_s: float, event: Json) -> float:
    """``began_s``: ``time.time()`` before what the event tells of."""
    return parse_utc(str(event["at"]), field="at") / 1_000 - began_s
