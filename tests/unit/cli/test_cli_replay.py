"""`virtha replay`: what it shows, and how it ends, on journals that are whole, damaged, foreign, newer, or different."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import yaml
from cli_fake_api import Ran

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from journalled_play import confirmed_death, header

from virtha.cli import replay as replay_command
from virtha.engine.engine import Engine
from virtha.engine.events import Decision, EngineEvent, StartCommand
from virtha.engine.journal import MAGIC, SegmentReader, SegmentWriter
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.model.ids import Term
from virtha.model.policy import Policy
from virtha.model.time import Millis

pytestmark = pytest.mark.req("X2")

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def story() -> list[bytes]:
    """node1.example dies, ada.example confirms it, its VMs run elsewhere. Two segments."""
    return confirmed_death()


@pytest.fixture
def ring(tmp_path: Path, story: list[bytes]) -> Path:
    directory = tmp_path / "ring"
    directory.mkdir()
    for number, segment in enumerate(story, 1):
        (directory / f"{number:08d}.journal").write_bytes(segment)
    return directory


@pytest.fixture
def first(ring: Path) -> Path:
    return ring / "00000001.journal"


@pytest.fixture
def timid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that starts nothing."""
    real = Engine.step

    def step(self: Engine, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        decision = real(self, now, events)
        kept = tuple(one for one in decision.commands if not isinstance(one, StartCommand))
        return msgspec.structs.replace(decision, commands=kept)

    monkeypatch.setattr(Engine, "step", step)


# What it shows


def test_a_ring_that_decides_the_same_ends_with_0(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring))
    assert ran.code == 0, ran.err
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert rows[0] == ["", "time", "turn", "kind", "what", "about", "detail"]
    assert all(row[0] == "" for row in rows[1:]), "nothing is marked"
    what = [row[4] for row in rows]
    for code in ("host.suspected", "host.judged_dead", "host.proven_dead", "vm.recovered", "start"):
        assert code in what, code
    started = next(row for row in rows if row[4] == "start")
    assert started[5].endswith(".example") and "proofs: operator" in started[6]
    assert "decided the same" in ran.err and "2 segments" in ran.err
    assert "00000002.journal: cluster c1, term 1, written by virtha 0.1.0" in ran.err


def test_one_segment_alone(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring / "00000002.journal"))
    assert ran.code == 0 and "in 1 segments" in ran.err


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_all_of_it(
    run: Run, ring: Path, form: str, read: Callable[[str], dict[str, list[dict[str, object]]]]
) -> None:
    ran = run("replay", str(ring), "-o", form)
    assert ran.code == 0, ran.err
    one, two = read(ran.out)["segments"]
    assert (one["differ"], one["fault"], one["failure"]) == (0, None, "")
    assert isinstance(one["header"], dict) and one["header"]["cluster_id"] == "c1"
    assert isinstance(two["header"], dict) and two["header"]["follows"] is True
    shown = one["shown"]
    assert isinstance(shown, list)
    codes = [notice["code"] for turn in shown for notice in turn["notices"]]
    assert "host.proven_dead" in codes
    assert all(turn["difference"] is None for turn in shown)


def test_explain_a_vm_and_a_host(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring), "--explain", "vm/db.example")
    assert ran.code == 0, ran.err
    states = [line.split("\t")[2] for line in ran.out.splitlines()]
    assert states[0] == "state"
    assert states.index("lost") < len(states) - 1 and states[-1] == "settled"
    lost = next(line for line in ran.out.splitlines() if "\tlost\t" in line)
    assert "recovery.waiting.proof" in lost and "node1.example" in lost
    ran = run("replay", str(ring), "--explain", "host/node1.example", "-o", "json")
    told = [one for part in json.loads(ran.out)["segments"] for one in part["shown"]]
    assert [one["state"] for one in told].count("dead_proven") == 1, "once, over two segments"
    assert told[-1]["reasons"][0]["code"] == "host.dead.proven"


def test_until_ends_there(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring), "--until", "3s", "-o", "json")
    assert ran.code == 0
    (only,) = json.loads(ran.out)["segments"]
    began = 1_000_000_000
    assert only["turns"] == 30
    assert all(turn["now_ms"] <= began + 3_000 for turn in only["shown"])
    same = run("replay", str(ring), "--until", "1970-01-12T13:46:43Z", "-o", "json")
    assert json.loads(same.out)["segments"][0]["turns"] == 30


def test_quiet_says_nothing(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring), "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_long_journal_says_how_far_it_is(
    run: Run, ring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_command._Lines, "every_s", 0.0)
    ran = run("replay", str(ring))
    percents = [int(line.split()[1]) for line in ran.err.splitlines() if "replayed" in line[:8]]
    assert percents == sorted(percents) and percents[-1] >= 95 and len(percents) > 100


# Differences


@pytest.mark.usefixtures("timid")
def test_what_this_version_decides_differently_is_marked(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring))
    assert ran.code == 1
    marked = [line.split("\t") for line in ran.out.splitlines()[1:] if line[:1] in "-+"]
    assert {(row[0], row[3], row[4]) for row in marked} == {("-", "command", "start")}
    assert "turns are decided differently" in ran.err
    assert "problem.journal.differs" in ran.err


@pytest.mark.usefixtures("timid")
def test_differences_are_data_for_programs(run: Run, ring: Path) -> None:
    ran = run("replay", str(ring), "-o", "json")
    assert ran.code == 1
    one = json.loads(ran.out)["segments"][0]
    different = [turn for turn in one["shown"] if turn["difference"]]
    assert len(different) == one["differ"] > 0
    recorded = different[0]["difference"]["commands_recorded"]
    assert {command["type"] for command in recorded} == {"start"}


def test_an_engine_that_breaks_off_is_told(
    run: Run, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Engine, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        raise AssertionError("two starts of one VM")

    monkeypatch.setattr(Engine, "step", broken)
    ran = run("replay", str(first))
    assert ran.code == 1
    assert f"{first}: the engine breaks off: AssertionError: two starts of one VM" in ran.err


# Bad input


@pytest.mark.bad_input("truncated journal", story=True)
def test_a_truncated_journal_is_replayed_up_to_there(run: Run, first: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(data[:-10])
    ran = run("replay", str(first))
    assert ran.code == 1
    assert "vm.recovered" in ran.out, "what stands before it is shown"
    last = list(SegmentReader(data).turns())[-1]
    assert f"{first}, byte " in ran.err and "truncated" in ran.err
    assert int(ran.err.split("byte ")[1].split(":")[0]) > last.offset
    assert "problem.journal.damaged" in ran.err


@pytest.mark.bad_input("damaged journal", story=True)
def test_a_damaged_segment_ends_alone_the_next_is_replayed(run: Run, ring: Path) -> None:
    first = ring / "00000001.journal"
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(bytes(data))
    ran = run("replay", str(ring), "-o", "json")
    assert ran.code == 1
    one, two = json.loads(ran.out)["segments"]
    assert one["fault"]["kind"] == "damaged" and one["fault"]["offset"] <= len(data) // 2
    assert two["fault"] is None and two["turns"] > 0
    assert f"{first}, byte {one['fault']['offset']}: damaged" in ran.err


@pytest.mark.bad_input("newer journal", story=True)
def test_a_newer_journal_names_the_version_that_reads_it(run: Run, first: Path) -> None:
    engine = Engine(
        policy=Policy(), records=EngineRecords(cluster=ClusterRecord(term=Term(1))), now=Millis(1)
    )
    later = msgspec.structs.replace(header(program="9.4.0"), format=7)
    first.write_bytes(SegmentWriter().begin(later, engine.snapshot()))
    ran = run("replay", str(first))
    assert ran.code == 2
    assert f"{first}, byte {len(MAGIC)}: newer: it has format 7, written by virtha 9.4.0" in ran.err
    assert "problem.journal.newer" in ran.err and "fix: replay it with the version" in ran.err


@pytest.mark.bad_input("foreign journal", story=True)
@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"hello\n" * 50])
def test_another_file_is_no_journal(run: Run, first: Path, data: bytes) -> None:
    first.write_bytes(data)
    ran = run("replay", str(first))
    assert ran.code == 2
    assert f"{first}, byte 0: foreign" in ran.err and "virtha agent replay" in ran.err
    assert "problem.journal.foreign" in ran.err


def test_a_segment_that_went_meanwhile_is_no_error(
    run: Run, ring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = replay_command.read_segment

    def read(path: Path) -> SegmentReader:
        if path.name == "00000001.journal":
            path.unlink()
        return real(path)

    monkeypatch.setattr(replay_command, "read_segment", read)
    ran = run("replay", str(ring))
    assert ran.code == 0 and "went out of the ring" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--explain", "web1"], 2, "allowed: vm/NAME, host/NAME"),
        (["--explain", "vm/"], 2, "names nothing"),
        (["--explain", "vm/db2.exampel"], 3, "did you mean vm/db2.example?"),
        (["--until", "soon"], 2, "a duration after the beginning"),
        (["--until", "2026-13-31T12:00:00Z"], 2, "is not a time"),
    ],
)
def test_words_that_name_nothing(
    run: Run, ring: Path, arguments: list[str], code: int, says: str
) -> None:
    ran = run("replay", str(ring), *arguments)
    assert ran.code == code and says in ran.err


def test_where_nothing_is(run: Run, tmp_path: Path) -> None:
    ran = run("replay", str(tmp_path / "nowhere"))
    assert ran.code == 3 and "there is no" in ran.err
    empty = tmp_path / "empty"
    empty.mkdir()
    ran = run("replay", str(empty))
    assert ran.code == 3 and "has no segments" in ran.err and "00000001.journal" in ran.err


# Redaction


def test_redacted_copies_replay_and_name_nobody(run: Run, ring: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    ran = run("replay", str(ring), "--redact", str(out))
    assert ran.code == 0 and "2 segments" in ran.err
    copies = sorted(out.iterdir())
    assert [path.name for path in copies] == [path.name for path in sorted(ring.iterdir())]
    assert all(b".example" not in path.read_bytes() for path in copies)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in copies)
    assert run("replay", str(out)).code == 0
    again = run("replay", str(ring), "--redact", str(out))
    assert again.code == 1 and "is there already" in again.err


def test_redacting_what_is_no_journal_writes_nothing(run: Run, first: Path, tmp_path: Path) -> None:
    first.write_bytes(b"hello")
    ran = run("replay", str(first), "--redact", str(tmp_path / "report"))
    assert ran.code == 2 and "problem.journal.foreign" in ran.err
    assert list((tmp_path / "report").iterdir()) == []


# As a user meets it

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "replay.md"


def test_the_guide_shows_what_is_shown(run: Run, ring: Path, rewrite: bool) -> None:
    shown = run("replay", str(ring), "--explain", "vm/db.example", "-o", "table").out
    block = "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    text = GUIDE.read_text(encoding="utf-8")
    before, fence, rest = text.partition("```\n")
    _, _, after = rest.partition("```\n")
    wanted = f"{before}{fence}{block}{fence}{after}"
    if rewrite:
        GUIDE.write_text(wanted, encoding="utf-8")
    assert text == wanted or rewrite, "run with --rewrite, and look at what it wrote"
    assert "recovery.waiting.proof" in block


def test_the_program_says_the_same_under_every_hash_seed(ring: Path) -> None:
    said = [
        subprocess.run(
            [sys.executable, "-m", "virtha.cli.main", "replay", str(ring), "-o", "json"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "7")
    ]
    assert said[0] == said[1] and b"vm.recovered" in said[0]


def test_no_part_of_the_server_is_needed() -> None:
    """A journal is looked at elsewhere, too: where only the command line is installed."""
    program = (
        "import sys, virtha.cli.replay\n"
        "print([name for name in ('sqlalchemy', 'litestar', 'libvirt') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert ran.stdout.strip() == b"[]"
