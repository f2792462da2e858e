"""`virtha simulate` with a story or with seeds: what it prints, its exit codes, its files, and what it refuses."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cli_fake_api import Ran

from virtha.cli.options import Options
from virtha.cli.run_journal import RunJournal, code_digest
from virtha.cli.simulate_report import write_picture
from virtha.cli.simulate_swarm import Seeds, parse_seeds, rare_kinds, shares, show_swarm
from virtha.model.errors import Failed, InvalidInput
from virtha.scenario.language import parse
from virtha.sim.swarm import SEEN, WorldResult
from virtha.sim.swarm_ceph import CEPH_KINDS
from virtha.sim.swarm_kinds import KINDS

Run = Callable[..., Ran]
SCENARIOS = Path(__file__).parents[2] / "scenarios"
HUNG = SCENARIOS / "host-hangs-thaws-after-fence.txt"


def write(folder: Path, text: str) -> Path:
    path = folder / "story.txt"
    path.write_text(text, encoding="utf-8")
    return path


# One story


@pytest.mark.req("X3")
def test_a_story_is_played_and_compared(run: Run) -> None:
    ran = run("simulate", str(HUNG))
    assert ran.code == 0, ran.err
    assert "web vm.recovered" in ran.out
    assert "as the file expects" in ran.err


def test_another_outcome_is_a_difference_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    text = HUNG.read_text().replace("runs_on=h2", "runs_on=h3")
    ran = run("simulate", str(write(tmp_path, text)))
    assert ran.code == 1
    assert "-end web running runs_on=h3" in ran.out
    assert "+end web running runs_on=h2" in ran.out
    assert "otherwise than the file expects" in ran.err


def test_a_story_without_an_expectation_just_tells_its_outcome(run: Run, tmp_path: Path) -> None:
    ran = run("simulate", str(write(tmp_path, HUNG.read_text().partition("----")[0])))
    assert ran.code == 0
    assert "end web running runs_on=h2" in ran.out


def test_a_broken_rule_is_exit_code_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virtha.sim.checkers import Violation
    from virtha.sim.truth import Truth

    def broken(_truth: Truth) -> None:
        raise Violation("two writers")

    monkeypatch.setattr(Truth, "at_end", broken)
    for options in ((), ("--timeline",), ("--svg", str(tmp_path / "out.svg"))):
        ran = run("simulate", str(HUNG), *options)
        assert ran.code == 1
        assert "a rule is broken: two writers" in ran.err


@pytest.mark.req("X1")
def test_why_a_vm_is_down_at_a_moment(run: Run) -> None:
    ran = run("simulate", str(HUNG), "--explain", "vm/web@22s")
    assert ran.code == 0
    assert "At 22s web stands still on h1, which hangs." in ran.out
    assert "(recovery.waiting.proof)" in ran.out
    assert "recovered" not in ran.out, "that is later"
    later = json.loads(run("simulate", str(HUNG), "--explain", "vm/web", "-o", "json").out)
    assert later["state"] == "runs on h2"
    assert later["at_ms"] == 80_000
    assert "vm.recovered" in [line["code"] for line in later["story"]]


@pytest.mark.req("X1")
def test_a_hosts_story_tells_what_was_true_and_what_the_server_made_of_it(run: Run) -> None:
    ran = run("simulate", str(HUNG), "--explain", "host/h1@30s")
    assert "10s  hangs" in ran.out
    assert "the server: suspect" in ran.out
    assert "h1 is proven dead by power_off" in ran.out
    assert "At 30s h1 has no power." in ran.out


def test_the_picture_as_text_has_a_lane_for_each(run: Run) -> None:
    out = run("simulate", str(HUNG), "--timeline").out
    lanes = {line.split()[0]: line for line in out.splitlines() if line[:1].isalpha()}
    assert {"story", "h1", "h2", "h3", "web"} <= set(lanes)
    assert "hhh" in out and "xxx" in lanes["h1"] + out
    assert "111" in lanes["web"] and "222" in lanes["web"]
    assert "10s  hang h1" in out


def test_the_picture_as_svg(run: Run, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    path = tmp_path / "out.svg"
    ran = run("simulate", str(HUNG), "--svg", str(path))
    assert ran.code == 0 and ran.out == ""
    titles = [
        each.text or "" for each in ElementTree.parse(path).iter() if each.tag.endswith("title")
    ]
    assert any("waits for proof" in text for text in titles)
    assert any("power_off" in text or "proven dead" in text for text in titles)


@pytest.mark.bad_input("broken story", story=True)
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("power-cut h9", "no host 'h9'"),
        ("start db", "no VM 'db'"),
        ("explode h1", "'explode' is no command"),
        ("advance", "advance with 0 words"),
        ("advance soon", "soon"),
    ],
)
def test_a_mistake_in_a_story_names_file_and_line(
    run: Run, tmp_path: Path, line: str, told: str
) -> None:
    path = write(tmp_path, f"# A story.\nhosts h1\n{line}\n")
    for view in ((), ("--timeline",)):
        ran = run("simulate", str(path), *view)
        assert ran.code == 2
        assert f"{path}:3: " in ran.err or "advance" in ran.err
        assert told in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.bad_input("broken story", story=True)
def test_what_is_no_story(run: Run, tmp_path: Path) -> None:
    assert run("simulate", str(tmp_path / "none.txt")).code == 3
    assert "is a directory" in run("simulate", str(tmp_path)).err
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in run("simulate", str(binary)).err
    ran = run("simulate", str(write(tmp_path, "")))
    assert ran.code == 2 and "begins with its story" in ran.err


@pytest.mark.bad_input("broken story", "unwritable picture", story=True)
@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--explain", "vm/wob"), 3, "web"),
        (("--explain", "web"), 2, "vm/NAME"),
        (("--explain", "vm/web@soon"), 2, "soon"),
        (("--explain", "vm/web", "--timeline"), 2, "two views"),
        (("--svg", "/nowhere/at/all/out.svg"), 2, "can't be written there"),
        (("--svg", "/"), 2, "can't be written there"),
        (("--fail", "host=h1"), 2, "--fail goes with --inventory"),
        (("--jobs", "2"), 2, "--jobs goes with --seed"),
        (("--seed", "1"), 2, "at once"),
    ],
)
def test_options_that_make_no_sense(
    run: Run, options: tuple[str, ...], code: int, told: str
) -> None:
    ran = run("simulate", str(HUNG), *options)
    assert ran.code == code
    assert told in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.bad_input("unwritable picture", story=True)
def test_a_picture_that_can_not_be_written(run: Run, tmp_path: Path) -> None:
    ran = run("simulate", str(HUNG), "--svg", "/proc/out.svg")
    assert ran.code == 1
    assert "/proc/out.svg can't be written" in ran.err


@pytest.mark.bad_input("broken story", "wrong seeds", "unwritable picture")
def test_each_part_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 2: 'explode' is no command"):
        parse("# A story.\nexplode h1\n")
    with pytest.raises(InvalidInput, match=r"ends before it begins; write 1\.\.5"):
        parse_seeds("5..1")
    with pytest.raises(Failed, match="can't be written"):
        write_picture(Options(), tmp_path / "nowhere" / "out.svg", "<svg/>")


def test_nothing_asked_for(run: Run) -> None:
    ran = run("simulate")
    assert ran.code == 2 and "nothing is asked for" in ran.err


# Many worlds


@pytest.mark.req("X3")
def test_worlds_from_seeds_and_their_digests(run: Run, tmp_path: Path) -> None:
    def ask(jobs: int) -> dict[str, object]:
        out = run(
            "simulate", "--seed", "1..3", "--jobs", str(jobs), "--digest", "-o", "json",
            "--save", str(tmp_path / "failures"),
        ).out  # fmt: skip
        data: dict[str, object] = json.loads(out)
        return data

    one, two = ask(1), ask(2)
    assert one["worlds"] == 3
    assert isinstance(one["virtual_seconds_min"], int) and one["virtual_seconds_min"] >= 600
    assert one["digests"] == two["digests"]
    assert set(one["shares"]) >= {"a fence", "a recovery", "a contradiction", "power cut"}


@pytest.mark.bad_input("wrong seeds", story=True)
@pytest.mark.parametrize(
    "text", ["5..1", "x", "1..", "..3", "-1", "1...3", "1..x", "9" * 30, "1..99999999999"]
)
def test_ranges_that_are_none(run: Run, text: str) -> None:
    ran = run("simulate", f"--seed={text}")
    assert ran.code == 2
    assert "--seed" in ran.err and "Traceback" not in ran.err


def test_a_range() -> None:
    assert parse_seeds("17") == Seeds(17, 17)
    assert parse_seeds("1..20000").worlds == 20_000


@pytest.mark.bad_input("wrong seeds", story=True)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--jobs", "0"), "--jobs"),
        (("--jobs", "100000"), "--jobs"),
        (("--time", "soon"), "--time"),
        (("--resume", "/nowhere/at/all/file"), "there is no directory"),
        (("--resume", "/"), "is a directory"),
        (("--timeline",), "shows one story"),
        (("--fail", "host=h1"), "goes with --inventory"),
    ],
)
def test_swarm_options_that_make_no_sense(run: Run, options: tuple[str, ...], told: str) -> None:
    ran = run("simulate", "--seed", "1..2", *options)
    assert ran.code == 2
    assert told in ran.err


def test_what_was_played_is_not_played_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.journal"
    command = ("simulate", "--seed", "1..3", "--jobs", "1", "--resume", str(path), "-o", "json")
    first = json.loads(run(*command).out)
    # Killed in the middle of a line: that world is played again, the others are not.
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    played: list[int] = []
    import virtha.cli.simulate_swarm as module

    real = module.run_seed

    def count(seed: int) -> WorldResult:
        played.append(seed)
        return real(seed)

    monkeypatch.setattr(module, "run_seed", count)
    second = json.loads(run(*command).out)
    assert len(played) == 1
    assert {**second, "seconds": 0} == {**first, "seconds": 0}
    assert path.read_bytes() == data


@pytest.mark.bad_input("foreign run file", story=True)
def test_a_resume_file_that_does_not_fit(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(b'{"virtha_run":1,"what":"seeds 1..9","version":"x","code":"y"}\n')
    ran = run("simulate", "--seed", "1..2", "--resume", str(path))
    assert ran.code == 2 and "is of seeds 1..9, not of seeds 1..2" in ran.err
    ran = run("simulate", "--seed", "1..9", "--resume", str(path))
    assert ran.code == 2 and "was written by virtha x" in ran.err
    for other in (b"hello\n", b"hello", b"{}\n", b"[]\n", b"\xff\n"):
        path.write_bytes(other)
        ran = run("simulate", "--seed", "1..2", "--resume", str(path))
        assert ran.code == 2 and "is no file of such a run" in ran.err
        assert path.read_bytes() == other, "it is somebody else's"


@pytest.mark.bad_input("foreign run file")
def test_a_resume_file_with_nonsense_inside(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    journal = RunJournal(path, what="seeds 1..2", code="c")
    journal.add(b"{}")
    journal.close()
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    with pytest.raises(InvalidInput, match="line 3"):
        RunJournal(path, what="seeds 1..2", code="c")


@pytest.mark.bad_input("foreign run file", story=True)
@pytest.mark.parametrize("line", [b"{}", b"[1]", b'{"seed":"one"}', b"null"])
def test_a_resume_file_whose_lines_are_of_something_else(
    line: bytes, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "run.journal"
    journal = RunJournal(path, what="seeds 1..2", code=code_digest())
    journal.add(line)
    journal.close()
    before = path.read_bytes()
    ran = run("simulate", "--seed", "1..2", "--jobs", "1", "--resume", str(path))
    assert ran.code == 2 and "--resume" in ran.err and "line 2: " in ran.err
    assert path.read_bytes() == before


def test_ctrl_c_keeps_what_was_played_and_leaves_no_process(tmp_path: Path) -> None:
    """The terminal tells the whole group; the same command goes on."""
    path = tmp_path / "run.journal"
    command = [
        sys.executable, "-m", "virtha.cli.main", "simulate", "--seed", "1..4000", "--jobs", "2",
        "--resume", str(path), "--save", str(tmp_path / "failures"),
    ]  # fmt: skip
    # A shell's background, where `make test` runs this, ignores the key, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (130, "")
    played = path.read_bytes().count(b"\n") - 1
    assert f"stopped after {played} worlds\ngo on with the same command: {path}" in err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        while True:  # the last one of its group may be a moment behind
            os.killpg(process.pid, 0)
            time.sleep(0.02)


@pytest.mark.bad_input("foreign run file", story=True)
def test_one_run_at_a_time(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    journal = RunJournal(path, what="seeds 1..2", code="c")
    ran = run("simulate", "--seed", "1..2", "--resume", str(path))
    journal.close()
    assert ran.code == 1 and "another run writes" in ran.err


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """kill -9 of the whole process group, as a machine that goes down would."""
    path = tmp_path / "run.journal"
    command = [
        sys.executable, "-m", "virtha.cli.main", "simulate", "--seed", "1..4", "--jobs", "2",
        "--resume", str(path), "-o", "json", "--save", str(tmp_path / "failures"),
    ]  # fmt: skip
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not path.exists() or path.read_bytes().count(b"\n") < 2:
            assert process.poll() is None or path.read_bytes().count(b"\n") >= 2
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "worlds were played before" in done.stderr
    assert json.loads(done.stdout)["worlds"] == 4


@pytest.mark.req("X3")
def test_a_run_killed_at_any_byte_goes_on(tmp_path: Path) -> None:
    """Whatever is left of its file: what was whole is known, and the next line is written behind it."""
    path = tmp_path / "run.journal"
    journal = RunJournal(path, what="seeds 1..3", code="c")
    for seed in (1, 2, 3):
        journal.add(msgspec.json.encode(_result(seed, kinds=())))
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = RunJournal(path, what="seeds 1..3", code="c")
        assert len(journal.lines) == max(whole[:length].count(b"\n") - 1, 0)
        journal.add(b"{}")
        journal.close()
        assert path.read_bytes().endswith(b"}\n{}\n")


@pytest.mark.req("X3")
@pytest.mark.bad_input("full disk")
def test_a_full_disk_ends_a_run_with_all_that_was_known(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.journal"
    real, written = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{descriptor}").resolve() != path:
            return real(descriptor, data)
        written.append(data)
        if len(written) == 4:
            return real(descriptor, data[:10])
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", _result)
    command = ("simulate", "--seed", "1..5", "--jobs", "1", "--resume", str(path), "-o", "json")
    monkeypatch.setattr(os, "write", full)
    ran = run(*command)
    monkeypatch.setattr(os, "write", real)
    assert ran.code == 5
    assert f"no space left to write {path}" in ran.err and "problem.disk.full" in ran.err
    assert path.read_bytes().count(b"\n") == 3 and path.read_bytes().endswith(b"\n")
    again = run(*command)
    assert "2 of 5 worlds were played before" in again.err
    assert json.loads(again.out)["worlds"] == 5


@pytest.mark.req("X3")
@pytest.mark.bad_input("full disk")
def test_a_story_that_can_not_be_saved_ends_no_run_and_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place is a directory: for one seed until the end of the run, for the other for good."""
    save = tmp_path / "failures"
    for seed in (1, 2):
        (save / f"seed-{seed}.part").mkdir(parents=True)

    def fail(seed: int) -> WorldResult:
        if seed == 3:
            (save / "seed-1.part").rmdir()
            return _result(seed)
        return _result(seed, rule="safety", message="two writers", story=f"# Story {seed}\n")

    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", fail)
    ran = run("simulate", "--seed", "1..3", "--jobs", "1", "--save", str(save))
    assert ran.code == 1
    assert "its story can't be saved yet" in ran.err
    assert (save / "seed-1.txt").read_text() == "# Story 1\n"
    assert "seed-2.txt can't be written" in ran.err and "# Story 2" in ran.err


def test_a_story_that_an_earlier_run_did_not_save_is_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int) -> WorldResult:
        return _result(seed, rule="safety", message="two writers", story="# Story\n")

    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", fail)
    save, path = tmp_path / "failures", tmp_path / "run.journal"
    command = ("simulate", "--seed", "1..2", "--jobs", "1", "--resume", str(path))
    assert run(*command, "--save", str(save)).code == 1
    (save / "seed-2.txt").unlink()
    assert run(*command, "--save", str(save)).code == 1
    assert (save / "seed-2.txt").read_text() == "# Story\n"


def test_a_world_that_never_ends_does_not_hold_up_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(seed: int) -> WorldResult:
        while seed == 1:
            pass
        return _result(seed)

    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", endless)
    monkeypatch.setattr("virtha.cli.simulate_swarm.WORLD_S_MAX", 0.2)
    command = ("simulate", "--seed", "1..3", "--jobs", "1", "--save", str(tmp_path), "-o", "json")
    ran = run(*command)
    assert ran.code == 1
    told = json.loads(ran.out)
    assert (told["worlds"], told["broken_worlds"]) == (3, 1)
    assert "processor time" in told["failed"][0]["message"]
    assert (tmp_path / "seed-1.txt").read_text().startswith("# Seed 1 of the swarm.\nengine")


def test_a_run_that_nobody_watches_says_how_far_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", _result)
    assert "to go" not in run("simulate", "--seed", "1..3", "--jobs", "1").err
    monkeypatch.setattr("virtha.cli.simulate_swarm.TOLD_EVERY_S", 0)
    ran = run("simulate", "--seed", "1..3", "--jobs", "1")
    assert "2 of 3 worlds, 0 failed, about 1m to go" in ran.err


@pytest.mark.req("X3")
def test_a_worker_that_is_killed_ends_the_run_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    command = [
        sys.executable, "-m", "virtha.cli.main", "simulate", "--seed", "1..60", "--jobs", "2",
        "--resume", str(path), "--save", str(tmp_path / "failures"),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while not path.exists() or path.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            time.sleep(0.02)
        workers = [pid for child in _children(process.pid) for pid in _children(child)]
        os.kill(workers[0], signal.SIGKILL)
        _, told = process.communicate()
    assert process.returncode == 1
    assert "was ended from outside" in told and "--resume" in told and "Traceback" not in told


def _children(parent: int) -> list[int]:
    found = ""
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            found += f"{task.read_text()} "
    return [int(pid) for pid in found.split()]


def _result(seed: int, **changes: object) -> WorldResult:
    plain = WorldResult(
        seed=seed, virtual_ms=900_000, digest="d", kinds=tuple(kind.name for kind in (*KINDS, *CEPH_KINDS)),
        fenced=True, recovered=True, contradicted=True, proofs=("power_off", "lease", "operator"),
        seen=tuple(SEEN), reasons=("host.dead.unproven",),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def test_a_failing_world_is_exit_code_1_and_its_story_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int) -> WorldResult:
        return _result(seed, rule="safety", message="two writers", story="# Seed\nhosts h1\n")

    monkeypatch.setattr("virtha.cli.simulate_swarm.run_seed", fail)
    save = tmp_path / "failures"
    ran = run("simulate", "--seed", "7", "--jobs", "1", "--save", str(save))
    assert ran.code == 1
    assert "seed 7: safety: two writers" in ran.out
    assert (save / "seed-7.txt").read_text() == "# Seed\nhosts h1\n"


def test_a_swarm_that_hardly_meets_a_kind_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    all_kinds = [_result(seed) for seed in range(1_000)]
    assert rare_kinds(all_kinds) == []
    assert show_swarm(Options(), all_kinds, Seeds(0, 999), took_s=1, digest=False) == 0
    rest = tuple(kind.name for kind in (*KINDS[1:], *CEPH_KINDS))
    rare = [_result(seed, kinds=rest) if seed > 8 else _result(seed) for seed in range(1_000)]
    assert rare_kinds(rare) == [KINDS[0].name]
    assert shares(rare)[KINDS[0].name] == 9
    assert show_swarm(Options(), rare, Seeds(0, 999), took_s=1, digest=False) == 1
    assert f"less than 1 %: {KINDS[0].name}" in capsys.readouterr().out
    outcome = [msgspec.structs.replace(one, seen=one.seen[1:]) for one in all_kinds]
    assert rare_kinds(outcome) == [all_kinds[0].seen[0]]
    assert show_swarm(Options(), outcome, Seeds(0, 999), took_s=1, digest=False) == 0
    assert f"less than 1 %: {all_kinds[0].seen[0]}" in capsys.readouterr().out
