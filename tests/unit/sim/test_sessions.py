"""Real sessions on simulated bytes: who is connected when, and what an idle link costs."""

import pytest
from msgspec.structs import replace

from virtha.model.errors import InvalidInput
from virtha.model.host import HostState
from virtha.model.ids import Term
from virtha.scenario.language import parse
from virtha.scenario.reference import reference_markdown
from virtha.scenario.verbs import VERBS
from virtha.sim.checkers import Violation
from virtha.sim.play import Player
from virtha.wire.redial import BACKOFF_MAX_MS, BACKOFF_SHORT_MS, redial_delay_ms

STORY = "# s\nhosts h1 h2\nvm web on=h1 ha watchdog=i6300esb:reset\nstart web\nadvance 5s\n"


def played(extra: str = "") -> Player:
    player = Player()
    for step in parse(STORY + extra).steps:
        player.do(step)
    return player


def test_a_silent_link_is_noticed_by_both_ends_themselves() -> None:
    player = played("cut-net h1\nadvance 3s\n")
    host, server = player.world.hosts["h1"], player.world.server
    assert host.agent is not None
    assert player.world.gateway.agent_connected("h1"), "3 s are no silence yet"
    player.advance("3s")
    assert not player.world.gateway.agent_connected("h1")
    assert host.agent.link.welcome is None
    assert server.states["h1"] is HostState.UNREACHABLE
    assert server.states["h2"] is HostState.UP


def test_each_server_start_is_a_new_instance_and_a_later_term() -> None:
    player = played()
    before = player.world.hosts["h1"].agent
    assert before is not None
    first = (before.link.server_instance, before.desk.term_seen)
    for step in parse("# s\nstop-server\nadvance 1s\nstart-server\nadvance 3s\n").steps:
        player.do(step)
    second = (before.link.server_instance, before.desk.term_seen)
    assert first[0] != second[0]
    assert first[1] < second[1]


def test_an_agent_refuses_a_second_instance_beside_the_guardians() -> None:
    """M1: the agent's connection breaks; the guardian's session still lives with the old instance."""
    player = played()
    host = player.world.hosts["h1"]
    assert host.agent is not None
    assert host.guardian is not None
    old = host.guardian.link.server_instance
    for step in parse("# s\ncut-link server h1\nstop-server\nstart-server\n").steps:
        player.do(step)
    assert host.guardian.link.server_instance == old
    host.agent.link.kill()
    assert host.agent._guardian_instance() == old
    assert host.agent.link._live_instance() != player.world.gateway.instance


def test_older_settings_are_ignored_by_term_then_revision() -> None:
    """B3: a lower revision of a later term counts; a higher one of an earlier term does not."""
    player = played()
    agent, disk = player.world.hosts["h1"].agent, player.world.hosts["h1"].disk
    assert agent is not None
    assert disk.settings is not None
    present = disk.settings
    agent.on_settings(
        replace(
            present,
            term=Term(present.term - 1),
            revision=present.revision + 100,
            hold="stale",
        )
    )
    assert disk.settings == present
    agent.on_settings(replace(present, term=Term(present.term + 1), revision=0, hold="restored"))
    assert disk.settings is not None
    assert disk.settings.hold == "restored"


def test_a_lost_event_is_seen_by_the_checker() -> None:
    player = played("fire web\nadvance 3s\n")
    entry = next(each for each in player.world.server.history if each.host == "h1")
    player.world.server.history.remove(entry)
    with pytest.raises(Violation, match="history of h1: lost"):
        player.checkers.at_end()


def test_a_doubled_event_is_seen_by_the_checker() -> None:
    player = played()
    history = player.world.server.history
    history.append(next(each for each in history if each.code == "vm.agent.connected"))
    with pytest.raises(Violation, match="doubled"):
        player.checkers.at_end()


def test_an_idle_world_sends_one_beat_a_second_and_little_else() -> None:
    player = played("advance 10s\n")
    before = player.world.kernel.done
    player.advance("100s")
    per_host_and_second = (player.world.kernel.done - before) / 2 / 100
    assert per_host_and_second < 20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cut-link h1 h9", "nothing called 'h9' on the network"),
        ("cut-link h1 server after=ten", "'ten' is no number of bytes"),
        ("reset-link h1", "reset-link with 1 words"),
        ("restore-server", "there is no backup"),
        ("stop-server\nstart web", "the server is stopped"),
    ],
)
def test_what_can_not_be_done_is_named(line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        played(line + "\n")


def test_the_reference_names_every_verb() -> None:
    page = reference_markdown()
    assert all(f"| `{verb}" in page for verb in VERBS)


@pytest.mark.parametrize(
    ("failures", "outage_ms", "code", "delay_ms"),
    [
        (0, 0, None, 0),
        (1, 0, "wire.closed.lost", 200),
        (3, 1_000, "wire.closed.unreachable", 800),
        (9, 30_000, "wire.closed.unreachable", BACKOFF_SHORT_MS),
        (9, 61_000, "wire.closed.unreachable", BACKOFF_MAX_MS),
        (1, 0, "wire.closed.replaced", BACKOFF_MAX_MS),
    ],
)
def test_redialling_slows_down(
    failures: int, outage_ms: int, code: str | None, delay_ms: int
) -> None:
    mean = redial_delay_ms(failures, outage_ms=outage_ms, last_code=code, chance=0.5)
    assert mean == delay_ms
    least = redial_delay_ms(failures, outage_ms=outage_ms, last_code=code, chance=0)
    assert least == delay_ms / 2


AGENTS_LATER = (
    "# s\nengine\nhosts h1 h2\nadvance 5s\nbackup-server\nstop-server\nstart-server\nadvance 3s\n"
)


def test_a_restored_server_never_leads_under_a_number_that_a_host_has_of_another() -> None:
    """M1: counted from the backup, its first term has the number of the one before the restore."""
    player = Player()
    for step in parse(AGENTS_LATER).steps:
        player.do(step)
    known = player.world.server.term
    player.do(parse("# s\nrestore-server\n").steps[0])
    assert player.world.server.term == known
    player.advance("5s")
    failover = player.world.gateway.failover
    assert failover is not None and failover.leader.alive
    assert failover.leader.term == player.world.server.term > known


def test_a_guardian_alone_makes_a_restored_server_count_on() -> None:
    """M1: it would refuse the lower term, and a host whose agent is down would look like a dead one."""
    player = Player()
    for step in parse(AGENTS_LATER).steps:
        player.do(step)
    known = player.world.server.term
    for step in parse("# s\nstop-agent h1\nstop-agent h2\nrestore-server\nadvance 5s\n").steps:
        player.do(step)
    assert player.world.server.term > known
    assert player.world.gateway.guardian_connected("h1")
