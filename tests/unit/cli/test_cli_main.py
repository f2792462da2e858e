"""The frame: lazy nouns, where options may stand, exit codes, the reference page."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import page, vm_view

from virtha import __version__
from virtha.cli import main as main_module
from virtha.cli.main import NOUNS, load
from virtha.cli.reference import reference_markdown
from virtha.model.errors import Failed

Run = Callable[..., Ran]
HEAVY = ("litestar", "sqlalchemy", "libvirt", "httpx", "rich", "cryptography", "yaml")
OURS = [name for name, noun in NOUNS.items() if not noun.extra]


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--version"], ()),
        (["--help"], ()),
        (["vm", "list", "--help"], ("httpx", "rich", "yaml")),
        (["codes", "8021"], ("httpx", "rich", "yaml")),
    ],
)
def test_a_command_imports_only_what_it_needs(argv: list[str], allowed: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom virtha.cli.main import main\n"
        f"code = main({argv!r})\n"
        f"print('HEAVY', code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True
    )
    last = ran.stdout.strip().splitlines()[-1]
    code, loaded = last.removeprefix("HEAVY ").split(" ", 1)
    assert code == "0"
    assert set(eval(loaded)) <= set(allowed)


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"virtha {__version__}\n", "")


@pytest.mark.parametrize(
    "argv",
    [["vm", "lst"], ["vmm"], ["vm", "show"], ["vm", "list", "--nope"], ["vm"], []],
    ids=" ".join,
)
def test_usage_errors_are_2(argv: list[str], run: Run) -> None:
    ran = run(*argv)
    assert ran.code == 2
    assert ran.out == ""
    assert "fix: " in ran.err or "Usage: virtha" in ran.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("vm show", "VM: is missing\n  fix: write virtha vm show [OPTIONS] {VM}; see: virtha vm s"),
        (
            "vm create web1 --vcpus 0",
            "--vcpus: must be greater than or equal to 1\n  fix: see: virt",
        ),
        ("vm create web1 --vcpus x", "--vcpus: must be a valid integer\n"),
        ("vm create web1 --memory", "option '--memory' requires an argument\n"),
        ("vm list --state up", "--state: 'up' is not one of 'unknown', 'down'"),
        ("vm list --nope", "no such option: --nope"),
        ("vm list extra", "got unexpected extra argument(s) (extra)"),
        ("storage add s1", "--path: is missing\n"),
        (
            "user create eve --role king",
            "--role: 'king' is not one of 'none', 'viewer', 'operator', 'adm",
        ),
        ("event list --limit 0", "--limit: must be greater than or equal to 1\n"),
        ("completion tcsh", "bash|zsh|fish: 'tcsh' is not one of"),
        ("nope", "no such command 'nope'\n  fix: see: virtha --help"),
    ],
)
def test_usage_errors_read_like_all_others(argv: str, says: str, api: Api, run: Run) -> None:
    ran = run(*argv.split())
    assert (ran.code, ran.out, api.asked) == (2, "", [])
    assert ran.err.startswith(f"error: {says}"), ran.err
    assert "fix: " in ran.err and ran.err.endswith("  code: problem.invalid\n")


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("memory_bytes", "--memory"),
        ("expires_ms", "--expires"),
        ("nics[1].mac", "--nic: nics[1].mac"),
        ("nicsome", "nicsome"),
        ("name", "name"),
    ],
)
def test_fields_of_the_api_are_shown_as_they_were_typed(
    field: str, shown: str, api: Api, run: Run
) -> None:
    problem = {"code": "problem.invalid", "detail": "is wrong", "field": field}
    api.on("GET", "/v1/vms/web1", Answer(problem, status=400))
    assert run("vm", "show", "web1").err.startswith(f"error: {shown}: is wrong\n")


def test_a_wrong_word_gets_a_suggestion(run: Run) -> None:
    assert "Did you mean 'list'?" in run("vm", "lst").err


@pytest.mark.parametrize("argv", [["-o", "json", "vm", "list"], ["vm", "list", "-o", "json"]])
def test_options_stand_before_or_after_the_verb(argv: list[str], api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    ran = run(*argv)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("[")


def test_a_later_default_does_not_undo_an_earlier_option(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view("a"), vm_view("b")))
    assert run("--quiet", "vm", "list").out == "a\nb\n"


def test_unknown_output_format_names_the_allowed_ones(run: Run) -> None:
    ran = run("vm", "list", "-o", "xml")
    assert ran.code == 2
    assert "--output: 'xml' is no output format\n  allowed: table, json, yaml, wide" in ran.err


def test_root_option_reaches_the_programs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTHA_ROOT", "/somewhere/else")
    assert run("codes", "8021", "--root", str(tmp_path)).code == 0
    assert os.environ["VIRTHA_ROOT"] == str(tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def no_litestar(name: str) -> object:
        raise ModuleNotFoundError("No module named 'litestar.app'", name="litestar.app")

    monkeypatch.setattr(main_module.importlib, "import_module", no_litestar)
    with pytest.raises(Failed):
        load("server")
    ran = run("server")
    assert ran.code == 1
    assert "'litestar', which is not installed\n  fix: pip install 'virtha[server]'" in ran.err


def test_a_bug_of_ours_is_not_called_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ModuleNotFoundError("No module named 'virtha.nope'", name="virtha.nope")

    monkeypatch.setattr(main_module.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        load("server")


@pytest.mark.parametrize("noun", OURS)
def test_every_command_says_what_it_does(noun: str) -> None:
    def check(command: Any, path: str) -> None:
        assert command.help, path
        for param in command.params:
            assert param.help or param.name == "help", f"{path}: {param.name}"
        for name, sub in getattr(command, "commands", {}).items():
            check(sub, f"{path} {name}")

    check(load(noun), noun)


@pytest.mark.parametrize("noun", OURS)
def test_overviews_have_whole_sentences(noun: str) -> None:
    """On a screen of 80 columns; typer cuts what is longer, and a full stop ends the sentence."""

    def check(command: Any, path: str) -> None:
        commands = getattr(command, "commands", {})
        width = 80 - 6 - max(map(len, commands), default=0)
        for name, sub in commands.items():
            assert not sub.get_short_help_str(width).endswith("..."), f"{path} {name}"
            check(sub, f"{path} {name}")

    check(load(noun), noun)


def test_reference_has_every_command_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtha.cli.reference.NOUNS", {name: NOUNS[name] for name in OURS})
    text = reference_markdown()
    for heading in ("### virtha vm create NAME", "### virtha policy set", "## virtha status"):
        assert f"\n{heading}" in text
    assert "| 4 | refused by policy or safety; the reason is printed |" in text
    assert "install-completion" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, run: Run) -> None:
    program = f"from virtha.cli.main import main; raise SystemExit(main(['completion', '{shell}']))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True
    )
    assert f"_VIRTHA_COMPLETE={shell}" in ran.stdout


PROBLEMS = [
    (400, "problem.invalid", 2),
    (401, "problem.unauthenticated", 6),
    (403, "problem.forbidden", 6),
    (404, "problem.not_found", 3),
    (405, "problem.method", 2),
    (409, "problem.name_taken", 1),
    (410, "problem.gone", 1),
    (412, "problem.stale", 1),
    (422, "problem.no_host_fits", 4),
    (500, "problem.failed", 1),
    (503, "problem.database.locked", 5),
]


@pytest.mark.parametrize(("status", "code", "exit_code"), PROBLEMS)
def test_problems_become_exit_codes(
    status: int, code: str, exit_code: int, api: Api, run: Run
) -> None:
    problem = {
        "type": f"https://virtha.dev/problems/{code}",
        "title": "Title",
        "status": status,
        "code": code,
        "detail": "what is wrong",
        "field": "name",
        "allowed": ["a", "b"],
        "fix": "do this",
    }
    api.on("GET", "/v1/vms/web1", Answer(problem, status=status))
    ran = run("vm", "show", "web1")
    assert ran == Ran(
        exit_code,
        "",
        "error: name: what is wrong\n  allowed: a, b\n  fix: do this\n" + f"  code: {code}\n",
    )


@pytest.mark.parametrize(
    ("status", "raw", "exit_code", "says"),
    [
        (502, b"<html>Bad Gateway</html>", 5, "the server answered 502: <html>Bad Gateway</html>"),
        (500, b"", 1, "the server answered 500"),
        (404, b'"just text"', 3, "the server answered 404"),
        (401, b"{}", 6, "fix: sign in: virtha login URL"),
        (200, b"<html>hello</html>", 1, "is it a virtha server?"),
        (302, b"", 1, "the server answered 302"),
    ],
)
def test_answers_that_are_no_problem_document(
    status: int, raw: bytes, exit_code: int, says: str, api: Api, run: Run
) -> None:
    api.on("GET", "/v1/vms/web1", Answer(status=status, raw=raw))
    ran = run("vm", "show", "web1")
    assert ran.code == exit_code
    assert says in ran.err


def test_a_message_can_not_drive_the_terminal(api: Api, run: Run) -> None:
    evil = {"title": "x", "detail": "\x1b[2Jgone\x07", "code": "problem.failed"}
    api.on("GET", "/v1/vms/web1", Answer(evil, status=500))
    ran = run("vm", "show", "web1")
    assert "\x1b" not in ran.err and "\x07" not in ran.err
    assert "?[2Jgone?" in ran.err


def test_a_closed_pipe_is_no_drama() -> None:
    """`virtha codes | true`, once with more than a pipe holds and once with less."""
    for argv in (["codes", "-o", "json"], ["codes", "8021"]):
        reader, writer = os.pipe()
        os.close(reader)
        ran = subprocess.run(
            [sys.executable, "-m", "virtha.cli.main", *argv],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=200,
            check=False,
        )
        os.close(writer)
        assert (ran.returncode, ran.stderr) == (1, b"")
