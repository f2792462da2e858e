"""The command driver against real scripts: word by word, bounded, believed only where it says so."""

import asyncio
import json
import os
import resource
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from virtha.drivers import bounded_program
from virtha.drivers.bounded_program import OUTPUT_BYTES, run_program
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings, SecretWay
from virtha.ports.power import PowerDevice, PowerOutcome, PowerReading

pytestmark = pytest.mark.req("F5")
PASSWORD = 'it\'s "$HOME" `id` $(id) ; rm -rf x | & > \\ *\t%s é'
SLEEP = f"sleep {1_000_000 + os.getpid()}"
"""Nobody else's: the same test may run elsewhere on this machine."""
DOCUMENT = (
    "$IPMI_EXEC --username $IPMI_Username --password  $IPMI_password   --command $IPMI_ACTION"
    " --host $IPMI_HOST"
)
"""As the source document writes it."""
_TELLS = """#!/usr/bin/python3
import json, os, sys, pathlib
here = pathlib.Path(__file__).parent
names = [one for one in os.environ if one.startswith("IPMI_") or one == "SECRET_OF_SERVER"]
told = {"words": sys.argv[1:], "environment": {one: os.environ[one] for one in names},
        "stdin": sys.stdin.read(), "directory": os.getcwd()}
(here / "told").write_text(json.dumps(told))
print("on")
"""


def script(directory: Path, text: str) -> str:
    path = directory / "switch"
    path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def device(executable: str, **more: object) -> PowerDevice:
    settings = PowerSettings(
        driver=PowerDriver.COMMAND,
        address="bmc h1",
        user="ad min",
        executable=executable,
        status="chassis status",
        stop="chassis power off",
        **more,
    )
    return RealPowerDevices().device(settings, {"password": PASSWORD})


def read(one: PowerDevice, deadline_ms: int = 20_000) -> PowerReading:
    return asyncio.run(one.status(deadline_ms=deadline_ms))


def stop(one: PowerDevice, deadline_ms: int = 20_000) -> PowerOutcome:
    return asyncio.run(one.order(PowerAction.OFF, deadline_ms=deadline_ms, may_go=lambda: True))


def told(directory: Path) -> dict[str, object]:
    return json.loads((directory / "told").read_text())


@pytest.mark.bad_input("metacharacters in a power password")
def test_the_documents_syntax_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_SERVER", "x")
    assert read(device(script(tmp_path, _TELLS), syntax=DOCUMENT)).state is PowerState.ON
    found = told(tmp_path)
    assert found["words"] == [
        *("--username", "ad min", "--password", PASSWORD),
        *("--command", "chassis", "status", "--host", "bmc h1"),
    ]
    assert "IPMI_PASSWORD" not in found["environment"]
    assert "SECRET_OF_SERVER" not in found["environment"]
    assert found["directory"] == "/"


def test_a_password_goes_by_the_environment_unless_the_syntax_names_it(tmp_path: Path):
    one = device(script(tmp_path, _TELLS), syntax='$IPMI_EXEC -H "${IPMI_HOST}" "$IPMI_ACTION"')
    assert read(one).state is PowerState.ON
    found = told(tmp_path)
    assert found["words"] == ["-H", "bmc h1", "chassis status"]
    assert found["environment"]["IPMI_PASSWORD"] == PASSWORD
    assert found["stdin"] == ""


def test_a_password_by_stdin_is_nowhere_else(tmp_path: Path):
    one = device(
        script(tmp_path, _TELLS), syntax="$IPMI_EXEC $IPMI_ACTION", password_by=SecretWay.STDIN
    )
    assert read(one).state is PowerState.ON
    found = told(tmp_path)
    assert found["stdin"] == PASSWORD + "\n"
    assert PASSWORD not in json.dumps(found["environment"]) + json.dumps(found["words"])


@pytest.mark.bad_input("power script that fails with 0")
@pytest.mark.parametrize(
    "output",
    [
        "",
        "could not turn it off",
        "Error: timed out, power state off?",
        "on\\noff",
        "offline",
        "Chassis Power is unknown",
        "\\000\\377",
    ],
)
def test_what_does_not_say_a_state_is_none(tmp_path: Path, output: str):
    reading = read(device(script(tmp_path, f"printf '{output}\\n'")))
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.status_unreadable")


def test_a_state_with_a_failure_is_none(tmp_path: Path):
    reading = read(device(script(tmp_path, "echo off; echo no answer >&2; exit 1")))
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.failed")
    assert "no answer" in reading.detail


def test_own_words_stand_in_the_place_of_the_usual_ones(tmp_path: Path):
    one = device(script(tmp_path, "echo '  Contact   OFF '; echo on"), status_on="contact off")
    assert read(one).state is PowerState.ON
    inverted = device(script(tmp_path, "echo off"), status_on="off", status_off="on")
    assert read(inverted).state is PowerState.ON


def test_without_a_status_string_nothing_is_read(tmp_path: Path):
    settings = PowerSettings(
        driver=PowerDriver.COMMAND, executable=script(tmp_path, "echo off"), stop="x"
    )
    one = RealPowerDevices().device(settings, {})
    assert not settings.has_status
    assert read(one).code == "power.no_status"
    assert stop(one).result is Result.OK
    on = asyncio.run(one.order(PowerAction.ON, deadline_ms=1_000, may_go=lambda: True))
    assert (on.result, on.code) == (Result.REFUSED, "power.unsupported")


@pytest.mark.bad_input("power script that prints megabytes")
def test_megabytes_are_read_and_not_kept(tmp_path: Path):
    reading = read(device(script(tmp_path, "yes off | head -c 20000000; echo")))
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.output_too_long")
    outcome = stop(device(script(tmp_path, "head -c 20000000 /dev/zero; exit 0")))
    assert outcome.result is Result.OK and len(outcome.detail) <= 500


@pytest.mark.bad_input("power script that prints megabytes")
def test_what_prints_for_ever_ends_at_the_deadline(tmp_path: Path):
    began_s = time.monotonic()
    reading = read(device(script(tmp_path, "exec yes off")), 1_000)
    assert reading.code == "power.no_answer" and len(reading.detail) <= 500
    assert time.monotonic() - began_s < 60


@pytest.mark.bad_input("power script that forks")
@pytest.mark.parametrize("way", ["", "setsid ", "setsid setsid nohup "])
def test_what_it_leaves_behind_is_ended_with_it(tmp_path: Path, way: str):
    text = f"{way}{SLEEP} & echo $! > {tmp_path}/left; (({way}{SLEEP} &) &); sleep 0.3; echo off"
    began_s = time.monotonic()
    assert stop(device(script(tmp_path, text)), 120_000).result is Result.OK
    assert time.monotonic() - began_s < 60, "a child that holds the pipe open is not waited for"
    assert not _marked(), "nothing of it is left"


@pytest.mark.bad_input("power script that hangs")
@pytest.mark.parametrize(
    "text",
    [SLEEP, f"trap '' TERM INT HUP; setsid {SLEEP}; {SLEEP}"],
    ids=["asleep", "deaf"],  # the text has the worker's process id
)
def test_what_hangs_is_killed_with_its_children(tmp_path: Path, text: str):
    outcome = stop(device(script(tmp_path, text)), 700)
    assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.no_answer")
    assert not _marked()


def test_one_that_is_slow_to_die_is_reaped_by_a_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Forgotten, it would stay in the process table, and Python complain of it at some later moment."""

    def hangs(process: object, timeout: float | None = None) -> int:
        raise subprocess.TimeoutExpired("it", timeout or 0)

    with monkeypatch.context() as in_the_kernel:
        in_the_kernel.setattr(subprocess.Popen, "wait", hangs)
        assert stop(device(script(tmp_path, SLEEP)), 700).result is Result.UNKNOWN
    (left,) = bounded_program._dying
    until_s = time.monotonic() + 60
    while bounded_program._dying:
        assert time.monotonic() < until_s
        assert read(device(script(tmp_path, "echo on"))).state is PowerState.ON
    assert left.returncode == -9


def test_it_dies_with_the_server(tmp_path: Path):
    """J7: whoever switches power ends with who decided it."""
    pid_file = tmp_path / "pid"
    program = (
        "import asyncio\nfrom virtha.drivers.bounded_program import run_program\n"
        f"asyncio.run(run_program([{script(tmp_path, f'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000')!r}], environment={{}}, deadline_ms=600000))\n"
    )
    server = subprocess.Popen([os.sys.executable, "-c", program])
    until_s = time.monotonic() + 60
    while not pid_file.exists():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    server.kill()
    server.wait()
    until_s = time.monotonic() + 60
    while _lives(pid):
        assert time.monotonic() < until_s, "it outlived the server"
        time.sleep(0.02)


def test_a_program_that_is_not_there(tmp_path: Path):
    outcome = stop(device(str(tmp_path / "nothing")))
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.program_missing")
    path = Path(script(tmp_path, "echo off"))
    path.chmod(0o644)
    assert read(device(str(path))).code == "power.program_missing"
    path.chmod(0o755)
    path.write_text("#!/no/such/interpreter\n")
    assert read(device(str(path))).code == "power.program_missing"


def test_its_own_exit_127_is_a_failure_of_it(tmp_path: Path):
    outcome = stop(device(script(tmp_path, "echo switched; no-such-program-at-all")))
    assert (outcome.result, outcome.code) == (Result.FAILED, "power.failed")


def test_what_it_says_is_told_without_the_password(tmp_path: Path):
    reading = read(device(script(tmp_path, 'echo "bad password: $4" >&2; exit 1'), syntax=DOCUMENT))
    assert "bad password: ***" in reading.detail
    assert PASSWORD not in reading.detail


@pytest.mark.bad_input("power syntax with an unknown variable")
def test_settings_that_can_not_be_used_run_nothing(tmp_path: Path):
    executable = script(tmp_path, f"touch {tmp_path}/ran; echo off")
    for more in ({"syntax": "$IPMI_EXEC 'x"}, {"syntax": "$IPMI_EXEC x | y $IPMI_ACTION"}):
        assert read(device(executable, **more)).code == "power.unusable_settings"
    outcome = stop(device("switch"))
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.unusable_settings")
    assert not (tmp_path / "ran").exists()


def test_a_test_string_comes_before_the_status(tmp_path: Path):
    text = f'echo "$*" >> {tmp_path}/calls; echo on; [ "$1" != broken ]'
    executable = script(tmp_path, text)
    one = device(executable, syntax="$IPMI_EXEC $IPMI_ACTION", test="look here")
    assert asyncio.run(one.test(deadline_ms=20_000)).state is PowerState.ON
    assert (tmp_path / "calls").read_text().splitlines() == ["look here", "chassis status"]
    broken = device(executable, syntax="$IPMI_EXEC $IPMI_ACTION", test="broken")
    assert asyncio.run(broken.test(deadline_ms=20_000)).code == "power.failed"


def test_output_is_kept_up_to_its_bound(tmp_path: Path):
    ended = asyncio.run(
        run_program(
            [script(tmp_path, "head -c 200000 /dev/zero | tr '\\0' x; cat >&2")],
            environment={},
            stdin=b"y" * 200_000,
            deadline_ms=20_000,
        )
    )
    assert (ended.status, ended.cut) == (0, True)
    assert ended.output == "x" * OUTPUT_BYTES and ended.errors == "y" * OUTPUT_BYTES


@pytest.fixture(autouse=True)
def mark_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside each other: none looks for what another's attempt has under way."""
    monkeypatch.setattr(bounded_program, "MARK", f"{bounded_program.MARK}_{os.getpid()}")


def _marked() -> list[str]:
    """Command lines of processes that some attempt left."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            if bounded_program.MARK.encode() in (one / "environ").read_bytes():
                state = (one / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append((one / "cmdline").read_text())
        except OSError:
            continue
    return [one for one in found if SLEEP.replace(" ", "\0") in one]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_where_nothing_more_can_be_opened_it_says_so_and_leaves_nothing(tmp_path: Path):
    """In whatever step the descriptors run out: an answer that never comes would hold up all orders behind it."""
    one = device(script(tmp_path, "echo on"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def with_so_many_left(left: int) -> PowerReading:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        taken: list[int] = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(left):
                os.close(taken.pop())
            # What is no answer here would take all of the deadline, a program on a busy machine only some of it.
            async with asyncio.timeout(60):
                return await one.status(deadline_ms=60_000)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async def story() -> list[PowerReading]:
        return [await with_so_many_left(left) for left in range(16)]

    found = asyncio.run(story())
    assert found[0].state is PowerState.UNKNOWN and found[0].code is not None, found[0]
    assert found[-1].state is PowerState.ON, found[-1]
    assert {one.state for one in found} == {PowerState.UNKNOWN, PowerState.ON}


def test_a_program_that_a_signal_ended_may_have_switched(tmp_path: Path):
    outcome = stop(device(script(tmp_path, "kill -9 $$")))
    assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.no_answer"), outcome


def test_the_search_for_what_is_left_looks_into_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Somebody else's process that hangs in the kernel (its storage is gone) would keep whoever reads its memory."""
    older = tmp_path / str(os.getpid())
    older.mkdir()
    (older / "stat").write_bytes(Path("/proc/self/stat").read_bytes())
    os.mkfifo(older / "environ")  # opening it waits for ever
    began_ticks = bounded_program._start_ticks(os.getpid())
    monkeypatch.setattr(bounded_program, "_PROC", tmp_path)
    assert began_ticks is not None
    search = threading.Thread(
        target=bounded_program._kill_marked, args=("x", began_ticks + 1), daemon=True
    )
    search.start()
    search.join(60)
    assert not search.is_alive()


def test_what_a_killed_agents_programs_left_behind_is_ended_by_the_next_one():
    """Its service manager ends only the agent itself (J7). Another owner's goes on, and so does what is younger."""
    owner = f"test-{os.getpid()}-"

    def marked(of: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], bounded_program.MARK: f"{of}1"}
        return subprocess.Popen(SLEEP.split(), env=environment, start_new_session=True)

    theirs, ours = marked("another-"), marked(owner)
    try:
        assert bounded_program.end_left_behind(owner, 0) == 0
        assert bounded_program.end_left_behind(owner, 1 << 62) == 1
        assert ours.wait(timeout=60) < 0 and theirs.poll() is None
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()


@pytest.mark.req("J7")
def test_a_program_that_is_given_up_twice_is_ended_all_the_same(tmp_path: Path):
    """Whoever gave it up goes on only when it has ended, however often somebody wants that."""

    async def story() -> None:
        pid = tmp_path / "pid"
        words = [script(tmp_path, f'echo $$ > "{pid}"\nexec {SLEEP}')]
        task = asyncio.create_task(run_program(words, environment={}, deadline_ms=600_000))
        async with asyncio.timeout(60):
            while not pid.exists() or not pid.read_text().strip():
                await asyncio.sleep(0.005)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
        assert task.cancelled() and not Path(f"/proc/{pid.read_text().strip()}").exists()

    asyncio.run(story())
