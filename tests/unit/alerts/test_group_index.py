"""Groups are found as by looking at each, the newest first."""

import random

from virtha.alerts.group_index import GroupIndex
from virtha.model.ids import GroupId, HostId, IncidentId, SubscriptionId
from virtha.model.routing import Group

ROUTES = [SubscriptionId(name) for name in "ab"]


def drawn(dice: random.Random, number: int) -> Group:
    host, incident = dice.choice((None, "h1", "h2")), dice.choice((None, "i1", "i2"))
    return Group(
        id=GroupId(str(number)),
        subscription_id=dice.choice(ROUTES),
        key=dice.choice(("host:h1", "host:h2", "vm:v")),
        host_id=HostId(host) if host else None,
        incident_id=IncidentId(incident) if incident else None,
    )


def test_it_finds_what_looking_at_each_finds() -> None:
    """Groups come, change what they are about, and go."""
    dice = random.Random(10)
    for _ in range(20):
        index, groups = GroupIndex(), dict[GroupId, Group]()
        for number in range(60):
            before = groups.get(GroupId(str(dice.randrange(60))))
            if before is not None and dice.random() < 0.4:
                index.change(before, None)
                del groups[before.id]
                continue
            after = drawn(dice, number)
            if before is not None:
                after = Group(**{**_fields(after), "id": before.id})
                after = Group(**{**_fields(after), "subscription_id": before.subscription_id})
            index.change(before, after)
            groups[after.id] = after
            _check(index, [*groups.values()][::-1])


def _fields(group: Group) -> dict[str, object]:
    return {name: getattr(group, name) for name in group.__struct_fields__}


def _check(index: GroupIndex, newest_first: list[Group]) -> None:
    for of in ROUTES:
        mine = [one for one in newest_first if one.subscription_id == of]
        for key in ("host:h1", "vm:v", "none"):
            assert [*index.by_key(of, key)] == [one.id for one in mine if one.key == key]
            for host in (None, "h1", "h2"):
                there = [one.id for one in mine if one.key == key or (host and one.host_id == host)]
                assert [*index.by_host_or_key(of, host, key)] == there
        incident = IncidentId("i1")
        there = [one.id for one in mine if one.incident_id == incident]
        assert [*index.by_incident(of, incident)] == there
