"""A storage domain that is not the same for all hosts is no place for starts, and somebody is told why."""

import engine_driver
import pytest
from engine_driver import Play, vm
from test_engine_snapshot import TwinnedEngine

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.events import SplitDomain, StartCommand, StorageCompared
from virtha.model.ids import HostId, StorageDomainId

DS1, OTHER = StorageDomainId("ds1"), StorageDomainId("other")


@pytest.mark.req("F2", "F9")
@pytest.mark.bad_input
def test_nothing_is_started_on_a_domain_of_which_two_hosts_see_two_different_things(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_driver, "Engine", TwinnedEngine)
    play = Play(3, vms=[vm("v1", features=frozenset({Feature(FeatureKind.STORAGE, DS1)}))])
    play.run("v1", "h1")
    play.advance(1_000)
    pairs = tuple(
        SplitDomain(domain_id=one, reader=HostId("h2"), writer=HostId("h3")) for one in (DS1, OTHER)
    )
    play.inbox.append(StorageCompared(not_shared=pairs))
    play.advance(1_000)
    assert play.told().count("storage.not_shared") == 2
    assert all("host.storage.not_shared" in play.why(host) for host in play.hosts)
    play.hosts["h1"].cut()
    play.until(lambda: "recovery.blocked.storage" in play.why_vm("v1"))
    (why,) = [
        one for one in play.engine.explain_vm(play.vms[0].vm_id) if one.code.endswith(".storage")
    ]
    assert why.fields["missing"] == "ds1 (h2 does not see there what h3 writes)"
    play.advance(10_000)
    assert play.sent(StartCommand) == []
    play.inbox.append(StorageCompared(not_shared=pairs[1:]))
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert play.told().count("storage.shared_again") == 1
    assert play.told().count("storage.not_shared") == 2
