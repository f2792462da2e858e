"""One id type per kind of thing, so that a host's id can't be passed where a VM's is meant.

Ids are UUID text, made at the edge (the pure rooms never make one). A host also has a
``number`` that counts up from 1; it is what ``roundrobin`` sorts by (requirement L1).
"""

from typing import NewType

InstallationId = NewType("InstallationId", str)
ClusterId = NewType("ClusterId", str)
HostId = NewType("HostId", str)
VmId = NewType("VmId", str)
StorageDomainId = NewType("StorageDomainId", str)
DiskId = NewType("DiskId", str)
TemplateId = NewType("TemplateId", str)
SnapshotId = NewType("SnapshotId", str)
NicId = NewType("NicId", str)
OperationId = NewType("OperationId", str)
UserId = NewType("UserId", str)
TokenId = NewType("TokenId", str)
ReceiverId = NewType("ReceiverId", str)
SubscriptionId = NewType("SubscriptionId", str)
DeliveryId = NewType("DeliveryId", str)
SilenceId = NewType("SilenceId", str)
InhibitionId = NewType("InhibitionId", str)
GroupId = NewType("GroupId", str)
"""Of messages: made of the route's id and the revision of the group's first event."""
IncidentId = NewType("IncidentId", str)
"""Of a host's failure and boot: made of both, so whoever leads comes to the same one."""

BootId = NewType("BootId", str)
"""A host's boot: the kernel's boot id on real hosts, a lab host's own in the lab."""

Term = NewType("Term", int)
"""Leadership term of a cluster: 1 + the highest that the store or any agent has seen (M1)."""

Incarnation = NewType("Incarnation", int)
"""Counts the starts of one VM; each start has a higher one (G4). 0: never started."""

Revision = NewType("Revision", int)
"""The installation's counter, taken inside the writing transaction: commit order is revision order."""
