"""Every route of the façade. Each stands beside its handler: method, path, role, the type of its body."""

from virtha.api.ovirt import (
    clusters,
    disks,
    events,
    fence_agents,
    hosts,
    jobs,
    networks,
    nics,
    parts,
    root,
    snapshots,
    storage,
    subscriptions,
    templates,
    users,
    vms,
    watchdogs,
)
from virtha.api.ovirt.route import Route

ROUTES: tuple[Route, ...] = (
    *root.ROUTES,
    *vms.ROUTES,
    *templates.ROUTES,
    *watchdogs.ROUTES,
    *disks.ROUTES,
    *nics.ROUTES,
    *snapshots.ROUTES,
    *parts.ROUTES,
    *clusters.ROUTES,
    *networks.ROUTES,
    *storage.ROUTES,
    *hosts.ROUTES,
    *fence_agents.ROUTES,
    *events.ROUTES,
    *jobs.ROUTES,
    *users.ROUTES,
    *subscriptions.ROUTES,
)
