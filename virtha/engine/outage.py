"""When an outage of a storage domain, in which leases were waived, is over: for those who were told of it."""

from virtha.engine.records import HostRecord
from virtha.engine.state import Cluster


def waits_no_more(cluster: Cluster, record: HostRecord) -> None:
    """For a domain on which its lease was waived: before the waivers, or the host itself, go."""
    cluster.outages_ending |= {waiver.domain_id for waiver in record.waived}


def tell_outages_over(cluster: Cluster) -> None:
    """Once for each of them, after the last of its hosts. One that has failed meanwhile still counts: that its storage works
    nobody has seen."""
    ending, cluster.outages_ending = cluster.outages_ending, set()
    waited_for = {
        waiver.domain_id for node in cluster.hosts.values() for waiver in node.record.waived
    }
    for domain_id in sorted(ending - waited_for):
        cluster.tell("storage.outage_over", domain=domain_id)
