"""How far automatic action may go, per VM and per cluster."""

from enum import StrEnum


class PermissionGrade(StrEnum):
    """Each grade allows what the ones before it allow. Not compared by ``<``, which for words means
    the alphabet: ask ``permits``."""

    OBSERVE = "observe"
    """Watch and tell; touch nothing."""
    RESTART = "restart"
    """Start a VM again on the host where it ran."""
    MOVE = "move"
    """Start it on another host, when the old copy is proven dead without our doing: its host came back
    with a new boot, released it, or an operator confirmed that it is off."""
    FENCE = "fence"
    """Bring about that proof: switch off hosts."""

    def permits(self, needed: "PermissionGrade") -> bool:
        grades = list(PermissionGrade)
        return grades.index(needed) <= grades.index(self)

    def but_at_most(self, limit: "PermissionGrade | None") -> "PermissionGrade":
        """The lower of both; ``limit`` None: there is none."""
        return self if limit is None or limit.permits(self) else limit
