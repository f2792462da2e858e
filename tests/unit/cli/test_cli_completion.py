"""What the shell offers: live names from the server that the command would ask, and nothing where it can't be asked."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fake_api import Answer, Api, Ran

from virtha.cli.main import NOUNS, load

Run = Callable[..., Ran]
Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash would offer for the last word of a line; a blank at its end begins a new one."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_VIRTHA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        ran = run()
        assert ran.err == ""
        return ran.out.split("\n")[:-1] if ran.out.strip() else []

    return ask


def page(*items: object) -> dict[str, object]:
    return {"items": list(items), "next": None}


def vms(*names: str) -> dict[str, object]:
    return page(*({"vm": {"name": name}} for name in names))


@pytest.mark.parametrize(
    "line", ["vm show ", "vm start ", "vm start other ", "notify subscribe x --vm "]
)
def test_names_of_vms_come_from_the_server(line: str, api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/vms", vms("db1", "web1", "web2"))
    assert complete(f"virtha {line}") == ["db1", "web1", "web2"]
    assert complete(f"virtha {line}web") == ["web1", "web2"]


@pytest.mark.parametrize(
    ("line", "path", "item", "offered"),
    [
        ("host show ", "/v1/hosts", {"host": {"name": "h1"}}, "h1"),
        ("vm list --host ", "/v1/hosts", {"host": {"name": "h1"}}, "h1"),
        ("vm list --cluster ", "/v1/clusters", {"name": "default"}, "default"),
        ("storage show ", "/v1/storage-domains", {"domain": {"name": "ds1"}, "images": []}, "ds1"),
        (
            "vm create x --image ",
            "/v1/storage-domains",
            {"domain": {"name": "ds1"}, "images": [{"name": "tiny"}]},
            "tiny",
        ),
        ("notify test ", "/v1/receivers", {"receiver": {"name": "mail1"}}, "mail1"),
        ("notify unsubscribe ", "/v1/subscriptions", {"subscription": {"name": "s1"}}, "s1"),
        ("user edit ", "/v1/users", {"name": "eve"}, "eve"),
        ("notify subscribe m --user ", "/v1/users", {"name": "eve"}, "eve"),
        ("operation show ", "/v1/operations", {"id": "0c5d"}, "0c5d"),
        ("token revoke ", "/v1/tokens", {"id": "77aa"}, "77aa"),
        ("setting get ", "/v1/settings", {"key": "event.retention"}, "event.retention"),
    ],
)
def test_each_kind_of_name(
    line: str, path: str, item: object, offered: str, api: Api, complete: Complete
) -> None:
    api.on("GET", path, page(item))
    assert complete(f"virtha {line}") == [offered]


def test_what_the_program_knows_needs_no_server(complete: Complete) -> None:
    assert "vm.watchdog.fired" in complete("virtha codes vm.watchdog.f")
    assert complete("virtha notify subscribe m --code vm.watchdog.*") == ["vm.watchdog.*"]
    assert "restart.delay=" in complete("virtha policy set restart.")
    assert complete("virtha notify receiver add m") == ["mail"]


def test_a_long_list_is_asked_from_where_the_word_begins(api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/vms", vms("web1"))
    assert complete("virtha vm show web") == ["web1"]
    (asked,) = api.calls("GET", "/v1/vms")
    assert int(asked.query["limit"]) == 200
    assert "wea" < asked.query["after"] < "web"


def test_where_the_line_says_which_server_that_one_is_asked(
    socket_api: Api, complete: Complete, home: Path
) -> None:
    socket_api.on("GET", "/v1/vms", vms("web1"))
    assert complete(f"virtha vm show --root {home} ") == ["web1"]
    assert complete(f"virtha --root {home} -o nonsense vm show ") == ["web1"]


def test_without_an_answer_nothing_is_offered_and_nothing_said(
    api: Api, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.cli.live_names.ANSWER_S", 0.2)
    never = threading.Event()
    for answer in (
        Answer({"title": "x", "status": 401, "code": "problem.unauthenticated"}, status=401),
        Answer(raw=b"no JSON"),
        Answer({"items": [{"odd": 1}]}),
        Answer(raw=b"", cut=True),
        Answer(hang=never),
    ):
        api.on("GET", "/v1/vms", answer)
        assert complete("virtha vm show ") == []
    never.set()
    monkeypatch.setenv("VIRTHA_URL", "http://127.0.0.1:1")
    assert complete("virtha vm show ") == []
    monkeypatch.setenv("VIRTHA_URL", "no address, this")
    assert complete("virtha vm show ") == []


def test_a_receivers_own_host_and_user_are_no_names_of_ours(api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/hosts", page({"host": {"name": "h1"}}))
    assert complete("virtha notify receiver add mail m --host ") == []
    assert api.calls("GET", "/v1/hosts") == []


def test_a_call_that_completes_nothing_asks_nothing_more() -> None:
    """The table costs no command its time: it is not even loaded."""
    for noun in ("vm", "host"):
        found = load(noun)
        for sub in found.commands.values():
            assert all(one._custom_shell_complete is None for one in sub.params), noun
    assert {"vm", "host"} <= set(NOUNS)


@pytest.mark.req("L6")
def test_in_a_real_bash(api: Api, tmp_path: Path) -> None:
    """The script is loaded as its page says, and the function that it registers is called as Tab does."""
    api.on("GET", "/v1/vms", vms("web1", "web2"))
    program = tmp_path / "virtha"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtha.cli.main "$@"\n')
    program.chmod(0o755)
    typed = """
        source <(virtha completion bash)
        registered=$(complete -p virtha)
        [[ $registered =~ -F\\ ([^ ]+) ]]
        COMP_WORDS=(virtha vm show we) COMP_CWORD=3
        ${BASH_REMATCH[1]} virtha we show
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "--norc", "-c", typed],
        env={**os.environ, "PATH": path, "VIRTHA_URL": api.url},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ran.stdout.split(), ran.stderr) == (["web1", "web2"], "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(
    shell: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_VIRTHA_COMPLETE", "")  # the command sets it; put back afterwards
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(run("completion", shell).out)
    checked = subprocess.run([program, "-n", str(script)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
