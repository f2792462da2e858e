"""What messages of groups say, in mails, traps and webhooks."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.alerts.mail_text import mail_text
from virtha.alerts.notice import kind_of
from virtha.alerts.traps import trap
from virtha.alerts.webhook_body import webhook_body
from virtha.model.codes import REGISTRY
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, GroupId, HostId, IncidentId, Revision, VmId
from virtha.model.notification import MailSettings, Message, MessageGroup, VmLine
from virtha.model.routing import GroupNote
from virtha.model.time import UtcMillis

SETTINGS = MailSettings(host="mail.test", sender="virtha@example.org")


def event(code: str, number: int, message: str) -> Event:
    return Event(
        revision=Revision(number),
        code=code,
        severity=REGISTRY[code].severity,
        message=message,
        host_id=HostId("h1"),
        vm_id=VmId(f"v{number}") if code.startswith("vm.") else None,
        at=UtcMillis(number * 1_000),
    )


NOTE = GroupNote(
    group_id=GroupId("g1"),
    key="incident:i1",
    kind="problem",
    reason="notify.told.first",
    revisions=(Revision(1), Revision(2), Revision(3)),
    again={"2": 3},
    counted=4,
    open=2,
    unfollowed=7,
    host_id=HostId("h1"),
    incident_id=IncidentId("i1"),
)
GROUP = MessageGroup(
    note=NOTE,
    others=(
        event("host.suspected", 1, "node-1 fell silent"),
        event("vm.agent.lost", 3, "no agent"),
    ),
    more=4,
    cause="node-1",
    vms=(
        VmLine(vm="web1", state="runs", host="node-2"),
        VmLine(vm="db1", state="down", why="no room"),
    ),
    vms_left_out=1,
)


def message(group: MessageGroup = GROUP, **changes: object) -> Message:
    told = Message(
        delivery_id=DeliveryId("d1"),
        event=event("host.judged_dead", 2, "node-1 is judged dead"),
        installation_id="i",
        installation="Lab",
        host="node-1",
        group=group,
    )
    return msgspec.structs.replace(told, **changes)


@pytest.mark.req("W7", "F4", "X4")
def test_a_mail_names_the_cause_the_vms_and_the_rest() -> None:
    said = mail_text(message(), SETTINGS)
    assert said.subject == "[Lab] ERROR: node-1 is judged dead (and 6 more events, 3 VMs)"
    for line in (
        "Failed host:         node-1",
        "Times again:         3",
        "Sent because:        the first message of its group",
        "Problems that go on: 2",
        "Not followed:        7 more, they were too many: 'virtha status' has what still goes on",
        "  web1: runs on node-2",
        "  db1: down: no room",
        "  and 1 more: virtha incident show i1",
        "  1970-01-01T00:00:01.000Z  warning: node-1 fell silent",
        "  and 4 more: virtha event list",
    ):
        assert line in said.text.splitlines(), said.text
    assert "<li>web1: runs on node-2</li>" in (said.html or "")
    headers = dict(said.headers)
    assert headers["References"] == "<group.g1@i>" and headers["X-Virtha-Kind"] == "problem"


def test_all_is_well_and_it_still_goes_on() -> None:
    well = msgspec.structs.replace(NOTE, kind="solved", reason="notify.told.well", open=0)
    group = msgspec.structs.replace(GROUP, note=well)
    said = mail_text(message(group), SETTINGS)
    assert (
        said.subject.startswith("[Lab] ERROR: Solved: node-1")
        and kind_of(message(group)) == "solved"
    )
    still = msgspec.structs.replace(NOTE, reason="notify.told.repeat")
    group = msgspec.structs.replace(GROUP, note=still)
    assert mail_text(message(group), SETTINGS).subject.startswith("[Lab] ERROR: Still: node-1")


def test_a_trap_has_the_objects_that_it_always_had() -> None:
    found = trap(message())
    assert len(found.varbinds) == 13 and found.oid[-1] == 1
    assert b"(and 6 more events, 3 VMs)" in bytes(found.varbinds[5].value)  # type: ignore[arg-type]  # an SNMP type that turns into bytes
    well = msgspec.structs.replace(NOTE, kind="solved", reason="notify.told.well")
    assert trap(message(msgspec.structs.replace(GROUP, note=well))).oid[-1] == 2


def test_a_webhook_has_all_of_it() -> None:
    body = json.loads(webhook_body(message()))
    assert body["schema"] == "virtha.event/1" and body["event"]["number"] == 2
    group = body["group"]
    assert [one["code"] for one in group["others"]] == ["host.suspected", "vm.agent.lost"]
    assert group["cause"] == {"id": "h1", "name": "node-1"} and group["more"] == 4
    assert group["vms"][1] == {"vm": "db1", "state": "down", "host": None, "why": "no room"}
    assert (group["reason"], group["open"], group["incident_id"]) == ("notify.told.first", 2, "i1")


@given(st.text(st.characters(exclude_categories=[]), max_size=100))
def test_no_name_breaks_a_line(text: str) -> None:
    group = msgspec.structs.replace(
        GROUP,
        cause=text,
        vms=(VmLine(vm=text, state="down", host=text, why=text),),
        others=(event("host.suspected", 1, text),),
    )
    said = mail_text(message(group), SETTINGS)
    assert len(said.subject.splitlines()) == 1
    (line,) = [one for one in said.text.split("\n") if ": down" in one]
    assert line.splitlines() == [line]
    said.text.encode()


def test_the_guide_names_every_pair() -> None:
    """Whoever writes a rule looks there for problems that have an end."""
    from virtha.model.codes import SOLVES

    guide = Path(__file__).parents[3] / "docs" / "reference" / "codes.md"
    page = guide.read_text()
    for end, problems in SOLVES.items():
        assert f"| `{end}` | {', '.join(f'`{one}`' for one in problems)} |" in page
