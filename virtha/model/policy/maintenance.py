"""Emptying a host on purpose."""

from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, count, duration


class MaintenancePolicy(Section, frozen=True, kw_only=True):
    """How fast a host is drained by live migration."""

    NAME: ClassVar[str] = "maintenance"

    migrations_per_host: Annotated[
        int,
        count(
            1,
            32,
            "Live migrations in which one host takes part at the same time, as source or target.",
            source="oVirt's default; more share one network card and each takes longer",
        ),
    ] = 2
    migration_deadline_ms: Annotated[
        int,
        duration(
            10_000,
            86_400_000,
            "A migration that has not ended by then is cancelled; the VM runs on where it was.",
            source="64 GiB over 1 Gbit/s take about nine minutes",
        ),
    ] = 600_000
