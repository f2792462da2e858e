"""Chaos itself, for one round of each of two seeds: the long runs are `make chaos`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(1_800)]
DIRECTORY = "/var/lib/virtha-chaos-test"


@pytest.mark.req("F1", "F2", "F9", "X2")
@pytest.mark.parametrize("words", [["--seed", "1"], ["--seed", "2", "--no-leases"]])
def test_a_round_of_chaos_has_one_writer_loses_nothing_and_replays(
    words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "virtha.lab.chaos", "--minutes", "0.1", "--dir", DIRECTORY]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1_700,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-3_000:]
    told = json.loads(done.stdout.splitlines()[-1])["chaos"]
    assert told["rounds"] == 1
    assert told["strikes"], "something was struck"
    assert told["writes"] > 0 and told["records_acknowledged"] > 0
    assert told["replayed_turns"] > 0
    for key in ("violations", "records_lost", "vms_lost", "other_findings", "replay_differs"):
        assert told[key] == 0, key
    struck = (tmp_path / "out/faults.jsonl").read_text().splitlines()
    assert any("kind" in json.loads(line) for line in struck)
    written = (tmp_path / "out/writes.log").read_text().splitlines()
    assert len(written) == told["writes"]
