"""What a real guest shows: its serial log and its screen, over the channels of a real agent."""

import struct

import pytest

from virtha.lab.node import wait_until
from virtha.lab.story import Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


def log_text(story: Story, name: str, query: str = "") -> str:
    log = story.api.get(f"/v1/vms/{name}/console-log{query}")
    return "".join(part["text"] for part in log["parts"])


def test_the_serial_log_and_the_screen_of_a_real_guest(story: Story) -> None:
    story.create_vm("shown1", host="h1")
    story.wait_agent("shown1")
    wait_until(
        lambda: "tiny: boot 1" in log_text(story, "shown1"), "the guest's words", timeout_s=30.0
    )
    assert "tiny: boot" in log_text(story, "shown1", "?contains=TINY:+BOOT&lines=1")
    picture = story.api.request("GET", "/v1/vms/shown1/screenshot").content
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert 320 <= width <= 4_096 and 200 <= height <= 4_096
