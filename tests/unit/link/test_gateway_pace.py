"""A policy that asks for other beats reaches the sessions that stand, over real connections."""

import msgspec
import pytest
from link_rig import H1, HostRig, Pki, beat, connected, run, server, settings, until

from virtha.model.orders import HostSettings
from virtha.model.policy import Policy
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.wire.messages import Pace, PeerRole


def at(revision: int, policy: Policy) -> HostSettings:
    return msgspec.structs.replace(settings(revision), policy=policy)


async def paces_of(host: HostRig, number: int) -> list[tuple[int, int]]:
    """All that came before the answer to a beat that is sent now, the ``number``-th."""
    assert host.link.send_beat(beat(number))
    await until(lambda: number in host.events.beats_acknowledged, "the answer")
    return [(pace.beat_interval_ms, pace.silence_ms) for pace in host.events.paces]


@pytest.mark.req("X3")
def test_guardians_hear_of_quicker_beats_in_their_session(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki, policy=PROFILES[Profile.CONSERVATIVE]) as rig:
            credentials = pki.host()
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            agent = await connected(rig, PeerRole.AGENT, credentials=credentials)
            rig.gateway.configure(H1, at(5, PROFILES[Profile.FAST]))
            assert await paces_of(guardian, 1) == [(500, 3_000)]
            assert not agent.events.paces
            assert not guardian.events.ended and not agent.events.ended

    run(story())


@pytest.mark.req("X3")
def test_a_guardian_whose_agent_is_away_is_told_too(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki, policy=PROFILES[Profile.CONSERVATIVE]) as rig:
            guardian = await connected(rig, PeerRole.GUARDIAN)
            assert rig.gateway.has_session(H1) and not rig.gateway.agent_connected(H1)
            rig.gateway.configure(H1, at(5, PROFILES[Profile.BALANCED]))
            assert await paces_of(guardian, 1) == [(1_000, 5_000)]

    run(story())


def test_an_older_policy_that_comes_late_changes_nothing(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki, policy=PROFILES[Profile.CONSERVATIVE]) as rig:
            guardian = await connected(rig, PeerRole.GUARDIAN)
            rig.gateway.configure(H1, at(5, PROFILES[Profile.FAST]))
            rig.gateway.configure(H1, at(4, PROFILES[Profile.CONSERVATIVE]))
            rig.gateway.configure(H1, at(6, PROFILES[Profile.BALANCED]))
            assert await paces_of(guardian, 1) == [(500, 3_000), (1_000, 5_000)]

    run(story())


def test_a_hello_that_was_read_before_the_policy_changed_does_not_bring_the_former_one_back(
    pki: Pki,
) -> None:
    """The agent's hello is being answered, from a look at the database of before, as the policy changes."""

    async def story() -> None:
        async with server(pki, policy=PROFILES[Profile.CONSERVATIVE]) as rig:
            credentials = pki.host()
            guardian = await connected(rig, PeerRole.GUARDIAN, credentials=credentials)
            rig.control.hello_gate.clear()
            agent = rig.host(PeerRole.AGENT, credentials=credentials)
            await until(lambda: rig.control.hellos, "the hello is read")
            rig.gateway.configure(H1, at(5, PROFILES[Profile.FAST]))
            rig.control.hello_gate.set()
            await until(lambda: agent.link.connected, "the welcome")
            assert await paces_of(guardian, 1) == [(500, 3_000)]
            (welcome,) = agent.events.welcomes
            assert Pace(
                beat_interval_ms=welcome.beat_interval_ms, silence_ms=welcome.silence_ms
            ) == Pace(beat_interval_ms=500, silence_ms=3_000)

    run(story())
