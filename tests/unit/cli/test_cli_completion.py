"""What the shell offers: live names from the server that the command would ask, and nothing where it can't be asked."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fake_api import Answer, Api, Ran

from virtha.cli.main import NOUNS, load
from virtha.lab.state import LabState, NodeState, write_state

Run = Callable[..., Ran]
Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What bash would offer for the last word of a line; a blank at its end begins a new one."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_VIRTHA_COMPLETE", "bash")
        ran = run(line, line.rpartition(" ")[2])
        assert (ran.code, ran.err) == (0, "")
        return ran.out.splitlines()[1:]

    return ask


def page(*items: object) -> dict[str, object]:
    return {"items": list(items), "next": None}


def vms(*names: str) -> dict[str, object]:
    return page(*({"vm": {"name": name}} for name in names))


@pytest.mark.parametrize(
    "line", ["vm show ", "vm start ", "vm start other ", "notify subscribe x --vm "]
)
def test_names_of_vms_come_from_the_server(line: str, api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/vms", vms("db1", "web1", "web2"))
    assert complete(f"virtha {line}") == ["db1", "web1", "web2"]
    assert complete(f"virtha {line}web") == ["web1", "web2"]


@pytest.mark.parametrize(
    ("line", "path", "item", "offered"),
    [
        ("host show ", "/v1/hosts", {"host": {"name": "h1"}}, "h1"),
        ("vm list --host ", "/v1/hosts", {"host": {"name": "h1"}}, "h1"),
        ("vm list --cluster ", "/v1/clusters", {"name": "default"}, "default"),
        ("storage show ", "/v1/storage-domains", {"domain": {"name": "ds1"}, "images": []}, "ds1"),
        (
            "vm create x --image ",
            "/v1/storage-domains",
            {"domain": {"name": "ds1"}, "images": [{"name": "tiny"}]},
            "tiny",
        ),
        ("notify test ", "/v1/receivers", {"receiver": {"name": "mail1"}}, "mail1"),
        ("notify unsubscribe ", "/v1/subscriptions", {"subscription": {"name": "s1"}}, "s1"),
        ("user edit ", "/v1/users", {"name": "eve"}, "eve"),
        ("notify subscribe m --user ", "/v1/users", {"name": "eve"}, "eve"),
        ("operation show ", "/v1/operations", {"id": "0c5d"}, "0c5d"),
        ("token revoke ", "/v1/tokens", {"id": "77aa"}, "77aa"),
        ("setting get ", "/v1/settings", {"key": "event.retention"}, "event.retention"),
    ],
)
def test_each_kind_of_name(
    line: str, path: str, item: object, offered: str, api: Api, complete: Complete
) -> None:
    api.on("GET", path, page(item))
    assert complete(f"virtha {line}") == [offered]


def test_what_the_program_knows_needs_no_server(complete: Complete) -> None:
    assert complete("virtha cl") == ["cluster"]
    assert "adopt" in complete("virtha vm ")
    assert "vm.watchdog.fired" in complete("virtha codes vm.watchdog.f")
    assert complete("virtha notify subscribe m --code vm.watchdog.*") == [r"vm.watchdog.\*"]
    assert "restart.delay=" in complete("virtha policy set restart.")
    assert complete("virtha notify receiver add m") == ["mail"]


def test_a_long_list_is_asked_from_where_the_word_begins(api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/vms", vms("web1"))
    assert complete("virtha vm show web") == ["web1"]
    (asked,) = api.calls("GET", "/v1/vms")
    assert int(asked.query["limit"]) == 200
    assert asked.query["search"] == 'name = "web*"'


def test_where_the_line_says_which_server_that_one_is_asked(
    socket_api: Api, complete: Complete, home: Path
) -> None:
    socket_api.on("GET", "/v1/vms", vms("web1"))
    assert complete(f"virtha vm show --root {home} ") == ["web1"]
    assert complete(f"virtha --root {home} -o nonsense vm show ") == ["web1"]
    assert complete(f"virtha event list --root {home} --vm ") == ["web1"]
    assert complete(f"virtha event list --root {home} --vm=w") == ["--vm=web1"]


def test_without_an_answer_nothing_is_offered_and_nothing_said(
    api: Api, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.cli.live_names.ANSWER_S", 0.2)
    never = threading.Event()
    for answer in (
        Answer({"title": "x", "status": 401, "code": "problem.unauthenticated"}, status=401),
        Answer(raw=b"no JSON"),
        Answer({"items": [{"odd": 1}]}),
        Answer(raw=b"", cut=True),
        Answer(hang=never),
    ):
        api.on("GET", "/v1/vms", answer)
        assert complete("virtha vm show ") == []
    never.set()
    monkeypatch.setenv("VIRTHA_URL", "http://127.0.0.1:1")
    assert complete("virtha vm show ") == []
    monkeypatch.setenv("VIRTHA_URL", "no address, this")
    assert complete("virtha vm show ") == []


def test_a_receivers_own_host_and_user_are_no_names_of_ours(api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/hosts", page({"host": {"name": "h1"}}))
    assert complete("virtha notify receiver add mail m --host ") == []
    assert api.calls("GET", "/v1/hosts") == []


def test_a_call_that_completes_nothing_asks_nothing_more() -> None:
    """The table costs no command its time: it is not even loaded."""
    for noun in ("vm", "host"):
        found = load(noun)
        for sub in found.commands.values():
            assert all(one._custom_shell_complete is None for one in sub.params), noun
    assert {"vm", "host"} <= set(NOUNS)


@pytest.mark.parametrize(
    ("line", "path", "answer", "offered"),
    [
        (
            "vm snapshot revert web1 ",
            "/v1/vms/web1/snapshots",
            {"items": [{"name": "before"}]},
            ["before"],
        ),
        (
            "vm disk resize web1 ",
            "/v1/vms/web1",
            {"vm": {"disks": [{"name": "boot"}, {"name": "data"}]}},
            ["boot", "data"],
        ),
        (
            "vm nic remove web1 ",
            "/v1/vms/web1",
            {"vm": {"nics": [{"mac": "52:54:00:00:00:01"}]}},
            [r"52:54:00:00:00:01"],
        ),
        (
            "host power test h1 --device ",
            "/v1/hosts/h1/power",
            {"items": [{"name": "bmc"}]},
            ["bmc"],
        ),
        (
            "cluster power remove c1 --device ",
            "/v1/clusters/c1/power",
            {"items": [{"name": "pdu"}]},
            ["pdu"],
        ),
        ("host power agent show ", "/v1/power/agents", ["fence_apc"], ["fence_apc"]),
        (
            "template show ",
            "/v1/templates",
            {"items": [{"template": {"name": "base"}}]},
            ["base"],
        ),
        (
            "vm create x --template ",
            "/v1/templates",
            {"items": [{"template": {"name": "base"}}]},
            ["base"],
        ),
        ("notify retry ", "/v1/deliveries", {"items": [{"id": "0d"}]}, ["0d"]),
        ("explain vm/", "/v1/vms", {"items": [{"vm": {"name": "web1"}}]}, ["vm/web1"]),
        ("doctor cluster/", "/v1/clusters", {"items": [{"name": "c1"}]}, ["cluster/c1"]),
    ],
)
def test_names_of_what_else_there_is(
    line: str, path: str, answer: object, offered: list[str], api: Api, complete: Complete
) -> None:
    api.on("GET", path, answer)
    assert complete(f"virtha {line}") == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("explain ", ["vm/", "host/"]),
        ("vm list -o ", ["table", "json", "yaml", "wide"]),
        ("vm create x --watchdog ib", ["ib700:"]),
        ("vm create x --watchdog ib700:po", ["ib700:poweroff"]),
        ("policy set profile=b", ["profile=balanced"]),
        ("policy set fencing.action=no", ["fencing.action=nothing"]),
        ("policy budget --set restart.delay_m", ["restart.delay_max="]),
        ("host power set h1 driver=red", ["driver=redfish"]),
        ("host power set h1 --unset addr", ["address"]),
        ("agent properties get host.overcommit", ["host.overcommit.mem.mb"]),
        ("man templ", ["template"]),
        ("vm list --state=pau", ["--state=paused"]),
        ("event list --code vm.watchdog.un", ["vm.watchdog.unknown"]),
    ],
)
def test_words_that_the_program_knows(line: str, offered: list[str], complete: Complete) -> None:
    assert complete(f"virtha {line}") == offered


def test_what_is_on_the_line_already_is_not_offered_again(api: Api, complete: Complete) -> None:
    api.on("GET", "/v1/vms", vms("db1", "web1", "web2"))
    assert complete("virtha vm start web1 db1 ") == ["web2"]


def test_a_lab_offers_its_own_hosts_and_asks_no_server(api: Api, complete: Complete) -> None:
    with tempfile.TemporaryDirectory(prefix="vl-") as short:  # as a lab's sockets need it
        _offers_its_hosts(api, complete, Path(short))


def _offers_its_hosts(api: Api, complete: Complete, tmp_path: Path) -> None:
    nodes = tuple(
        NodeState(name=name, number=number, kind=kind)
        for number, (name, kind) in enumerate([("server", "server"), ("h1", "host")])
    )
    write_state(LabState(id="vl", directory=str(tmp_path), nodes=nodes))
    assert complete(f"virtha lab kill-host --dir {tmp_path} ") == ["h1"]
    assert complete(f"virtha lab exec --dir {tmp_path} ") == ["server", "h1"]
    assert complete("virtha lab kill-host --dir /nowhere ") == []
    assert api.asked == []


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("man --write ", "directories"),
        ("man --write=", "directories"),
        ("vm list --root ", "directories"),
        ("policy set --file ", "files"),
        ("vm screenshot web1 -o ", "files"),
        ("simulate ", "files"),
        ("server backup ", "files"),
        ("vm create ", "words"),
        ("vm show ", "words"),
    ],
)
def test_paths_only_where_one_is_meant(
    line: str, kind: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer, a name of a VM was completed to that of a file."""
    monkeypatch.setenv("VIRTHA_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("_VIRTHA_COMPLETE", "zsh")
    assert run(*line.split(" ")) == Ran(0, f"{kind}\n", "")


@pytest.mark.parametrize("given", [(), ("",), ("vm", "--"), ("\ud800",), ("'", "'"), ("vm", "\\")])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_line_that_is_none_is_answered_without_a_word(
    shell: str, given: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_VIRTHA_COMPLETE", shell)
    ran = run(*given)
    assert (ran.code, ran.err) == (0, "")
