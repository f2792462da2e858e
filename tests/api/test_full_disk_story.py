"""A server whose disk is really full: a small file system of its own, seen by that process only."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import environment
from story import Story, refused, telling

from virtha.model.facts import Happened

pytestmark = [
    pytest.mark.lab,  # mounting needs root
    pytest.mark.req("W7"),
    pytest.mark.bad_input("full disk", story=True),
]

STATE = "var/lib/virtha/server"
# In a mount namespace of its own: the state moves to 16 MiB of tmpfs, then the server takes over.
SMALL_DISK = (
    "set -e; state=$1; shift; cp -a $state $state.copy; mount -t tmpfs -o size=16m none $state; "
    'cp -a $state.copy/. $state/; exec "$@"'
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("small")
    state = directory / "server" / STATE
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-c", SMALL_DISK, "sh")
    with telling(directory, prefix=(*private, str(state))) as story:
        yield story


@contextlib.contextmanager
def full(story: Story) -> Iterator[None]:
    """Until the end not a byte is left where the server keeps its state."""
    process = story.server.process.pid
    filler = Path(f"/proc/{process}/root{story.server.root}/{STATE}/filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))
    try:
        yield
    finally:
        filler.unlink()


def test_commands_are_refused_reading_goes_on_and_facts_wait(small: Story) -> None:
    made: list[str] = []
    with full(small):
        for number in range(2_000):
            words = ("cluster", "create", f"c{number}", "--description", "x" * 900)
            done = small.run(*words)
            if done.returncode != 0:
                break
            made.append(f"c{number}")
        refused(
            done,
            5,
            "problem.disk.full",
            "no space left for the database; nothing was changed",
            "fix: free space on the server's disk",
        )
        assert set(small.ok("cluster", "list", "-q").split()) == {"default", *made}
        sequence = small.host.tell(Happened(code="host.libvirt.back", fields={"name": "full"}))
        refused(small.run("vm", "start", "web1"), 5, "problem.disk.full")
        assert small.host.acknowledged < sequence
        assert "down" in small.ok("vm", "list")
    small.host.wait_acknowledged(sequence)
    told = [one["fields"]["name"] for one in small.events("host.libvirt.back")]
    assert told.count("full") == 1
    small.ok(*words)
    assert set(small.ok("cluster", "list", "-q").split()) == {"default", *made, words[2]}
    small.ok("vm", "start", "web1")


def test_a_backup_for_which_there_is_no_room_is_refused(small: Story, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar.gz"
    command = [
        *("nsenter", "--target", str(small.server.process.pid), "--mount"),
        *(sys.executable, "-m", "virtha.cli.main", "server", "backup", str(file)),
        *("--root", str(small.server.root)),
    ]

    def back_up() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=200,
            env=environment(),
            cwd=Path(__file__).parents[2],
        )

    with full(small):
        done = back_up()
        assert done.returncode == 5, done.stderr
        assert "code: problem.disk.full" in done.stderr and "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []
    done = back_up()
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 0


# A root of its own on 4 MiB of tmpfs: set up as far as the words say, filled, then the words that must fail.
FILLED = (
    "set -e; root=$1; shift; mount -t tmpfs -o size=4m none $root; "
    'if [ "$1" = run ]; then python=$2 sh -c "$3"; fi; shift 3; '
    'dd if=/dev/zero of=$root/filler bs=1k 2>/dev/null || true; exec "$@"'
)


@pytest.mark.parametrize("verb", ["init", "run", "check"])
def test_a_server_whose_disk_is_full_before_it_begins_says_so(tmp_path: Path, verb: str) -> None:
    """Not `disk I/O error`, which is what SQLite makes of it."""
    program = (sys.executable, "-m", "virtha.cli.main", "server")
    ready = f"{' '.join((*program, 'init'))} --root {tmp_path} --listen 127.0.0.1:0 >/dev/null"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", FILLED, "sh"),
            *(str(tmp_path), "init" if verb == "init" else "run", sys.executable, ready),
            *(*program, verb, "--root", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )
    assert "Traceback" not in done.stderr
    if verb == "check":
        assert done.returncode == 1, done.stderr
        assert "no space left for the database" in done.stdout
        assert "free space on the server's disk" in done.stdout
        return
    assert done.returncode == 5, done.stderr
    assert "code: problem.disk.full" in done.stderr
    assert "no space left" in done.stderr
    assert "fix: free space" in done.stderr
