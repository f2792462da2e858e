"""`virtha template` and `virtha vm create --template`: what is sent, what is refused before it is."""

from collections.abc import Callable

import msgspec
import pytest
from cli_fake_api import Api, Ran
from cli_shapes import accepted, operation

from virtha.control.requests import TemplateCreate, VmFromTemplate

Run = Callable[..., Ran]


@pytest.mark.req("W5")
def test_a_vm_from_a_template_sends_only_what_was_typed(api: Api, run: Run) -> None:
    api.on("POST", "/v1/templates/gold/vms", accepted(operation(kind="vm.create")))
    assert run("vm", "create", "web2", "--template", "gold").code == 0
    assert api.asked[-1].body == {"name": "web2", "start": False, "thin": False}
    ran = run(
        *("vm", "create", "web2", "--template", "gold", "--thin", "--start", "--no-ha"),
        *("--memory", "128MiB", "--nic", "br1", "--watchdog", "ib700:reset"),
    )
    assert ran.out.startswith("VM web2 is created and started")
    asked = next(one for one in reversed(api.asked) if one.method == "POST")
    sent = msgspec.convert(asked.body, VmFromTemplate)
    assert (sent.thin, sent.start, sent.ha, sent.memory_bytes) == (True, True, False, 134_217_728)
    assert sent.vcpus is msgspec.UNSET and sent.description is msgspec.UNSET
    assert isinstance(sent.nics, tuple) and sent.nics[0].bridge == "br1"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--thin"], "--thin: --thin goes with --template only"),
        (["--template", "gold", "--image", "tiny"], "--image: --image is the template's"),
        (["--template", "gold", "--machine", "q35"], "--machine: --machine is the template's"),
        (["--template", "gold", "--disk", "size=1GiB"], "--disk: --disk is the template's"),
    ],
)
def test_what_the_template_says_is_not_typed(
    api: Api, run: Run, argv: list[str], says: str
) -> None:
    ran = run("vm", "create", "web1", *argv)
    assert ran.code == 2
    assert says in ran.err
    assert not api.asked


@pytest.mark.req("W5")
def test_a_template_is_made_and_deleted(api: Api, run: Run) -> None:
    api.on("POST", "/v1/templates", accepted(operation(kind="template.create")))
    api.on("DELETE", "/v1/templates/gold", accepted(operation(kind="template.delete")))
    assert run("template", "create", "gold", "--from", "web1").out.startswith("template gold is")
    sent = msgspec.convert(api.asked[0].body, TemplateCreate)
    assert (sent.name, sent.vm, sent.description) == ("gold", "web1", "")
    assert sent.watchdog is msgspec.UNSET
    assert run("template", "delete", "gold", "--yes").out.startswith("template gold is deleted")
    assert run("template", "create", "gold").code == 2


@pytest.mark.req("W1", "W5")
@pytest.mark.parametrize(
    ("card", "sent"),
    [("ib700:reset", {"model": "ib700", "action": "reset"}), ("none", None)],
)
def test_a_template_is_made_with_another_card_or_none(
    api: Api, run: Run, card: str, sent: dict[str, str] | None
) -> None:
    api.on("POST", "/v1/templates", accepted(operation(kind="template.create")))
    ran = run("template", "create", "gold", "--from", "web1", "--watchdog", card, "--no-wait")
    assert ran.code == 0
    assert api.asked[0].body == {"name": "gold", "vm": "web1", "watchdog": sent}
    ran = run("template", "create", "gold", "--from", "web1", "--watchdog", "tardis:reset")
    assert ran.code == 2 and "allowed: i6300esb" in ran.err
    assert len(api.asked) == 1
