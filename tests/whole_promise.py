"""What a slot says of a host whose expired lease is a proof (P2)."""

from virtha.model.policy import LeasePolicy
from virtha.model.slot import Declaration


def whole_promise(policy: LeasePolicy) -> Declaration:
    return Declaration(
        armed=True,
        no_way_out=True,
        fed_by_renewer=True,
        direct_io=True,
        watchdog_ms=policy.watchdog_ms,
        self_fence_after_ms=policy.self_fence_after_ms,
        kill_ms=policy.kill_ms,
    )
