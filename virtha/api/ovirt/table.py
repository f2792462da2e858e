"""Every route of the façade. Each stands beside its handler: method, path, role, the type of its body."""

from virtha.api.ovirt import clusters, root, templates, vms, watchdogs
from virtha.api.ovirt.route import Route

ROUTES: tuple[Route, ...] = (
    *root.ROUTES,
    *vms.ROUTES,
    *templates.ROUTES,
    *watchdogs.ROUTES,
    *clusters.ROUTES,
)
