"""The same commands at a real (pseudo) terminal: colours, progress, questions, watching."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fake_api import DEATH_TICKET, Answer, Api, Authority, make_authority
from cli_shapes import host_view, operation, page, status_view, vm_view

from virtha.cli.profile import load_profile
from virtha.model.operation import OperationState

DEADLINE_S = 60.0
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")


class Terminal:
    """`virtha` with a pseudo terminal as stdin, stdout and stderr."""

    def __init__(self, argv: tuple[str, ...], env: dict[str, str]) -> None:
        self.text = ""
        self._main, child = pty.openpty()
        self._process = subprocess.Popen(
            # At a terminal Ctrl-C is never ignored; what a shell starts in the background inherits that it is.
            ["env", "--default-signal=INT", sys.executable, "-m", "virtha.cli.main", *argv],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **env},
            start_new_session=True,
        )
        os.close(child)

    def _read(self, left_s: float) -> bool:
        waiting = select.poll()  # select() knows no descriptor above 1,023
        waiting.register(self._main, select.POLLIN)
        ready = waiting.poll(max(0.0, left_s) * 1_000)
        try:
            chunk = os.read(self._main, 65_536) if ready else b""
        except OSError:  # how Linux says that the other side is closed
            chunk = b""
        self.text += chunk.decode(errors="replace")
        return bool(chunk)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while text not in self.text:
            assert self._read(end - time.monotonic()), f"never said {text!r}: {self.text}"

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def press_ctrl_c(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        end = time.monotonic() + DEADLINE_S
        while self._read(end - time.monotonic()):
            pass
        return self._process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._main)


@pytest.fixture
def terminal() -> Iterator["Start"]:
    opened: list[Terminal] = []

    def start(*argv: str, **env: str) -> Terminal:
        opened.append(Terminal(argv, env))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


Start = Callable[..., Terminal]


def test_tables_are_for_terminals_and_coloured_unless_no_color(api: Api, terminal: Start) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    coloured, plain = terminal("vm", "list"), terminal("vm", "list", NO_COLOR="1")
    assert (coloured.end(), plain.end()) == (0, 0)
    assert COLOUR.search(coloured.text) and not COLOUR.search(plain.text)
    for shown in (coloured.text, plain.text):
        assert "NAME" in shown and "\t" not in shown


def test_status_fits_one_screen(api: Api, terminal: Start) -> None:
    api.on("GET", "/v1/status", status_view(hold="moving racks"))
    shown = terminal("status", NO_COLOR="1")
    assert shown.end() == 0
    assert len(shown.text.splitlines()) <= 24
    assert "DEGRADED" in shown.text.splitlines()[0]


def test_progress_is_a_bar_at_a_terminal(api: Api, terminal: Start) -> None:
    running = operation(OperationState.RUNNING, steps=(("start on h1", OperationState.RUNNING),))
    api.on("POST", "/v1/vms/web1/start", Answer(running, status=202))
    api.on("GET", "/v1/operations/o-1", running, operation())
    shown = terminal("vm", "start", "web1")
    assert shown.end() == 0
    assert "start on h1" in shown.text and "50%" in shown.text
    assert shown.text.rstrip().endswith("VM web1 runs (2.5 s)")


def test_watching_redraws_says_when_it_is_out_of_date_and_ends_with_0(
    api: Api, terminal: Start
) -> None:
    busy = Answer({"detail": "database locked"}, status=503)
    api.on("GET", "/v1/vms", page(vm_view("first")), busy, page(vm_view("second")))
    shown = terminal("vm", "list", "--watch", NO_COLOR="1")
    shown.wait_for("not up to date: database locked")
    shown.wait_for("second")
    shown.press_ctrl_c()
    assert shown.end() == 0
    assert shown.text.count("\x1b[H\x1b[2J") >= 3
    assert "Traceback" not in shown.text


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_deleting_asks(answer: str, code: int, api: Api, terminal: Start) -> None:
    api.on("DELETE", "/v1/vms/web1", Answer(operation(kind="vm.delete"), status=202))
    shown = terminal("vm", "delete", "web1", "--delete-data")
    shown.wait_for("Delete web1 with all that is on its disks?")
    shown.type(answer)
    assert shown.end() == code
    assert len(api.calls("DELETE")) == 1 - code


@pytest.mark.req("F9")
@pytest.mark.parametrize(("typed", "code"), [("h1", 0), ("yes", 2), ("id-of-h1", 2)])
def test_that_a_host_is_off_is_confirmed_by_its_name(
    typed: str, code: int, api: Api, terminal: Start
) -> None:
    api.on("GET", "/v1/hosts/id-of-h1", host_view())
    api.on("DELETE", "/v1/hosts/id-of-h1", Answer(status=204))
    shown = terminal("host", "remove", "id-of-h1", "--powered-off", "--yes")
    shown.wait_for("Type the name, h1, to go on")
    assert "its data is lost" in shown.text.replace("\r\n", "")
    shown.type(f"{typed}\n")
    assert shown.end() == code
    assert len(api.calls("DELETE")) == (code == 0)


@pytest.mark.req("F9")
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("h1\n", 0, "host h1 is taken for dead"),
        ("h2\n", 2, "'h2' is not h1; nothing was done"),
        ("yes\n", 2, "'yes' is not h1; nothing was done"),
        ("\x04", 1, "nothing was done"),
    ],
    ids=["its name", "another's name", "yes", "end of input"],
)
def test_that_a_host_is_dead_is_confirmed_by_its_name(
    typed: str, code: int, said: str, api: Api, terminal: Start
) -> None:
    """Asked for by its id: the name to type is what the ticket says, with what it would be about."""
    path = "/v1/hosts/id-of-h1/confirm-dead"
    api.on("POST", "/v1/hosts/id-of-h1/death-tickets", Answer(DEATH_TICKET, status=201))
    api.on("POST", path, {"host_id": "id-of-h1", "host": "h1", "boot": "b1", "incident": 3})
    shown = terminal("host", "confirm-dead", "id-of-h1", NO_COLOR="1")
    shown.wait_for("Type the name, h1, to go on: ")
    warning = shown.text.replace("\r\n", "")
    assert "web1, web2" in warning and "each of them runs twice" in warning
    assert api.calls("POST", path) == [], "nothing before its name is typed"
    shown.type(typed)
    assert shown.end() == code
    assert said in shown.text.replace("\r\n", "")
    bodies = [call.body for call in api.calls("POST", path)]
    given = {"ticket": "t1", "name": "h1", "force_reason": None}
    assert bodies == ([given] if code == 0 else [])


@pytest.mark.req("L6")
@pytest.mark.parametrize("trusted", [True, False])
def test_login_shows_the_fingerprint_and_asks(
    trusted: bool, tls_api: Callable[[Authority], Api], tmp_path: Path, terminal: Start
) -> None:
    authority = make_authority(tmp_path / "ca")
    api = tls_api(authority)
    api.on("GET", "/v1/authority", {"certificate_pem": authority.certificate_pem})
    session = {
        "token": "virtha-access.1.s",
        "expires": "2026-01-01T12:00:00.000Z",
        "user": "eve",
        "role": "viewer",
    }
    api.on("POST", "/v1/sessions", Answer(session, status=201))
    shown = terminal("login", api.url)
    shown.wait_for("Trust it?")
    pairs = [authority.fingerprint[i : i + 2] for i in range(0, 64, 2)]
    assert ":".join(pairs) in shown.text.replace("\r\n", "")
    if not trusted:
        shown.type("n\n")
        assert shown.end() == 4
        assert api.calls("POST") == []
        return
    shown.type("y\n")
    shown.wait_for("User")
    shown.type("eve\n")
    # The space comes after the echo was turned off and what was typed before was thrown away.
    shown.wait_for("Password of eve: ")
    shown.type("hidden words\n")
    assert shown.end() == 0
    assert "hidden words" not in shown.text
    assert api.calls("POST")[0].body == {"user": "eve", "password": "hidden words"}
    assert load_profile().login_for(api.url).token == "virtha-access.1.s"


def test_help_in_a_terminal(terminal: Start) -> None:
    shown = terminal("vm", "create", "--help")
    assert shown.end() == 0
    assert "--watchdog" in re.sub(r"\x1b\[[0-9;]*m", "", shown.text)
