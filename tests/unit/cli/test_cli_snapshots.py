"""`virtha vm snapshot`: what is asked of the server, and what is asked of the user first."""

from collections.abc import Callable

from cli_fake_api import Answer, Api, Ran
from cli_shapes import NOON, accepted, operation

Run = Callable[..., Ran]
PATH = "/v1/vms/web1/snapshots"


def test_snapshots_are_made_gone_back_to_and_deleted(api: Api, run: Run) -> None:
    done = accepted(operation(kind="vm.snapshot"))
    api.on("POST", PATH, done)
    made = {"id": "s-1", "name": "before", "state": "ready", "created": NOON, "disks": ["disk0"]}
    api.on("GET", PATH, Answer({"items": [{**made, "description": ""}], "revision": 1}))
    api.on("POST", f"{PATH}/before/revert", done)
    api.on("DELETE", f"{PATH}/before", done)
    assert run("vm", "snapshot", "create", "web1", "before").out.startswith("snapshot before of")
    assert api.asked[0].body == {"name": "before"}
    assert "before" in run("vm", "snapshot", "list", "web1").out
    assert run("vm", "snapshot", "revert", "web1", "before", "--yes").out.startswith("web1 is back")
    assert run("vm", "snapshot", "delete", "web1", "before", "--yes").code == 0


def test_nothing_is_lost_without_a_yes(api: Api, run: Run) -> None:
    for verb in ("revert", "delete"):
        assert run("vm", "snapshot", verb, "web1", "before").code == 2
    assert not api.asked
