"""The processes that compute beside a command end with it, and say nothing of it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from virtha.cli.worker_pool import worker_pool\n"
        "def work(path):\n"
        "    open(path, 'w').write(f'{os.getpid()}\\n')\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        "        pool.submit(work, sys.argv[1]).result()\n"
    )
    with subprocess.Popen([sys.executable, str(program), str(note)]) as process:
        while not note.exists() or not note.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    worker = Path("/proc") / note.read_text().strip()
    with contextlib.suppress(OSError):  # it is gone
        while "State:\tZ" not in (worker / "status").read_text():
            time.sleep(0.02)


def test_ctrl_c_while_a_worker_starts_is_told_once(tmp_path: Path) -> None:
    """A worker was once interrupted while it imported what to do, and printed where."""
    note, interrupted = tmp_path / "starts", tmp_path / "interrupted"
    (tmp_path / "task.py").write_text(
        "import multiprocessing, os, sys, time\n"
        "if multiprocessing.parent_process():\n"
        "    open(sys.argv[1], 'w').close()\n"
        "    while not os.path.exists(sys.argv[2]):\n"
        "        time.sleep(0.01)\n"
        "def work():\n"
        "    time.sleep(600)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import signal\n"
        "from virtha.cli.worker_pool import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    import task\n"
        "    try:\n"
        "        with worker_pool(2) as pool:\n"
        "            pool.submit(task.work).result()\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program), str(note), str(interrupted)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not note.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    interrupted.touch()
    assert process.communicate(timeout=200) == ("interrupted\n", "")
