"""``make verify``: what succeeded is not run again, what failed or was interrupted is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from loaded_script import ROOT, load_script


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = load_script("verify")
    monkeypatch.setattr(script, "LOGS", tmp_path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    (tmp_path / "code.py").write_text("as it is\n")
    return script


def python(verify: ModuleType, name: str, code: str, **environment: str) -> Any:
    command = (sys.executable, "-c", code)
    return verify.Step(name=name, command=command, environment=environment, places=["code.py"])


def codes(verification: Any) -> dict[str, tuple[int, bool]]:
    return {name: (each.code, each.earlier) for name, each in verification.outcomes.items()}


def test_steps_that_succeeded_are_not_run_again(
    verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    good = python(verify, "good", f"{count}; import os; print(os.environ['WORD'])", WORD="heard")
    bad = python(verify, "bad", f"{count}; raise SystemExit(3)")
    first = verify.Verification()
    first.run([good, bad], rank=0)
    assert codes(first) == {"good": (0, False), "bad": (3, False)}
    assert (tmp_path / "good.log").read_text() == "heard\n"
    again = verify.Verification()
    again.run([good, bad], rank=0)
    assert codes(again) == {"good": (0, True), "bad": (3, False)}
    other = python(verify, "good", count, WORD="another")
    again.run([other], rank=0)
    assert codes(again)["good"] == (0, False), "it asks for something else now"
    (tmp_path / "code.py").write_text("changed\n")
    changed = verify.Verification()
    changed.run([good], rank=0)
    assert codes(changed) == {"good": (0, False)}
    assert (tmp_path / "runs").read_text() == "x" * 5
    capsys.readouterr()
    assert verify.report(again.outcomes) == 1
    *_, named, line = capsys.readouterr().out.splitlines()
    assert named == "==> failed: bad (.stamp/verify/bad.log)"
    assert json.loads(line)["failed"] == ["bad"]
    assert verify.report(changed.outcomes) == 0


def test_an_interrupt_ends_what_runs_and_begins_nothing(verify: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "runs")
    waits = f"open({str(tmp_path / 'runs')!r}, 'w').close(); import signal; signal.pause()"
    verification = verify.Verification()
    steps = [python(verify, "long", waits), python(verify, "next", "")]
    lane = Thread(target=verification.run, args=(steps,), kwargs={"rank": 0})
    # As its main does: in the background of a shell, as under `make test`, its steps would ignore an interrupt.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        lane.start()
        with (tmp_path / "runs").open():
            pass  # it runs
        verification.interrupt()
        lane.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert verification.outcomes == {}
    assert codes(verify.Verification()) == {}


def test_a_step_that_does_not_exist_is_refused_with_the_way_to_find_its_name() -> None:
    asked = subprocess.run(
        (sys.executable, "scripts/verify.py", "--only", "nothing"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 2
    assert "no step nothing; --list prints all names" in asked.stderr


def test_what_decides_a_run_is_part_of_its_name(verify: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "virtha" / "engine.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    before = verify.digest(["virtha"])
    (source.parent / "__pycache__").mkdir()
    (source.parent / "__pycache__" / "engine.pyc").write_bytes(b"compiled")
    assert verify.digest(["virtha"]) == before
    source.write_text("a = 2\n")
    assert verify.digest(["virtha"]) != before


def test_a_changed_page_is_followed_anew() -> None:
    """Tests follow pages of the guide by their words: its success of before says nothing of another page."""
    script = load_script("verify")
    steps = {step.name: step for step in script.lab_steps()}
    assert "docs/guide" in steps["lab-lab_guide"].places
    named = {place for step in steps.values() for place in step.places}
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_a_test_that_another_imports_is_part_of_its_step(
    verify: ModuleType, tmp_path: Path
) -> None:
    """By its own words, by way of what tests share, and by way of another test."""
    said = {
        "api/test_fuzz.py": "from filled import fill\nfrom test_requests import send\n",
        "api/filled.py": "    import test_routes\n",
        "api/test_requests.py": "from test_words import ROOT\n",
        "api/test_routes.py": "",
        "unit/test_words.py": "",
        "unit/test_other.py": "import test_fuzz\n",
        "unit/conftest.py": "from test_rules import rule\n",
        "unit/test_rules.py": "",
        "mutants/test_bug.py": "",
        "mutants/bug.patch": "",
        "api/words.txt": "",
    }
    for name, text in said.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)

    def state() -> str:
        found: str = verify.pytest_step("fuzz", ["tests/api/test_fuzz.py"]).state
        return found

    decides = []
    for name, text in said.items():
        before = state()
        (tmp_path / "tests" / name).write_text(f"{text}# changed\n")
        if state() != before:
            decides.append(name)
    assert {*said} - {*decides} == {
        "unit/test_other.py",
        "mutants/test_bug.py",
        "mutants/bug.patch",
    }


def test_the_fuzz_of_the_facade_is_run_anew_with_what_its_requests_are_made_of() -> None:
    script = load_script("verify")
    steps = {step.name: step for step in script.computing_steps("1..2")}
    needed = {f"tests/api/test_{name}.py" for name in ("ovirt_fuzz", "ovirt_requests", "routes")}
    places = {*steps["facade-fuzz-10-minutes"].places}
    assert needed <= places and "tests/api/test_problems.py" not in places


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_was_not_run_is_no_success(
    verify: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the lane beside breaks: nobody sees that but by what it left out."""

    def breaks(*_asked: object) -> None:
        raise OSError("no log can be written")

    step = python(verify, "beside", "")
    monkeypatch.setattr(verify, "lab_steps", lambda: [])
    monkeypatch.setattr(verify, "computing_steps", lambda _seeds: [step])
    monkeypatch.setattr(verify, "waiting_steps", lambda: [])
    monkeypatch.setattr(verify, "benchmarks", lambda: [])
    monkeypatch.setattr(verify.Verification, "_run", breaks)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert verify.main([]) == 1
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == ["beside"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(
    verify: ModuleType, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The whole program, with a step that interrupts it; begun in a shell's background, where SIGINT is ignored."""
    kills = python(verify, "stop", f"import os; os.kill({os.getpid()}, {number:d})")
    steps = [python(verify, "one", ""), kills]
    monkeypatch.setattr(verify, "lab_steps", lambda: steps)
    monkeypatch.setattr(verify, "waiting_steps", lambda: [python(verify, "beside", "")])
    monkeypatch.setattr(verify, "computing_steps", lambda _seeds: [])
    monkeypatch.setattr(verify, "benchmarks", lambda: [python(verify, "last", "")])
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert verify.main([]) == 130
        steps[1] = python(verify, "stop", "")
        assert verify.main([]) == 0
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_two_hours_of_chaos_come_after_the_proof_that_it_can_fail() -> None:
    script = load_script("verify")
    steps = {step.name: step for step in script.lab_steps()}
    chaos = [name for name in steps if name.startswith("chaos-")]
    assert chaos[0] == "chaos-oracle"
    runs = [steps[name].command for name in chaos[1:]]
    options = [dict(zip(run[3::2], run[4::2], strict=True)) for run in runs]
    assert sum(float(one["--minutes"]) for one in options) >= 120
    assert len({one["--seed"] for one in options}) == len(options) == 4
    for name in chaos:
        assert all((ROOT / place).exists() for place in steps[name].places), name
        assert steps[name].state
