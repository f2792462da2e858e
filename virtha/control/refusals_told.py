"""Of refusals of one kind from one place the first is told, and with a later one how many there were between."""

from collections import OrderedDict

from virtha.control.sign_in_brake import place_of
from virtha.model.time import Millis

TOLD_EVERY_MS = 60_000
KEPT_MAX = 1_000
"""Of more places at once the longest untold are forgotten, with their counts."""


class RefusalsTold:
    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], tuple[Millis, int]] = OrderedDict()
        """Code and place -> when it was told last, and how many have not been since."""

    def count(self, code: str, address: str, now: Millis) -> int | None:
        """How many went untold before this one, which is to be told now; None: it isn't."""
        key = (code, place_of(address))
        at, untold = self._told.get(key, (None, 0))
        if at is not None and now - at < TOLD_EVERY_MS:
            self._told[key] = (at, untold + 1)
            return None
        self._told[key] = (now, 0)
        self._told.move_to_end(key)
        while len(self._told) > KEPT_MAX:
            self._told.popitem(last=False)
        return untold
