"""What a leader's questions about a silent host become, and which of the answers count (F1, F2)."""

import asyncio
from pathlib import Path

import pytest
from led_world import ABLE, LedWorld, led_world
from msgspec.structs import replace

from virtha.engine.machine import Verdict
from virtha.model.evidence import Answer, ProbeAddress
from virtha.model.facts import HostReport
from virtha.model.ids import BootId
from virtha.server.witness_desk import DISK_GAP_MS, LATE_MS, LOOK_MS
from virtha.wire.witness_messages import (
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    WitnessAnswer,
)

pytestmark = pytest.mark.req("F1", "F2")
NETWORKS = ("management", "storage")


def addresses(number: int, *networks: str) -> tuple[ProbeAddress, ...]:
    return tuple(
        ProbeAddress(network=network, address=f"192.0.2.{number}{index}", port=8252)
        for index, network in enumerate(networks)
    )


async def h1_is_silent(world: LedWorld) -> None:
    """It ran web1; h2 can be asked about it on both networks, h3 on none."""
    for name in ("h1", "h2", "h3"):
        await world.join(name)
    await world.add_storage()
    for number, name in enumerate(("h1", "h2"), 1):
        able = replace(ABLE, probed_at=addresses(number, *NETWORKS))
        await world.hosts[name].tell(HostReport(capabilities=able))
    await world.add_vm()
    await world.settle()
    await world.run_vm("web1", "h1")
    await world.settle()
    world.hosts["h1"].vanish()
    await listen(world)


async def listen(world: LedWorld, duration_ms: int = 1_000) -> None:
    """One more round of questions, at least."""
    world.gateway.questions.clear()
    await world.pass_time(duration_ms, beating=("h2", "h3"))


def asked(world: LedWorld, kind: type[ProbeHost | LookAtDisks]) -> list[tuple[str, int]]:
    names = {host.id: name for name, host in world.hosts.items()}
    return [
        (names[one], order.question)
        for one, order in world.gateway.questions
        if type(order) is kind
    ]


def answer(world: LedWorld, name: str, said: WitnessAnswer) -> None:
    world.gateway.answer(world.hosts[name].id, said)


def silences(world: LedWorld) -> set[str]:
    return {order.silence for _, order in world.gateway.questions if isinstance(order, LookAtDisks)}


def codes(world: LedWorld) -> set[str]:
    return {one.code for one in world.engines.explain_host(world.hosts["h1"].id)}


async def look_and_say(world: LedWorld, changed: bool | None, rounds: int = 1) -> None:
    for _ in range(rounds):
        await listen(world)
        for name, question in asked(world, LookAtDisks):
            answer(world, name, DisksLooked(question=question, changed=changed, disks=1))
    await world.leader.turn()


def test_disks_that_change_hold_the_verdict_and_quiet_ones_let_it_come(tmp_path: Path) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            await h1_is_silent(world)
            reader, order = next(
                (one, order)
                for one, order in world.gateway.questions
                if isinstance(order, LookAtDisks)
            )
            assert reader in {world.hosts["h2"].id, world.hosts["h3"].id}
            disk = (await world.vm()).vm.disks[0]
            assert [(one.domain_id, one.path) for one in order.disks] == [
                (world.storage_domain_id, disk.path)
            ]
            await look_and_say(world, True, rounds=9)
            assert world.engines.verdict(world.hosts["h1"].id) == Verdict.SUSPECT
            assert "host.suspect.disks_change" in codes(world)
            assert not await world.events("fence.began")
            # Quiet is not dead: it ends the waiting, and proves nothing. Nothing starts.
            await look_and_say(world, False, rounds=5)
            assert world.engines.verdict(world.hosts["h1"].id) == Verdict.DEAD_UNPROVEN
            assert len(world.all_starts()) == 1

    asyncio.run(story())


def test_a_guardian_that_answers_its_neighbour_keeps_its_host_from_every_order(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            await h1_is_silent(world)
            h1 = world.hosts["h1"]
            assert {name for name, _ in asked(world, ProbeHost)} == {"h2"}, "h3 has no address"
            (order, *_) = [one for _, one in world.gateway.questions if isinstance(one, ProbeHost)]
            assert [(one.network, one.address, one.source) for one in order.targets] == [
                ("management", "192.0.2.10", "192.0.2.20"),
                ("storage", "192.0.2.11", "192.0.2.21"),
            ]
            for _ in range(8):
                await listen(world)
                for name, question in asked(world, ProbeHost):
                    for network in NETWORKS:
                        alive = network == "storage"
                        said = HostProbed(
                            question=question,
                            network=network,
                            answer=Answer.ALIVE if alive else Answer.SILENT,
                            boot=h1.boot if alive else None,
                        )
                        answer(world, name, said)
            await world.leader.turn()
            assert world.engines.verdict(h1.id) == Verdict.ISOLATED
            assert codes(world) >= {"host.isolated.seen"}
            assert not await world.events("fence.began")
            # What its disks looked like is compared in one silence only.
            before = silences(world)
            await h1.hello()
            h1.vanish()
            await listen(world, 3_000)
            assert len(before) == len(silences(world)) == len(before ^ silences(world)) / 2

    asyncio.run(story())


def test_no_answer_to_one_leader_is_taken_for_one_to_the_next(tmp_path: Path) -> None:
    """A look takes seconds, and is answered over whatever session its agent has by then."""

    async def story() -> None:
        async with led_world(tmp_path) as world:
            await h1_is_silent(world)
            former = {order.question for _, order in world.gateway.questions}
            await world.restart()
            for name in ("h2", "h3"):
                await world.hosts[name].hello()
            await world.settle()
            await listen(world, 60_000)
            asked = {order.question for _, order in world.gateway.questions}
            assert former and asked and not former & asked

    asyncio.run(story())


def test_a_look_that_was_asked_for_before_a_sign_says_nothing_of_the_silence_after_it(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            await h1_is_silent(world)
            await listen(world)
            (reader, look), *_ = asked(world, LookAtDisks)
            await world.hosts["h1"].hello()
            world.hosts["h1"].vanish()
            await listen(world)
            answer(world, reader, DisksLooked(question=look, changed=True, disks=1))
            await listen(world, 6_000)
            assert world.engines.verdict(world.hosts["h1"].id) == Verdict.DEAD_UNPROVEN
            assert "host.suspect.disks_change" not in codes(world)

    asyncio.run(story())


@pytest.mark.bad_input
def test_answers_of_others_late_ones_and_such_as_nobody_waits_for_say_nothing(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            await h1_is_silent(world)
            boot = world.hosts["h1"].boot

            def alive(question: int, network: str = "storage") -> HostProbed:
                return HostProbed(
                    question=question, network=network, answer=Answer.ALIVE, boot=boot
                )

            await listen(world)
            (_, probe), *_ = asked(world, ProbeHost)
            (reader, look), *_ = asked(world, LookAtDisks)
            other = "h3" if reader == "h2" else "h2"
            answer(world, "h3", alive(probe))
            answer(world, "h2", alive(probe, "none of ours"))
            answer(world, "h2", alive(10_000))
            answer(world, other, DisksLooked(question=look, changed=True))
            answer(world, reader, alive(look))
            answer(world, "h2", DisksLooked(question=probe, changed=True))
            await world.pass_time(DISK_GAP_MS + 2 * LOOK_MS + LATE_MS + 1_000, beating=("h2", "h3"))
            answer(world, "h2", alive(probe))
            answer(world, reader, DisksLooked(question=look, changed=True))
            await world.leader.turn()
            assert not codes(world) & {"host.isolated.seen", "host.suspect.disks_change"}
            answered = BootId("none but of a guardian's signature")
            (_, probe), *_ = asked(world, ProbeHost)
            silent = HostProbed(
                question=probe, network="storage", answer=Answer.SILENT, boot=answered
            )
            answer(world, "h2", silent)

    asyncio.run(story())
