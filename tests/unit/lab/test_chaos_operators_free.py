"""What chaos' operators free: VMs that the engine keeps in quarantine, and no others."""

from typing import Any

import msgspec
import pytest

from virtha.control.views import VmView
from virtha.lab.chaos_operators import QUARANTINED, Operators
from virtha.model.codes import REGISTRY
from virtha.model.errors import Failed

HELD = {
    "web1": ["recovery.blocked.quarantine"],
    "web2": ["recovery.blocked.attempts"],
    "web3": [],
    "web4": ["recovery.blocked.quarantine"],
}


class PlayedApi:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> "PlayedApi":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def vm(self, name: str) -> dict[str, Any]:
        if name not in HELD:
            raise Failed(f"there is no VM {name}")
        return {"engine": [{"code": code} for code in HELD[name]]}

    def post(self, path: str) -> dict[str, Any]:
        self.asked.append(path)
        if "web4" in path:
            raise Failed("nobody leads this cluster at this moment")
        return {}


class PlayedLab:
    def __init__(self) -> None:
        self.played = PlayedApi()

    def api(self) -> PlayedApi:
        return self.played


@pytest.mark.req("X1")
def test_they_free_what_is_quarantined_and_say_what_came_of_it() -> None:
    lab: Any = PlayedLab()
    did = Operators(lab).free_what_is_quarantined([*HELD, "web9"])
    assert did == ["web1 freed: done", "web4 freed: nobody leads this cluster at this moment"]
    assert lab.played.asked == ["/v1/vms/web1/free", "/v1/vms/web4/free"]


def test_what_they_look_for_is_what_the_api_says() -> None:
    assert QUARANTINED in REGISTRY
    assert "engine" in {field.encode_name for field in msgspec.structs.fields(VmView)}
