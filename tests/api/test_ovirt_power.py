"""A host's power devices as oVirt's fence agents: what a change leaves as it was, and which of them is believed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_ovirt_requests import send
from test_power_story import command, host_up

pytestmark = pytest.mark.req("F5", "F6")
Play = Callable[..., Any]
World = Any


async def agents_of(world: World) -> str:
    host = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]
    return f"/hosts/{host['id']}/fenceagents"


async def settings_of(world: World, name: str) -> tuple[dict[str, Any], int]:
    power = (await world.ok("GET", f"/v1/hosts/h1/power/{name}"))["power"]
    return {key: text for key, text in power["settings"].items() if text is not None}, power[
        "revision"
    ]


async def change(world: World, path: str, body: str) -> Any:
    answer = await send(world, "PUT", path, f"<agent>{body}</agent>")
    assert answer.status_code == 200, answer.text
    return reader.Reader.read(answer.text)


@pytest.mark.parametrize("kind", ["ipmilan", "ilo4", "drac7", "idrac"])
def test_an_ipmi_device_keeps_its_settings_under_each_of_ovirts_names(
    play: Play, kind: str
) -> None:
    """Ansible says the type at each run: it would have begun anew each time, with another cipher."""

    async def story(world: World) -> None:
        await host_up(world)
        agents = await agents_of(world)
        new = f"""<agent><address>10.0.0.1</address><order>1</order><type>{kind}</type><username>u</username>
            <password>p</password><options><option><name>cipher</name><value>17</value></option></options></agent>"""
        made = await send(world, "POST", agents, new)
        assert made.status_code == 201, made.text
        node = reader.Reader.read(made.text)
        assert node.type == kind
        await world.ok(
            "PUT",
            f"/v1/hosts/h1/power/{kind}",
            {
                "settings": {
                    "driver": "ipmi",
                    "address": "10.0.0.1",
                    "user": "u",
                    "cipher": 17,
                    "privilege": "administrator",
                    "asked_from": "agents",
                }
            },
        )
        before, revision = await settings_of(world, kind)
        path = f"{agents}/{node.id}"
        read = (await send(world, "GET", path)).text
        await change(world, path, re.search(r"<agent [^>]*>(.*)</agent>", read)[1])
        assert await settings_of(world, kind) == (
            before,
            revision,
        )  # its test is one of these settings
        for other in ("ipmilan", "ilo5", kind):
            changed = await change(world, path, f"<type>{other}</type><order>2</order>")
            assert (changed.type, changed.order) == (kind, 2)
            assert (await settings_of(world, kind))[0] == {**before, "level": 2}
        await change(world, path, "<type>apc</type>")
        assert (await settings_of(world, kind))[0]["agent"] == "fence_apc"
        assert "cipher" not in (await settings_of(world, kind))[0]

    play(story)


def test_a_redfish_device_keeps_the_check_of_its_certificate(play: Play) -> None:
    async def story(world: World) -> None:
        await host_up(world)
        settings = {"driver": "redfish", "address": "bmc", "user": "u", "certificate": "authority"}
        body = {"settings": settings, "secrets": {"password": "p"}}
        await world.ok("PUT", "/v1/hosts/h1/power/bmc", body)
        agents = await agents_of(world)
        path = f"{agents}/{reader.Reader.read((await send(world, 'GET', agents)).text)[0].id}"
        option = "<options><option><name>{}</name><value>{}</value></option></options>"
        for said, check in (
            ("<options/>", "authority"),
            (option.format("plug", "1"), "authority"),
            (option.format("ssl_insecure", "1"), "none"),
            ("<username>v</username>", "none"),
            ("<options/>", "full"),
        ):
            await change(world, path, said)
            assert (await settings_of(world, "bmc"))[0]["certificate"] == check, said

    play(story)


def test_what_its_cluster_says_stays_the_clusters(play: Play) -> None:
    async def story(world: World) -> None:
        await host_up(world)
        whole = {"driver": "fence-agent", "agent": "fence_apc", "user": "u", "level": 2}
        body = {"settings": whole, "secrets": {"password": "p"}}
        await world.ok("PUT", "/v1/clusters/default/power/pdu", body)
        own = {"settings": {"address": "10.0.0.2", "plug": "7"}}
        await world.ok("PUT", "/v1/hosts/h1/power/pdu", own)
        before = await settings_of(world, "pdu")
        agents = await agents_of(world)
        read = (await send(world, "GET", agents)).text
        (node,) = reader.Reader.read(read)
        assert (node.type, node.username, node.order) == ("apc", "u", 2)
        await change(world, f"{agents}/{node.id}", re.search(r"<agent [^>]*>(.*)</agent>", read)[1])
        assert await settings_of(world, "pdu") == before

    play(story)


def test_the_second_level_is_asked_when_the_first_does_not_say(play: Play, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await host_up(world)
        fence = (await agents_of(world)).removesuffix("/fenceagents") + "/fence"

        async def device(name: str, level: int, says: str, **more: Any) -> None:
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\necho asked >> {path}.asked\n{says}\n")
            path.chmod(0o755)
            settings = command(str(path), level=level, address=f"bmc-{name}", **more)
            secrets = {"password": "p"}
            body = {"settings": settings, "secrets": secrets}
            await world.ok("PUT", f"/v1/hosts/h1/power/{name}", body)

        async def status() -> str:
            body = "<action><fence_type>status</fence_type></action>"
            answer = await send(world, "POST", fence, body)
            assert answer.status_code == 200, answer.text
            told = reader.Reader.read(answer.text)
            return told.fault.detail if told.fault else told.power_management.status.value

        # Nobody is there to ask this one: it raises.
        await device("feed1", 1, "echo on", asked_from="agents")
        told = await status()
        assert told.startswith("[feed1: ")
        await device("spare", 2, "echo off")
        assert await status() == "off"
        await device("feed2", 1, "echo off")
        assert await status() == "off"
        (tmp_path / "spare.asked").unlink()
        await device("feed1", 1, "echo off")
        assert await status() == "off"
        await device("feed2", 1, "echo on")
        assert await status() == "on"
        assert not (tmp_path / "spare.asked").exists()  # the first level said it
        await device("feed2", 1, "exit 1")
        await device("spare", 2, "echo on")
        assert await status() == "on"
        await device("spare", 2, "exit 1")
        assert await status() == "unknown"

    play(story)
