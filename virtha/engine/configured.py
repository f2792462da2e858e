"""What operators configured, as far as decisions need it."""

from virtha.engine.affinity import AffinityGroup
from virtha.engine.capacity import Feature
from virtha.engine.dependencies import Dependency
from virtha.model.ids import HostId, VmId
from virtha.model.policy import PermissionGrade
from virtha.model.power import PowerLevel
from virtha.model.value import Value


class EngineHost(Value, frozen=True, kw_only=True):
    """A host as far as decisions need it. Sizes in bytes."""

    host_id: HostId
    name: str
    number: int
    memory_bytes: int = 0
    """As it last reported, overcommit included (A2)."""
    reserved_bytes: int = 0
    cpus: int = 0
    features: frozenset[Feature] = frozenset()
    """All but its storage domains, whose use it reports in each survey."""
    power: tuple[PowerLevel, ...] = ()
    """Levels of power devices: the second is tried when the first fails (F9)."""
    carries_server: bool = False
    """This very server runs on it: never fenced by us (J4)."""
    untold: bool = False
    """The server has no word of what it runs since the database was restored, or another was put in its place (M2). Counts
    of hosts only that the engine has no record of; of the others it knows itself what they told its leaders. Where the
    timeline isn't known, of all."""
    timeline: str = ""
    """Which database this is: another one after each restore. Empty: not known, so no record is believed to be of it."""


class EngineVm(Value, frozen=True, kw_only=True):
    """A VM as far as decisions need it."""

    vm_id: VmId
    name: str
    memory_bytes: int
    vcpus: int = 1
    ha: bool = False
    ignore: bool = False
    """The operator took it out of all automatic action."""
    wanted_up: bool = False
    priority: int = 0
    features: frozenset[Feature] = frozenset()
    """What its host must have, its storage domains among them."""
    groups: tuple[AffinityGroup, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    kill_on_io_error: bool = False
    """One that an I/O error keeps paused is ended, to be started elsewhere (S6)."""
    grade: PermissionGrade | None = None
    """The lower of this and the cluster's counts; None: the cluster's."""
