"""What a device says of its host after it took an *off*: towards the two readings that prove it (P1), or why there were none."""

from msgspec.structs import replace

from virtha.engine.events import PowerRead
from virtha.engine.records import FeedProgress, Fence, FenceStep
from virtha.engine.state import Cluster, HostNode
from virtha.model.evidence import IdentityMatch, PowerState

STILL_ON = "power.still_on"
UNREAD = "power.unread"
OFF_ONCE = "power.off_once"


def why_not_off(fence: Fence) -> tuple[str, str]:
    """Once the time for it is over: a code, and where nobody could read, the code of why (empty: none was told). A host that
    stayed on is one thing; one of which nobody can tell may well be off."""
    left = [feed for feed in fence.feeds if not feed.confirmed]
    if any(feed.said_on for feed in left):
        return STILL_ON, ""
    if all(feed.off_since_ms is not None for feed in left):
        return OFF_ONCE, ""
    return UNREAD, next((feed.unread for feed in left if feed.unread), "")


def fold_reading(cluster: Cluster, node: HostNode, fence: Fence, event: PowerRead) -> None:
    if fence.order_id != event.order_id or fence.step is not FenceStep.READING:
        return  # asked before our order was accepted
    gap = cluster.policy.fencing.read_back_gap_ms
    feeds: list[FeedProgress] = []
    for feed in fence.feeds:
        if feed.device != event.device:
            feeds.append(feed)
        elif event.state is not PowerState.OFF or event.identity is IdentityMatch.MISMATCH:
            feeds.append(_not_off(feed, event))
        elif feed.off_since_ms is None:
            off_ms = int(cluster.now)
            feeds.append(replace(feed, off_since_ms=off_ms, said_on=False, unread=""))
        elif cluster.now - feed.off_since_ms >= gap:
            feeds.append(replace(feed, confirmed=True))
        else:
            feeds.append(feed)
    node.set_incident(fence=replace(fence, feeds=tuple(feeds)))


def _not_off(feed: FeedProgress, event: PowerRead) -> FeedProgress:
    """*On* right after the order may be from before it took effect: what counts in the end is the last reading."""
    said_on = event.state is PowerState.ON
    unread = "" if said_on else event.error or ""
    return replace(feed, off_since_ms=None, confirmed=False, said_on=said_on, unread=unread)
