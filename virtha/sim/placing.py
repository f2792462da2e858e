"""Where an operator wants a VM, and when."""

from virtha.engine.affinity import AffinityGroup
from virtha.engine.dependencies import Dependency
from virtha.model.value import Value


class Placing(Value, frozen=True, kw_only=True):
    """What the operator wants of a VM's place, and of its turn."""

    priority: int = 0
    groups: tuple[AffinityGroup, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
