"""Completion in the real shells: a line is typed at a terminal, Tab and Enter, and the program tells what it was given."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fake_api import Api

SHELLS = ("bash", "zsh", "fish")
BEGUN = {
    "bash": ["bash", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
LOADED = {
    "bash": "source <(virtha completion bash)",
    "zsh": "autoload -Uz compinit; compinit -u; source <(virtha completion zsh)",
    "fish": "virtha completion fish | source",
}
PATIENCE_S = 100.0
UGLY = ("$(touch pwned)", "a b", "it's", "star*", "`id`", 'quo"te', "back\\slash")
"""What names of images can be: those of files that anybody put on the storage."""

Typed = Callable[..., list[str]]


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, words: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self._ours, its = os.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *words],
            stdin=its,
            stdout=its,
            stderr=its,
            cwd=cwd,
            env=env,
        )
        os.close(its)
        self._said = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What the shell says next. Raises AssertionError with what it has said instead."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self._said)) is None:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._ours], [], [], left)[0], self._said[-2_000:]
            self._said += os.read(self._ours, 65_536).decode(errors="replace")
        self._said = self._said[found.end() :]
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture(params=SHELLS)
def typed(request: pytest.FixtureRequest, api: Api, tmp_path: Path) -> Iterator[Typed]:
    """Types a line and Tab; returns the words that the program would then be given."""
    shell: str = request.param
    assert shutil.which(shell), f"no {shell} here: scripts/setup check"
    ours = tmp_path / "bin"
    ours.mkdir()
    program = ours / "virtha"
    real = f"{sys.executable} -m virtha.cli.main"
    program.write_text(
        f"""#!/bin/sh
if [ -n "$_VIRTHA_COMPLETE" ] || [ "$1" = completion ]; then exec {real} "$@"; fi
{{ for word; do printf '%s\\0' "$word"; done; }} > {tmp_path}/given
echo TO''LD
"""
    )
    program.chmod(0o755)
    place = tmp_path / "place"
    (place / "adir").mkdir(parents=True)
    (place / "afile").touch()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VIRTHA_")},
        **{"PATH": f"{ours}:{os.environ['PATH']}", "VIRTHA_URL": api.url, "VIRTHA_TOKEN": "x"},
        **{"HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8", "PS1": "", "PROMPT": ""},
    }
    terminal = Terminal(BEGUN[shell], cwd=place, env=env)
    terminal.type(f"{LOADED[shell]}; echo LOA''DED\n")
    terminal.wait_for("LOADED")

    def type_and_look(line: str, then: str = "") -> list[str]:
        terminal.type(f"{line}\t{then}\n")
        terminal.wait_for("TOLD")
        assert not (place / "pwned").exists()
        return (tmp_path / "given").read_text().split("\0")[:-1]

    try:
        yield type_and_look
    finally:
        terminal.end()


@pytest.mark.req("L6")
def test_tab_completes_names_words_and_paths(typed: Typed, api: Api) -> None:
    api.on("GET", "/v1/vms", {"items": [{"vm": {"name": "web1"}}], "next": None})
    for line, given in (
        ("virtha stor", ["storage"]),
        ("virtha vm show we", ["vm", "show", "web1"]),
        ('virtha vm show "we', ["vm", "show", "web1"]),
        ("virtha vm show 'we", ["vm", "show", "web1"]),
        ("virtha event list --vm=we", ["event", "list", "--vm=web1"]),
        ("virtha explain vm/we", ["explain", "vm/web1"]),
        (
            "virtha vm watchdog set web1 ib700:po",
            ["vm", "watchdog", "set", "web1", "ib700:poweroff"],
        ),
        (
            "virtha template watchdog set gold ib700:po",
            ["template", "watchdog", "set", "gold", "ib700:poweroff"],
        ),
        (
            "virtha vm create x --watchdog=ib700:po",
            ["vm", "create", "x", "--watchdog=ib700:poweroff"],
        ),
        ("virtha policy set profile=f", ["policy", "set", "profile=fast"]),
        ("virtha policy set --file af", ["policy", "set", "--file", "afile"]),
        ("virtha vm show af", ["vm", "show", "af"]),
    ):
        assert typed(line) == given, line
    directory = [word.rstrip("/") for word in typed("virtha man --write=ad")]
    assert directory == ["man", "--write=adir"]


@pytest.mark.req("L6")
def test_a_name_is_a_word_whatever_is_in_it(typed: Typed, api: Api) -> None:
    """Names of images are those of files: nothing in them is carried out, not by Tab and not by Enter."""
    for name in UGLY:
        images = {"domain": {"name": "ds1"}, "images": [{"name": name}]}
        api.on("GET", "/v1/storage-domains", {"items": [images], "next": None})
        given = typed("virtha vm create x --image ")
        assert given == ["vm", "create", "x", "--image", name], name


def test_no_blank_is_put_where_a_value_is_still_to_come(typed: Typed, api: Api) -> None:
    api.on("GET", "/v1/vms", {"items": [{"vm": {"name": "web1"}}], "next": None})
    for line, then, last in (
        ("virtha policy set restart.delay_m", "5s", "restart.delay_max=5s"),
        ("virtha vm watchdog set web1 ib", "pause", "ib700:pause"),
        ("virtha explain v", "we\t", "vm/web1"),
    ):
        assert typed(line, then)[-1] == last, line
