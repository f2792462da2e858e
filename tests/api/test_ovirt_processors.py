"""Sockets, cores and threads of a body: one count of processors, and never another than its sender meant."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET
from test_ovirt_requests import one_vm, send

from virtha.api.ovirt.vm_body import vcpus_of
from virtha.model.errors import InvalidInput, Refused

Play = Callable[..., Any]
World = Any
BODY = "<vm><cpu><topology>{}</topology></cpu></vm>"


@pytest.mark.parametrize(
    ("said", "present", "wanted"),
    [
        ({}, 4, UNSET),
        ({"cores": 2, "threads": 2}, None, 4),
        ({"sockets": 2, "cores": 3}, None, 6),
        ({"sockets": 2}, 4, 2),
        ({"sockets": 4, "cores": 2}, 4, 8),
        ({"sockets": 1, "cores": 4}, 4, 4),
        # Once more what it was made with: Ansible's `cpu_cores: 4`, at each run.
        ({"cores": 4}, 4, UNSET),
        ({"cores": 2, "threads": 2}, 4, UNSET),
        # As it is shown.
        ({"cores": 1}, 4, UNSET),
        ({"sockets": 4, "cores": 1, "threads": 1}, 4, 4),
        # One socket of that many is what oVirt would make of it, too.
        ({"cores": 2}, 1, 2),
    ],
)
def test_what_is_left_out_is_as_it_is(
    said: dict[str, int], present: int | None, wanted: object
) -> None:
    assert vcpus_of({"cpu": {"topology": said}}, present) == wanted
    assert vcpus_of({}, present) is UNSET


@pytest.mark.bad_input("wrong value in a body")
def test_what_may_mean_two_numbers_is_refused(play: Play) -> None:
    for said in ({"cores": 2}, {"threads": 2}, {"cores": 8}, {"cores": 2, "threads": 4}):
        with pytest.raises(Refused) as caught:
            vcpus_of({"cpu": {"topology": said}}, 4)
        assert caught.value.field == "cpu.topology" and "sockets" in caught.value.fix
    with pytest.raises(InvalidInput):
        vcpus_of({"cpu": {"topology": {"cores": 0}}}, 4)

    async def story(world: World) -> None:
        path = f"/vms/{await one_vm(world)}"
        four = await send(world, "PUT", path, BODY.format("<cores>4</cores>"))
        assert four.status_code == 200 and "<sockets>4</sockets>" in four.text, four.text
        half = await send(world, "PUT", path, BODY.format("<cores>2</cores>"))
        assert half.status_code == 409 and "cpu.topology" in half.text, half.text
        same = await send(world, "PUT", path, BODY.format("<cores>4</cores>"))
        assert same.status_code == 200 and "<sockets>4</sockets>" in same.text, same.text

    play(story)
