"""Asks every question anew, as a user does, and compares: the files here, and the blocks of the guide."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from virtha.cli.main import main
from virtha.scenario.inventory import read_inventory
from virtha.scenario.inventory_check import check_inventory

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
GUIDE = ROOT / "docs" / "guide" / "simulate.md"
PICTURE = ROOT / "docs" / "images" / "what-if.svg"
BLOCK = re.compile(r"```console\n\$ (virtha [^\n]*)\n(.*?)```\n", re.DOTALL)
RACK_LOST = ("simulate", "--inventory", "examples/three-racks.yaml", "--fail", "rack=r3")

pytestmark = pytest.mark.req("X3")


def virtha(*argv: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as from a shell."""
    return subprocess.run(
        [sys.executable, "-m", "virtha.cli.main", *argv],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def asked(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = main(shlex.split(command)[1:])
    told = capsys.readouterr()
    assert (code, told.err) == (0, "")
    return told.out


@pytest.mark.req("X1")
def test_answer(
    question_path: Path,
    rewrite: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(FOLDER)
    first, _, expected = question_path.read_text().partition("\n")
    outcome = asked(first.removeprefix("$ "), capsys)
    if rewrite:
        question_path.write_text(f"{first}\n{outcome}")
        return
    assert expected, f"{question_path.name} expects nothing: use --rewrite, then review it"
    assert outcome == expected


def test_the_guide_shows_what_is_printed(
    rewrite: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = GUIDE.read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 3, "the guide has lost its examples"
    for command, shown in blocks:
        printed = asked(command, capsys)
        if rewrite:
            text = text.replace(f"$ {command}\n{shown}```", f"$ {command}\n{printed}```")
        else:
            assert shown == printed, command
    if rewrite:
        GUIDE.write_text(text)


def test_the_inventory_of_the_guide_is_good() -> None:
    example = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    found = read_inventory(example, file="guide")
    check_inventory(found)
    assert (len(found.hosts), len(found.vms)) == (6, 4)


def test_the_error_of_the_guide_is_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = (ROOT / "examples" / "three-racks.yaml").read_text()
    Path("mine.yaml").write_text(example.replace("memory: 240GiB", "memory: 440GiB"))
    assert main(["simulate", "--inventory", "mine.yaml", "--fail", "rack=r3"]) == 2
    told = capsys.readouterr().err
    assert "".join(f"    {line}\n" for line in told.splitlines()) in GUIDE.read_text()


def test_the_picture_of_the_guide_is_fresh(
    rewrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PICTURE if rewrite else tmp_path / "what-if.svg"
    monkeypatch.chdir(ROOT)
    assert main([*RACK_LOST, "--svg", str(made), "-q"]) == 0
    assert made.read_text() == PICTURE.read_text()


def test_a_rack_is_lost_as_a_user_asks() -> None:
    ran = virtha(*RACK_LOST, "-o", "json")
    assert (ran.returncode, ran.stderr) == (0, "")
    answer = json.loads(ran.stdout)
    vms = {vm["name"]: vm for vm in answer["vms"]}
    assert len(vms) == sum(answer["counts"].values()) == 41
    back = {name for name, vm in vms.items() if vm["outcome"] == "returns"}
    assert all(vms[name]["runs_on"][:2] in ("r1", "r2") for name in back)
    # The database is apart from its other copies, and whoever needs it comes after it.
    assert vms["db-3"]["runs_on"] not in ("r1h1", "r2h1")
    assert all(
        vms[name]["ordered_ms"] >= vms["db-3"]["guest_agent_ms"]
        for name in back
        if name.startswith("app-")
    )
    # What stays down says why, by a code.
    why = {
        name: [reason["code"] for reason in vm["reasons"]]
        for name, vm in vms.items()
        if vm["outcome"] != "returns"
    }
    assert why["warehouse"][0] == "recovery.blocked.no_capacity"
    assert why["web-18"] == ["recovery.waiting.proof"]
    assert why["test-13"] == ["protection.no_ha"]
    assert all(why.values())
    hosts = {host["name"]: host for host in answer["hosts"]}
    assert hosts["r3h6"]["proven_ms"] is None
    assert "lease.not_proof.no_watchdog" in [one["code"] for one in hosts["r3h6"]["reasons"]]
    for host in hosts.values():
        if host["proven_ms"] is not None:
            assert host["silent_ms"] < host["suspected_ms"] < host["judged_ms"] < host["proven_ms"]


def test_the_same_question_has_the_same_answer(tmp_path: Path) -> None:
    told, drawn = set(), set()
    for seed in ("1", "4711"):
        file = tmp_path / f"{seed}.svg"
        ran = virtha(*RACK_LOST, "-o", "json", "--svg", str(file), PYTHONHASHSEED=seed)
        assert ran.returncode == 0
        told.add(ran.stdout)
        drawn.add(file.read_text())
    assert len(told) == len(drawn) == 1
    assert json.loads(told.pop())["counts"]["returns"] > 0


@pytest.mark.bad_input("inventory with a cycle", story=True)
def test_an_inventory_with_a_cycle_is_refused_with_its_place(tmp_path: Path) -> None:
    text = (FOLDER / "small.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("name: db, on: h1,", "name: db, on: h1, depends_on: [web-1],"))
    ran = virtha("simulate", "--inventory", str(file), "--fail", "host=h1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"error: vms.depends_on: {file}:" in ran.stderr
    assert "these VMs wait for each other: db -> web-1 -> db" in ran.stderr
    assert "  fix: remove one of these dependencies" in ran.stderr


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (("--fail", "rack=r9"), 2, "there is no rack 'r9'"),
        (("--fail", "h1"), 2, "allowed: host=NAME, rack=NAME"),
        (("--fail", "host=r3h11"), 2, "fix: did you mean 'r3h1'?"),
        (("--fail", "rack=r3", "--explain", "web-1"), 2, "fix: write for example vm/web-1"),
        (("--fail", "rack=r3", "--explain", "vm/webb-1"), 3, "fix: did you mean 'web-1'?"),
        (("--fail", "rack=r3", "--explain", "vm/web-1@soon"), 2, "'soon' is not a duration"),
        (("--fail", "rack=r3", "--explain", "vm/web-1", "--timeline"), 2, "two views"),
        (("--fail", "rack=r3", "--for", "1ms"), 2, "allowed: 1s to 7d"),
        (("--fail", "rack=r3", "--at", "noon"), 2, "'noon' is not a time"),
        (("--fail", "rack=r3", "--profile", "quick"), 2, "'fast', 'balanced', 'conservative'"),
        (("--fail", "rack=r3", "--set", "lease.kil=4s"), 2, "did you mean 'kill'?"),
        (("--fail", "rack=r3", "--set", "detection.hung_after=40s"), 2, "= 32.64s"),
        (("--fail", "rack=r3", "--svg", "nowhere/a.svg"), 2, "name a file in a directory"),
        ((), 2, "--fail: is missing"),
    ],
)
def test_a_wrong_question_is_answered_with_the_way_out(
    argv: tuple[str, ...],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["simulate", "--inventory", "examples/three-racks.yaml", *argv]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err


def test_a_policy_as_if_counts_before_the_inventory_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = (
        (FOLDER / "small.yaml")
        .read_text()
        .replace("name: db, on: h1, memory: 8GiB", "name: db, on: h1, memory: 60GiB")
    )
    Path("full.yaml").write_text(full)
    question = ["simulate", "--inventory", "full.yaml", "--fail", "host=h2"]
    assert main(question) == 2
    assert "the VMs on h1 need 68GiB, and it has 64GiB" in capsys.readouterr().err
    assert main([*question, "--set", "recovery.memory_overcommit_percent=150"]) == 0
    assert "replica\treturns" in capsys.readouterr().out


def test_wrong_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bytes.yaml").write_bytes(b"\xff\xfe")
    for name, code, told in (
        ("none.yaml", 3, "there is no file none.yaml"),
        (".", 2, ". is a directory"),
        ("bytes.yaml", 2, "is not UTF-8 text"),
    ):
        assert main(["simulate", "--inventory", name, "--fail", "host=h1"]) == code
        assert told in capsys.readouterr().err
