"""When most hosts lose a storage domain their leases are waived; the waiver stands until the host keeps its lease again."""

import engine_driver
import pytest
from engine_driver import Play, vm
from test_engine_snapshot import TwinnedEngine

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.events import (
    EndWaiver,
    GiveWaiver,
    HostRemoved,
    PolicyChanged,
    SessionChanged,
    WaiverOver,
)
from virtha.engine.records import OrderId, Waiver
from virtha.engine.waiver import WAIT_SHARE
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.policy import LeasePolicy, Policy, RecoveryPolicy
from virtha.model.policy.permission import PermissionGrade

pytestmark = pytest.mark.req("F1", "X3")

DS1 = StorageDomainId("ds1")
WAIT_MS = LeasePolicy().self_fence_after_ms // WAIT_SHARE


@pytest.fixture(autouse=True)
def twinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine here is compared with one made from its snapshot, step by step."""
    monkeypatch.setattr(engine_driver, "Engine", TwinnedEngine)


def playing(hosts: int = 3, *, policy: Policy | None = None) -> Play:
    """v1 on h1, v2 on h2, with disks on ds1."""
    disks = frozenset({Feature(FeatureKind.STORAGE, DS1)})
    play = Play(hosts, policy=policy, vms=[vm("v1", features=disks), vm("v2", features=disks)])
    play.run("v1", "h1")
    play.run("v2", "h2")
    play.advance(1_000)
    return play


def loses(play: Play, *hosts: str, back: bool = False) -> None:
    for name in hosts:
        play.hosts[name].storage = back
        play.survey(play.hosts[name])


def waived(play: Play) -> dict[str, tuple[Waiver, ...]]:
    return {name: play.host_record(name).waived for name in play.hosts}


def given(play: Play) -> list[str]:
    return [command.host_id for command in play.sent(GiveWaiver)]


def says_over(
    play: Play, host: str, boot: BootId | None = None, waiver_id: OrderId | None = None
) -> None:
    played = play.hosts[host]
    waiver_id = waiver_id or play.host_record(host).waived[0].waiver_id
    play.inbox.append(
        WaiverOver(waiver_id=waiver_id, host_id=played.id, boot=boot or played.boot, domain_id=DS1)
    )


def in_an_outage(hosts: int = 3) -> Play:
    play = playing(hosts)
    loses(play, *play.hosts)
    play.advance(WAIT_MS + 1_000)
    return play


def test_an_outage_of_all_is_waived_for_those_with_something_to_lose():
    play = playing()
    loses(play, "h1", "h2", "h3")
    play.advance(WAIT_MS - 1_000)
    assert given(play) == []
    play.advance(2_000)
    assert given(play) == ["h1", "h2"]
    (waiver,) = waived(play)["h1"]
    assert (waiver.domain_id, waiver.boot, waiver.ending) == (DS1, play.hosts["h1"].boot, False)
    assert waived(play)["h3"] == ()
    assert play.told().count("storage.outage") == 1


def test_a_short_stall_is_nobodys_business():
    play = playing()
    loses(play, "h1", "h2", "h3")
    play.advance(WAIT_MS - 1_000)
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(60_000)
    assert play.sent(GiveWaiver) == play.sent(EndWaiver) == []
    assert "storage.outage" not in play.told()


@pytest.mark.parametrize(
    ("hosts", "lost", "given_to"),
    [
        (3, ("h1",), []),
        (4, ("h1", "h2"), []),
        (2, ("h1",), []),
        (3, ("h1", "h2"), ["h1", "h2"]),
        (2, ("h1", "h2"), ["h1", "h2"]),
    ],
)
def test_who_is_alone_with_its_loss_fences_itself(
    hosts: int, lost: tuple[str, ...], given_to: list[str]
):
    play = playing(hosts)
    loses(play, *lost)
    play.advance(10 * WAIT_MS)
    assert given(play) == given_to


@pytest.mark.parametrize(
    "policy",
    [
        Policy(lease=LeasePolicy(enabled=False)),
        Policy(recovery=RecoveryPolicy(grade=PermissionGrade.RESTART)),
    ],
)
def test_where_no_host_kills_for_a_lease_there_is_nothing_to_waive(policy: Policy):
    """Nor to wake up for, until the policy has leases kept: then the outage is as old as it is."""
    play = playing(policy=policy)
    loses(play, "h1", "h2", "h3")
    play.advance(10 * WAIT_MS)
    assert given(play) == []
    wake_at = play.tick().wake_at
    assert wake_at is not None and wake_at > play.now + 1
    play.inbox.append(PolicyChanged(policy=Policy()))
    play.tick()
    assert given(play) == ["h1", "h2"]


def test_it_stands_until_the_host_says_that_it_keeps_its_lease():
    play = in_an_outage()
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(60_000)
    assert [command.host_id for command in play.sent(EndWaiver)] == ["h1", "h2"]
    assert [waiver.ending for waiver in waived(play)["h1"]] == [True]
    says_over(play, "h1", BootId("another boot"))
    play.advance(1_000)
    assert len(waived(play)["h1"]) == 1
    says_over(play, "h1")
    play.advance(1_000)
    assert (waived(play)["h1"], len(waived(play)["h2"])) == ((), 1)
    assert play.told().count("storage.lease_again") == 1


OVER = "storage.outage_over"


@pytest.mark.req("W7")
def test_an_outage_is_over_with_the_last_of_its_hosts():
    play = in_an_outage()
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(1_000)
    says_over(play, "h1")
    play.advance(1_000)
    assert OVER not in play.told()
    says_over(play, "h2")
    play.advance(1_000)
    assert play.told().count(OVER) == 1


@pytest.mark.req("W7")
def test_hosts_that_boot_or_are_removed_end_an_outage_too():
    play = in_an_outage()
    play.hosts["h1"].cut()
    play.advance(1_000)
    play.hosts["h1"].boot_again()
    play.advance(5_000)
    play.survey(play.hosts["h1"])
    play.advance(1_000)
    assert (waived(play)["h1"], play.told().count(OVER)) == ((), 0)
    play.inbox.append(HostRemoved(host_id=play.hosts["h2"].id))
    play.advance(1_000)
    assert play.told().count(OVER) == 1


@pytest.mark.req("W7")
def test_a_host_that_failed_meanwhile_keeps_an_outage_open():
    play = in_an_outage()
    loses(play, "h1", "h3", back=True)
    play.hosts["h2"].cut()
    play.advance(60_000)
    says_over(play, "h1")
    play.advance(1_000)
    assert "host.judged_dead" in play.told()
    assert OVER not in play.told()


def test_a_host_that_says_so_unasked_is_not_believed():
    play = in_an_outage()
    before = waived(play)["h1"]
    says_over(play, "h1")
    play.advance(1_000)
    assert waived(play)["h1"] == before


def test_a_late_word_about_the_waiver_before_ends_none():
    """It would leave a host without a promise, whose slot of before still says one, to a proof."""
    play = in_an_outage()
    first = waived(play)["h1"][0].waiver_id
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(1_000)
    loses(play, "h1", "h2", "h3")
    play.advance(WAIT_MS + 1_000)
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(1_000)
    says_over(play, "h1", waiver_id=first)
    play.advance(1_000)
    assert [waiver.ending for waiver in waived(play)["h1"]] == [True]


def test_the_next_outage_takes_an_ending_waiver_back():
    play = in_an_outage()
    loses(play, "h1", "h2", "h3", back=True)
    play.advance(1_000)
    loses(play, "h1", "h2", "h3")
    play.advance(WAIT_MS + 1_000)
    assert [waiver.ending for waiver in waived(play)["h1"]] == [False]
    assert given(play) == ["h1", "h2"] * 2


@pytest.mark.parametrize("ending", [False, True])
def test_a_new_session_and_a_new_leader_say_it_again(ending: bool):
    play = in_an_outage()
    kind: type[GiveWaiver | EndWaiver] = GiveWaiver
    if ending:
        loses(play, "h1", "h2", "h3", back=True)
        play.advance(1_000)
        kind = EndWaiver
    before = len(play.sent(kind))
    host = play.hosts["h1"]
    for up in (False, True):
        play.inbox.append(
            SessionChanged(host_id=host.id, process=ProcessKind.GUARDIAN, boot=host.boot, up=up)
        )
    play.advance(1_000)
    assert [command.host_id for command in play.sent(kind)][before:] == ["h1"]
    play.new_leader()
    play.advance(2_000)
    assert {command.host_id for command in play.sent(kind)[before + 1 :]} == {"h1", "h2"}
    assert [waiver.ending for waiver in waived(play)["h1"]] == [ending]


def test_a_new_boot_promises_anew():
    play = in_an_outage()
    play.hosts["h1"].cut()
    play.advance(2_000)
    play.hosts["h1"].boot_again()
    play.advance(30_000)
    loses(play, "h1")
    play.advance(1_000)
    assert waived(play)["h1"] == ()


def test_the_leader_that_begins_in_an_outage_waives_too():
    """It has never heard that they saw the storage; they hold VMs that need it."""
    play = playing()
    play.new_leader()
    loses(play, "h1", "h2", "h3")
    play.advance(WAIT_MS + 5_000)
    assert set(given(play)) == {"h1", "h2"}
