"""Messages to be told, and settings to tell them by."""

import msgspec

from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import ClusterId, DeliveryId, HostId, Revision, VmId
from virtha.model.notification import Message
from virtha.model.time import UtcMillis

INSTALLATION_ID = "2d3f8b1c-0000-4000-8000-00000000cafe"
AT = UtcMillis(1_769_860_800_250)  # 2026-01-31T12:00:00.250Z
EVENT = Event(
    revision=Revision(4711),
    code="vm.crashed",
    severity=Severity.ERROR,
    message="QEMU of wéb-№1 died: signal 9",
    fields={"vm": "wéb-№1", "cause": "signal 9"},
    cluster_id=ClusterId("c1"),
    host_id=HostId("h1"),
    vm_id=VmId("v1"),
    at=AT,
)


def message(
    number: int = 1, *, address: str | None = "ops@example.org", **changes: object
) -> Message:
    told = Message(
        delivery_id=DeliveryId(f"d{number}"),
        address=address,
        event=EVENT,
        installation_id=INSTALLATION_ID,
        installation="Lab Zürich",
        cluster="main",
        host="node-1",
        vm="wéb-№1",
    )
    return msgspec.structs.replace(told, **changes)
