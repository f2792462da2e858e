"""Every route there is. Each stands beside its handler: method, path, role, types."""

from virtha.api import (
    access,
    consoles,
    host_care,
    incidents,
    inventory,
    machines,
    notifications,
    notify_routing,
    power,
    provider_sign_in,
    readiness,
    records,
    roles,
    settings,
    snapshots,
    templates,
)
from virtha.api.route import Route

ROUTES: tuple[Route, ...] = (
    *records.ROUTES,
    *access.ROUTES,
    *provider_sign_in.ROUTES,
    *roles.ROUTES,
    *inventory.ROUTES,
    *host_care.ROUTES,
    *incidents.ROUTES,
    *machines.ROUTES,
    *consoles.ROUTES,
    *settings.ROUTES,
    *notifications.ROUTES,
    *notify_routing.ROUTES,
    *templates.ROUTES,
    *snapshots.ROUTES,
    *power.ROUTES,
    *readiness.ROUTES,
)
"""The whole API. Router, OpenAPI document and the test of who may do what all read this."""
