"""Who may do what: permissions, roles as named sets of them, and grants of a role in one cluster or in all.

A permission is an area of the API and a level in it. Seeing is one permission of its own: whoever has any grant in a cluster sees all
of that cluster and nothing of others.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from virtha.model.ids import ClusterId, GrantId, Revision, RoleId, UserId
from virtha.model.user import Role
from virtha.model.value import Value


class Scope(StrEnum):
    """Of what an area's things are."""

    CLUSTER = "cluster"
    """Each belongs to one cluster: a grant there suffices."""
    INSTALLATION = "installation"
    """They belong to no cluster, or to all: only a grant for all clusters opens them, for looking too."""
    OWN = "own"
    """The caller's own, or the same for everybody: whoever is signed in."""


AREAS: Mapping[str, Scope] = {
    "capabilities": Scope.OWN,
    "clusters": Scope.CLUSTER,
    "codes": Scope.OWN,
    "consoles": Scope.CLUSTER,
    "deaths": Scope.CLUSTER,
    "deliveries": Scope.INSTALLATION,
    "events": Scope.CLUSTER,
    "hold": Scope.INSTALLATION,
    "hosts": Scope.CLUSTER,
    "incidents": Scope.CLUSTER,
    "inhibitions": Scope.INSTALLATION,
    "operations": Scope.CLUSTER,
    "power": Scope.OWN,
    "readiness": Scope.CLUSTER,
    "receivers": Scope.INSTALLATION,
    "roles": Scope.INSTALLATION,
    "sessions": Scope.OWN,
    "settings": Scope.INSTALLATION,
    "silences": Scope.INSTALLATION,
    "status": Scope.CLUSTER,
    "storage-domains": Scope.CLUSTER,
    "subscriptions": Scope.INSTALLATION,
    "templates": Scope.CLUSTER,
    "tokens": Scope.CLUSTER,
    "users": Scope.INSTALLATION,
    "vms": Scope.CLUSTER,
}
"""By the first word of a route's path, but for routes that name their own (``consoles``, ``deaths``)."""


class Permission(StrEnum):
    VIEW = "view"
    VMS = "vms.operate"
    """Create, change, start, stop, move and delete VMs, their devices and snapshots."""
    CONSOLES = "consoles.operate"
    """See a guest's screen and serial console, and type."""
    TEMPLATES = "templates.operate"
    HOSTS = "hosts.operate"
    """Maintenance, power, scanning for VMs and adopting them."""
    DEATHS = "deaths.operate"
    """Give one's word that a host is dead. If it is wrong, its VMs run twice."""
    OPERATIONS = "operations.operate"
    """Take operations back."""
    HOLD = "hold.operate"
    SILENCES = "silences.operate"
    CLUSTERS_SET_UP = "clusters.administer"
    """Clusters, their policies and what they say of power devices; to create one, in all clusters."""
    HOSTS_SET_UP = "hosts.administer"
    """Remove hosts, set up their power devices."""
    STORAGE_SET_UP = "storage-domains.administer"
    TOKENS = "tokens.administer"
    """Let hosts join."""
    RECEIVERS_SET_UP = "receivers.administer"
    SUBSCRIPTIONS_SET_UP = "subscriptions.administer"
    INHIBITIONS_SET_UP = "inhibitions.administer"
    DELIVERIES = "deliveries.administer"
    SETTINGS = "settings.administer"
    USERS = "users.administer"
    ROLES = "roles.administer"

    @property
    def area(self) -> str:
        return self.value.partition(".")[0]


LEVELS = {Role.OPERATOR: "operate", Role.ADMINISTRATOR: "administer"}
RESERVED_PERMISSIONS = frozenset({Permission.USERS, Permission.ROLES})
"""In no role that people make: who has one of them may give themselves all others, and is an administrator."""


def needed(area: str, role: Role) -> Permission:
    """What a route of that area needs which only ``role`` and those above it may use. Raises ValueError: there is none."""
    return Permission.VIEW if role is Role.VIEWER else Permission(f"{area}.{LEVELS[role]}")


def _fixed(role: Role) -> frozenset[Permission]:
    levels = {LEVELS[one] for one in LEVELS if role.may(one)}
    found = {one for one in Permission if one.value.partition(".")[2] in levels}
    return frozenset(found | ({Permission.VIEW} if role.may(Role.VIEWER) else set()))


FIXED: Mapping[Role, frozenset[Permission]] = {role: _fixed(role) for role in Role}
"""The fixed roles. A route of theirs needs no more than before there were others."""


class AccessRole(Value, frozen=True, kw_only=True):
    """A role that people made. ``permissions``: without ``view``, which each grant gives."""

    id: RoleId
    name: str
    description: str = ""
    permissions: tuple[Permission, ...] = ()
    revision: Revision = Revision(0)


class Grant(Value, frozen=True, kw_only=True):
    """``role``: the name of a fixed role or of one that people made. ``cluster_id`` None: in all clusters."""

    id: GrantId
    user_id: UserId
    role: str
    cluster_id: ClusterId | None = None


class Rights(Value, frozen=True, kw_only=True):
    """What somebody may: everywhere, and beyond that in some clusters."""

    everywhere: frozenset[Permission] = frozenset()
    within: Mapping[ClusterId, frozenset[Permission]] = {}

    @property
    def reach(self) -> frozenset[ClusterId] | None:
        """The clusters that they see; None: all, and what belongs to none."""
        return self.reach_for(Permission.VIEW)

    def reach_for(self, permission: Permission) -> frozenset[ClusterId] | None:
        """The clusters in which they may that; None: in all."""
        if permission in self.everywhere:
            return None
        return frozenset(one for one, found in self.within.items() if permission in found)

    def in_cluster(self, cluster_id: ClusterId) -> frozenset[Permission]:
        return self.everywhere | self.within.get(cluster_id, frozenset())

    def somewhere(self, permission: Permission) -> bool:
        """Whether there is a cluster where they may."""
        return permission in self.everywhere or any(
            permission in found for found in self.within.values()
        )

    def with_grant(
        self, permissions: Iterable[Permission], cluster_id: ClusterId | None
    ) -> "Rights":
        more = frozenset({Permission.VIEW, *permissions})
        if cluster_id is None:
            return Rights(everywhere=self.everywhere | more, within=self.within)
        inside = frozenset(one for one in more if is_of_clusters(one))
        within = {**self.within, cluster_id: self.within.get(cluster_id, frozenset()) | inside}
        return Rights(everywhere=self.everywhere, within=within)

    def narrowed(
        self, permissions: frozenset[Permission] | None, cluster_id: ClusterId | None
    ) -> "Rights":
        """What is left of them through a token that is for those permissions and that cluster; None: for all of them."""

        def left(found: frozenset[Permission]) -> frozenset[Permission]:
            return found if permissions is None else found & permissions

        if cluster_id is None:
            within = {one: left(found) for one, found in self.within.items()}
            return Rights(everywhere=left(self.everywhere), within=within)
        if Permission.VIEW not in self.in_cluster(cluster_id):
            return Rights()
        inside = frozenset(one for one in self.in_cluster(cluster_id) if is_of_clusters(one))
        return Rights(within={cluster_id: left(inside)})


def is_of_clusters(permission: Permission) -> bool:
    """Whether a grant in one cluster may hold it."""
    return permission is Permission.VIEW or AREAS[permission.area] is Scope.CLUSTER


_RIGHTS_OF = {role: Rights(everywhere=FIXED[role]) for role in Role}


def rights_of(role: Role) -> Rights:
    """Of one fixed role, in all clusters."""
    return _RIGHTS_OF[role]
