"""Power devices over the API: settings per cluster and host, field by field; passwords that never come back; what real
devices answer, as a user meets it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import World

from virtha.model.host import HostCapabilities, HostState, HostStatus
from virtha.model.ids import BootId, HostId
from virtha.store.hosts import find_host, save_host_status

pytestmark = pytest.mark.req("F5", "F6")
Tell = Callable[[Any], None]
SECRET = "p'a$HOME;`x`|& \"q\""
SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
[ "$IPMI_PASSWORD" = "$(cat password)" ] || { echo "bad password $IPMI_PASSWORD" >&2; exit 1; }
case "$1" in
status) cat "state-$2" 2>/dev/null || echo on ;;
stop) echo off > "state-$2" ;;
start) echo on > "state-$2" ;;
blink) echo blink >> blinked ;;
esac
"""
SYNTAX = "$IPMI_EXEC $IPMI_ACTION $IPMI_HOST"


async def with_hosts(world: World, *names: str) -> None:
    await world.ok("POST", "/v1/clusters", {"name": "c1"})
    for name in names:
        await world.add_host(name, "c1")


def script(directory: Path, text: str = SCRIPT) -> str:
    path = directory / "switch"
    path.write_text(text)
    path.chmod(0o755)
    (directory / "password").write_text(SECRET)
    return str(path)


def shared(directory: Path, **more: Any) -> dict[str, Any]:
    settings = {
        "driver": "command",
        "executable": script(directory),
        "syntax": SYNTAX,
        "stop": "stop",
        "start": "start",
        "status": "status",
        "blink": "blink",
        "user": "root",
    }
    return {"settings": {**settings, **more}, "secrets": {"password": SECRET}}
