"""Nouns and verbs: what goes to the server, what comes out, how long work ends."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import yaml
from cli_fake_api import Answer, Api, Ran
from cli_shapes import (
    NOON,
    event,
    host_view,
    operation,
    page,
    plain,
    status_view,
    vm_view,
)

from virtha.cli import progress as progress_module
from virtha.cli import session as session_module
from virtha.control.requests import StorageCreate, TokenCreate, UserCreate, VmChange, VmCreate
from virtha.control.views import (
    CapabilitiesView,
    ForeignDomains,
    PendingChange,
    SettingView,
    StorageView,
    TokenSecret,
    WatchdogOffer,
)
from virtha.model.codes import REGISTRY
from virtha.model.facts import ForeignDomain, Image
from virtha.model.host import Cluster, StorageDomain
from virtha.model.ids import ClusterId, StorageDomainId, TokenId, UserId
from virtha.model.machine import MachineType
from virtha.model.operation import OperationState
from virtha.model.time import UtcMillis
from virtha.model.user import Role, SettingScope, Token, TokenKind, User
from virtha.model.vm import VmState
from virtha.model.watchdog import WatchdogAction, WatchdogModel

Run = Callable[..., Ran]
RUNNING, FAILED, DONE = OperationState.RUNNING, OperationState.FAILED, OperationState.DONE


def accepted(op: dict[str, Any]) -> Answer:
    return Answer(op, status=202, headers={"Location": f"/v1/operations/{op['id']}"})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "RETRY_S", 0.01)
    monkeypatch.setattr(session_module, "WATCH_S", 0.001)


# --- what is sent -------------------------------------------------------------------------------


@pytest.mark.req("W1", "W2", "A8")
def test_vm_create_sends_what_the_server_reads(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms", accepted(operation(kind="vm.create")))
    ran = run(
        *("vm", "create", "web1", "--image", "tiny", "--memory", "128MiB", "--vcpus", "2", "--ha"),
        *("--watchdog", "i6300esb:reset", "--storage", "ds1", "--machine", "pc", "--start"),
        *("--disk", "name=data,size=1GiB", "--disk", "path=old.qcow2,format=raw"),
        *("--nic", "bridge=br0", "--nic", "br1"),
    )
    assert ran == Ran(0, "VM web1 is created and started (2.5 s)\n", "start on h1: done\n")

    sent = msgspec.convert(api.asked[0].body, VmCreate)
    assert (sent.name, sent.image, sent.storage_domain) == ("web1", "tiny", "ds1")
    assert (sent.memory_bytes, sent.vcpus, sent.machine) == (134_217_728, 2, MachineType.PC)
    assert sent.watchdog is not None
    assert (sent.watchdog.model, sent.watchdog.action) == ("i6300esb", "reset")
    assert sent.ha and sent.start
    assert [(d.name, d.size_bytes, d.path) for d in sent.disks] == [
        ("data", 1 << 30, None),
        (None, None, "old.qcow2"),
    ]
    assert [nic.bridge for nic in sent.nics] == ["br0", "br1"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--watchdog", "i6300esb"], "watchdog.action: the action is missing"),
        (["--watchdog", "foo:reset"], "allowed: i6300esb, ib700, diag288, itco"),
        (["--watchdog", "ib700:dance"], "allowed: reset, poweroff, pause, dump, none"),
        (["--memory", "128MB"], "--memory: '128MB' is not a size"),
        (["--memory", "0.3B"], "--memory: '0.3B' is not a whole number of bytes"),
        (["--disk", "size=1GiB,nmae=x"], "did you mean 'name'?"),
        (["--disk", "name=x"], "--disk: nothing says what is on it"),
        (["--disk", "size"], "--disk: 'size' is not KEY=VALUE"),
        (["--disk", "size=1GiB,size=2GiB"], "'size' is given twice"),
        (["--disk", "size=big"], "--disk size: 'big' is not a size"),
        (["--nic", "mac=1"], "--nic: the bridge is missing"),
        (["--vcpus", "0"], "vcpus"),
        (["--machine", "i440"], "q35"),
    ],
)
@pytest.mark.req("W1", "W2")
@pytest.mark.bad_input("missing action")
def test_wrong_vm_options_send_nothing(argv: list[str], says: str, api: Api, run: Run) -> None:
    ran = run("vm", "create", "web1", *argv)
    assert ran.code == 2
    assert says in ran.err
    assert api.asked == []


def test_vm_edit_sends_only_what_changes(api: Api, run: Run) -> None:
    api.on("PATCH", "/v1/vms/web1", vm_view())
    assert run("vm", "edit", "web1", "--no-ha", "--memory", "1GiB", "--revision", "5").code == 0
    assert run("vm", "edit", "web1", "--watchdog", "none").code == 0
    assert [asked.body for asked in api.asked] == [
        {"ha": False, "memory_bytes": 1 << 30},
        {"watchdog": None},
    ]
    assert api.asked[0].headers["if-match"] == '"5"'
    msgspec.convert(api.asked[0].body, VmChange)
    assert run("vm", "edit", "web1").code == 2


def test_vm_edit_shows_and_drops_what_waits_for_the_next_start(api: Api, run: Run) -> None:
    waits = (
        PendingChange(field="memory_bytes", running=1 << 30, wanted=2 << 30),
        PendingChange(field="nics.52:54:00:00:00:77", running=None, wanted="virtio on br0"),
    )
    api.on("PATCH", "/v1/vms/web1", msgspec.structs.replace(vm_view(), pending=waits))
    edited = run("vm", "edit", "web1", "--memory", "2GiB")
    assert "applies at its next start: memory: 1GiB now, 2GiB wanted" in edited.err
    assert "nics.52:54:00:00:00:77: none now, virtio on br0 wanted" in edited.err
    api.on("POST", "/v1/vms/web1/drop-pending", vm_view())
    assert run("vm", "edit", "web1", "--drop-pending", "--revision", "5").code == 0
    assert api.asked[-1].headers["if-match"] == '"5"'
    both = run("vm", "edit", "web1", "--drop-pending", "--vcpus", "2")
    assert both.code == 2
    assert "--drop-pending" in both.err


@pytest.mark.parametrize(
    "verb", ["start", "shutdown", "power-off", "reboot", "reset", "pause", "resume", "release"]
)
def test_verbs_post_and_wait(verb: str, api: Api, run: Run) -> None:
    api.on("POST", f"/v1/vms/web1/{verb}", accepted(operation(RUNNING)))
    api.on("GET", "/v1/operations/o-1", operation(RUNNING), operation())
    ran = run("vm", verb, "web1")
    assert (ran.code, ran.out.startswith("VM web1 ")) == (0, True)
    # The API refuses a body where it takes none.
    assert api.asked[0].body == ({} if verb == "start" else None)
    assert [a.path for a in api.asked[1:]] == ["/v1/operations/o-1"] * 2


def test_start_on_a_host(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/web1/start", accepted(operation()))
    run("vm", "start", "web1", "--host", "h2")
    assert api.asked[0].body == {"host": "h2"}


@pytest.mark.req("W3")
def test_watchdog_card(api: Api, run: Run) -> None:
    card = {"model": "ib700", "action": "poweroff"}
    api.on("PUT", "/v1/vms/web1/watchdog", card)
    api.on("GET", "/v1/vms/web1/watchdog", card)
    api.on("DELETE", "/v1/vms/web1/watchdog", Answer(status=204))
    assert run("vm", "watchdog", "set", "web1", "ib700:poweroff").code == 0
    assert api.asked[0].body == card
    assert json.loads(run("vm", "watchdog", "show", "web1", "-o", "json").out) == card
    assert run("vm", "watchdog", "show", "web1").out == "model\tib700\naction\tpoweroff\n"
    assert run("vm", "watchdog", "remove", "web1").out == "VM web1 has no watchdog now\n"
    assert run("vm", "watchdog", "set", "web1", "ib700").code == 2


def test_delete_asks_or_needs_yes(api: Api, run: Run) -> None:
    api.on("DELETE", "/v1/vms/web1", accepted(operation(kind="vm.delete")))
    ran = run("vm", "delete", "web1")
    assert (ran.code, api.asked) == (2, [])
    assert "give --yes" in ran.err
    assert run("vm", "delete", "web1", "--yes", "--delete-data").code == 0
    assert api.asked[0].query == {"delete_data": "true"}


def test_a_disk_stays_and_is_named_unless_its_end_is_asked_for(api: Api, run: Run) -> None:
    shape = plain(vm_view())
    shape["vm"]["disks"] = [{"name": "disk0", "path": "vms/x/disk0.qcow2"}]
    api.on("GET", "/v1/vms/web1", shape)
    api.on("DELETE", "/v1/vms/web1", accepted(operation(kind="vm.delete")))
    ran = run("vm", "delete", "web1", "--yes")
    assert ran.code == 0
    assert api.calls("DELETE")[0].query == {}
    assert "its disk disk0 stays: vms/x/disk0.qcow2" in ran.err


@pytest.mark.req("A8")
def test_adopt(api: Api, run: Run) -> None:
    api.on("GET", "/v1/hosts", page(host_view("h1")))
    api.on("POST", "/v1/hosts/id-of-h1/adopt", accepted(operation(kind="host.adopt")))
    foreign = ForeignDomains(
        items=(ForeignDomain(vm=None, name="old", state="running", changes=("autostart off",)),)
    )
    api.on("GET", "/v1/operations/o-1/foreign", foreign)
    ran = run("vm", "adopt", "--all", "--dry-run", "--ha")
    assert ran.code == 0
    assert "autostart off" in ran.out
    sent = api.calls("POST")[0].body
    assert sent == {"names": [], "all": True, "ha": True, "dry_run": True}


@pytest.mark.parametrize("argv", [[], ["web1", "--all"]], ids=["neither", "both"])
def test_adopt_wants_names_or_all(argv: list[str], api: Api, run: Run) -> None:
    assert run("vm", "adopt", *argv).code == 2
    assert api.asked == []


def test_adopt_names_the_hosts_when_there_are_several(api: Api, run: Run) -> None:
    api.on("GET", "/v1/hosts", page(host_view("h2"), host_view("h1")))
    ran = run("vm", "adopt", "old")
    assert ran.code == 2
    assert "--host: which host?\n  allowed: h1, h2" in ran.err


def test_hosts(api: Api, run: Run) -> None:
    api.on("GET", "/v1/hosts", page(host_view()))
    api.on("GET", "/v1/hosts/h1", host_view())
    api.on("DELETE", "/v1/hosts/h1", Answer(status=204))
    api.on("POST", "/v1/hosts/h1/scan", accepted(operation(kind="host.scan")))
    api.on("GET", "/v1/operations/o-1/foreign", ForeignDomains(items=()))
    assert "h1\tup\tdefault\t1\t1GiB\t512MiB\tno" in run("host", "list").out
    assert "libvirt\t9.0.0" in run("host", "show", "h1").out
    assert run("host", "scan", "h1").out.startswith("NAME\tSTATE")
    assert run("host", "remove", "h1", "--yes").code == 0
    assert api.calls("DELETE")[0].query == {}


@pytest.mark.req("F9")
def test_the_word_that_a_host_is_off_needs_more_than_yes(api: Api, run: Run) -> None:
    """Safety rule P6: nobody but the operator stands behind it."""
    api.on("GET", "/v1/hosts/id-of-h1", host_view())
    api.on("DELETE", "/v1/hosts/id-of-h1", Answer(status=204))
    remove = ("host", "remove", "id-of-h1")
    ran = run(*remove, "--powered-off", "--yes")
    assert ran.code == 2
    assert "that h1 is off" in ran.err and "a second time" in ran.err
    assert "error: --yes-it-is-off: nobody is here" in ran.err
    ran = run(*remove, "--yes-it-is-off")
    assert ran.code == 2
    assert "--yes-it-is-off: goes with --powered-off only" in ran.err
    assert api.calls("DELETE") == []
    ran = run(*remove, "--powered-off", "--yes-it-is-off")
    assert ran.code == 0
    assert "a second time" in ran.err, "it is told what a wrong word leads to"
    assert api.calls("DELETE")[0].query == {"powered_off": "true"}


@pytest.mark.parametrize(
    "argv",
    [
        ["vm", "create", "web1"],
        ["vm", "start", "web1"],
        ["vm", "delete", "web1", "--yes"],
        ["vm", "adopt", "--all"],
        ["host", "scan", "h1"],
        ["operation", "wait", "o-1"],
    ],
    ids=" ".join,
)
def test_a_wrong_timeout_is_told_before_anything_is_done(
    argv: list[str], api: Api, run: Run
) -> None:
    ran = run(*argv, "--timeout", "soon")
    assert (ran.code, api.asked) == (2, [])
    assert "--timeout: 'soon' is not a duration" in ran.err


def test_storage_and_images(api: Api, run: Run) -> None:

    image = Image(
        name="tiny", path="images/tiny.qcow2", format="qcow2", size_bytes=1, virtual_size_bytes=2
    )
    view = StorageView(
        domain=StorageDomain(
            id=StorageDomainId("d-1"), name="ds1", cluster_id=ClusterId("c-1"), path="/srv/ds1"
        ),
        cluster_name="default",
        usable_by={"h1": True, "h2": None, "h3": False},
        detail={"h3": "not mounted"},
        images=(image,),
    )
    api.on("POST", "/v1/storage-domains", Answer(view, status=201))
    api.on("GET", "/v1/operations", page(operation(RUNNING, kind="storage.prepare")))
    api.on("GET", "/v1/operations/o-1", operation(kind="storage.prepare"))
    api.on("GET", "/v1/storage-domains/d-1", view)
    api.on("GET", "/v1/storage-domains", page(view))
    ran = run("storage", "add", "ds1", "--path", "/srv/ds1", "-o", "json")
    assert (ran.code, json.loads(ran.out)) == (0, plain(view))
    msgspec.convert(api.asked[0].body, StorageCreate)
    assert api.calls("GET", "/v1/operations")[0].query == {"subject": "d-1"}
    assert "h1: yes, h2: not known, h3: no (not mounted)" in run("storage", "list").out
    assert run("image", "list", "-q").out == "tiny\n"


def test_clusters_users_tokens_settings(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    cluster = Cluster(id=ClusterId("c-1"), name="default")
    api.on("GET", "/v1/clusters/default", cluster)
    api.on("POST", "/v1/clusters", Answer(cluster, status=201))
    api.on("GET", "/v1/clusters", page(cluster))
    assert run("cluster", "create", "default").code == 0
    assert run("cluster", "list", "-q").out == "default\n"
    assert "restarts\ton" in run("cluster", "show", "default").out

    user = User(id=UserId("u-1"), name="eve", role=Role.OPERATOR)
    api.on("POST", "/v1/users", Answer(user, status=201))
    api.on("PATCH", "/v1/users/eve", user)
    monkeypatch.setattr("sys.stdin", io.StringIO("secret word\nsecond line\n"))
    assert run("user", "create", "eve", "--role", "operator", "--password-stdin").code == 0
    sent = msgspec.convert(api.calls("POST", "/v1/users")[0].body, UserCreate)
    assert (sent.password, sent.role) == ("secret word", Role.OPERATOR)
    assert run("user", "edit", "eve", "--disable").code == 0
    assert api.calls("PATCH")[0].body == {"enabled": False}
    assert run("user", "create", "eve").code == 2  # nobody here to type the password

    token = Token(id=TokenId("t-1"), kind=TokenKind.JOIN, expires=UtcMillis(NOON))
    made = TokenSecret(token=token, secret="virtha-join.t-1.s.f")
    api.on("POST", "/v1/tokens", Answer(made, status=201))
    assert run("token", "create", "--expires", "1d", "--uses", "3").out == "virtha-join.t-1.s.f\n"
    asked = msgspec.convert(api.calls("POST", "/v1/tokens")[0].body, TokenCreate)
    assert (asked.expires_ms, asked.uses_max) == (86_400_000, 3)
    assert run("token", "create", "--uses", "0").code == 2
    assert run("token", "create", "--expires", "soon").code == 2
    assert "agent join https://SERVER:8443" in run("token", "create", "-o", "table").out

    setting = SettingView(
        key="host.silence",
        scope=SettingScope.GLOBAL,
        subject="",
        value=None,
        default="3s",
        help="",
        allowed="a duration",
    )
    api.on("GET", "/v1/settings", page(setting))
    api.on("PUT", "/v1/settings/host.silence", setting)
    api.on("DELETE", "/v1/settings/host.silence", Answer(status=204))
    assert "(default)\t3s" in run("setting", "get", "host.silence").out
    ran = run("setting", "get", "host.silense")
    assert (ran.code, "did you mean 'host.silence'?" in ran.err) == (3, True)
    assert run("setting", "set", "host.silence", "5s", "--cluster", "default").code == 0
    put = api.calls("PUT")[0]
    assert (put.body, put.query) == ({"value": "5s"}, {"scope": "cluster", "subject": "c-1"})
    assert run("setting", "unset", "host.silence").code == 0
    assert api.calls("DELETE")[0].query == {"scope": "global"}


@pytest.mark.req("W4")
def test_capabilities(api: Api, run: Run) -> None:
    offer = WatchdogOffer(
        architecture="x86_64",
        machine="q35",
        models=(WatchdogModel.I6300ESB, WatchdogModel.ITCO),
        accepted=(WatchdogModel.I6300ESB,),
    )
    view = CapabilitiesView(
        watchdogs=(offer,), actions=tuple(WatchdogAction), hosts={"h1": (WatchdogModel.I6300ESB,)}
    )
    api.on("GET", "/v1/capabilities", view)
    out = run("capabilities").out
    assert "x86_64\tq35\ti6300esb, itco\ti6300esb" in out
    assert "h1\ti6300esb" in out
    assert json.loads(run("capabilities", "-o", "json").out) == plain(view)


def test_codes_work_offline(run: Run) -> None:
    assert "number\t2200" in run("codes", "vm.watchdog.fired").out
    assert run("codes", "2200").out == run("codes", "vm.watchdog.fired").out
    assert len(json.loads(run("codes", "-o", "json").out)) == len(REGISTRY)
    ran = run("codes", "vm.watchdog.fird")
    assert (ran.code, "did you mean 'vm.watchdog.fired'?" in ran.err) == (3, True)


# --- what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer", "argv"),
    [
        ("/v1/vms", page(vm_view("a"), vm_view("b")), ["vm", "list"]),
        ("/v1/vms/web1", plain(vm_view()), ["vm", "show", "web1"]),
        ("/v1/hosts", page(host_view()), ["host", "list"]),
        ("/v1/status", plain(status_view()), ["status"]),
        ("/v1/events", page(event(3)), ["event", "list"]),
        ("/v1/operations", page(operation()), ["operation", "list"]),
        ("/v1/operations/o-1", operation(), ["operation", "show", "o-1"]),
    ],
)
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_json_and_yaml_are_the_api_s_objects(
    path: str, answer: Any, argv: list[str], form: str, api: Api, run: Run
) -> None:
    api.on("GET", path, answer)
    ran = run(*argv, "-o", form)
    wanted = answer["items"] if argv[-1] == "list" else answer
    read: Any = json.loads(ran.out) if form == "json" else yaml.safe_load(ran.out)
    assert (ran.code, read, ran.err) == (0, wanted, "")


def test_pipes_get_tab_separated_text(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    assert run("vm", "list").out.splitlines() == [
        "NAME\tSTATE\tHOST\tHA\tWATCHDOG\tPROTECTION",
        "web1\trunning\th1\tyes\ti6300esb:reset\tprotected",
    ]


def test_tables_on_request_and_wide_ones(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view()))
    table, wide = run("vm", "list", "-o", "table").out, run("vm", "list", "-o", "wide").out
    assert "web1" in table and "128MiB" not in table
    assert "128MiB" in wide and "id-of-web1" in wide
    assert "\x1b" not in table + wide
    assert len(wide.splitlines()) == 3  # nothing is wrapped or cut in a pipe


def test_show_says_why(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms/web1", vm_view())
    lines = run("vm", "show", "web1").out.splitlines()
    assert "why\truns since it was started by root" in lines
    assert "state\trunning" in lines
    assert any("[vm.watchdog.fired]" in line for line in lines)


def test_names_of_strangers_are_shown_not_obeyed(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view("[red]x\x1b[2J\ty")))
    for form in ([], ["-o", "table"], ["-q"]):
        out = run("vm", "list", *form).out
        assert "\x1b" not in out
        assert "[red]x?[2J y" in out


def test_empty_lists(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page())
    assert run("vm", "list", "-o", "json").out == "[]\n"
    assert run("vm", "list").out.splitlines() == ["NAME\tSTATE\tHOST\tHA\tWATCHDOG\tPROTECTION"]


@pytest.mark.req("X5")
def test_status_begins_with_the_verdict_and_lists_what_is_wrong(api: Api, run: Run) -> None:
    api.on("GET", "/v1/status", status_view(hold="moving racks"))
    lines = run("status").out.splitlines()
    assert lines[0].startswith("DEGRADED: ")
    assert lines[1].startswith("ON HOLD: moving racks")
    shown = "\n".join(lines)
    assert "bare\trunning\th1\tyes\tit has no watchdog" in shown
    assert "\nfine\t" not in shown and "\nplain\t" not in shown
    assert "\nfine\t" in run("status", "--all").out
    assert run("status", "-q").out == "degraded\n"


def test_status_of_an_empty_installation_says_how_to_begin(api: Api, run: Run) -> None:
    empty = {**plain(status_view(verdict="empty")), "hosts": [], "vms": []}
    api.on("GET", "/v1/status", empty)
    out = run("status").out
    assert out.startswith("EMPTY: ") and out.rstrip().endswith("`virtha agent join` on the host")


def test_hold(api: Api, run: Run) -> None:
    api.on("PUT", "/v1/hold", {"reason": "moving racks"})
    api.on("DELETE", "/v1/hold", {"reason": None})
    api.on("GET", "/v1/hold", {"reason": None})
    assert run("hold", "moving racks").out == "automatic action is on hold: moving racks\n"
    assert api.asked[0].body == {"reason": "moving racks"}
    assert run("hold", "--lift").code == 0
    assert run("unhold").code == 0
    assert len(api.calls("DELETE")) == 2
    assert run("hold").out == "automatic action runs\n"
    assert run("hold", "again", "--lift").code == 2


def test_watch_shows_changes_and_ends_with_0(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(asked: Any) -> Any:
        monkeypatch.setattr(session_module.time, "sleep", press_ctrl_c)
        return page(vm_view("a"), vm_view("b"))

    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    api.on("GET", "/v1/vms", page(vm_view("a")), page(vm_view("a")), interrupt)
    ran = run("vm", "list", "--watch", "-q")
    assert ran == Ran(0, "a\na\nb\n", "")


def test_watch_in_a_pipe_ends_when_the_server_is_lost(api: Api, run: Run) -> None:
    api.on("GET", "/v1/vms", page(vm_view("a")), Answer(cut=True))
    assert run("vm", "list", "--watch", "-q").code == 5


# --- operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("order.refused.running", 4),
        ("problem.no_host_fits", 4),
        ("problem.failed", 1),
        (None, 1),
        ("a.code.of.a.newer.server", 1),
    ],
)
def test_failed_operations(code: str | None, exit_code: int, api: Api, run: Run) -> None:
    failed = operation(FAILED, code=code, message="it runs already")
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    api.on("GET", "/v1/operations/o-1", failed)
    ran = run("vm", "start", "web1")
    assert (ran.code, ran.out) == (exit_code, "")
    assert "error: vm.start failed: it runs already" in ran.err
    assert f"code: {code or 'problem.failed'}" in ran.err
    ran = run("vm", "start", "web1", "-o", "json")
    assert (ran.code, json.loads(ran.out)) == (exit_code, failed)


def test_no_wait_prints_the_id(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    ran = run("vm", "start", "web1", "--no-wait")
    assert (ran.code, ran.out) == (0, "o-1\n")
    assert "virtha operation wait o-1" in ran.err
    assert len(api.asked) == 1


def test_each_step_is_told_once(api: Api, run: Run) -> None:
    def at(first: OperationState, second: OperationState) -> dict[str, Any]:
        return operation(RUNNING, steps=(("create disk", first), ("start on h1", second)))

    pending = OperationState.PENDING
    api.on("POST", "/v1/vms/web1/start", accepted(at(RUNNING, pending)))
    finished = operation(steps=(("create disk", DONE), ("start on h1", DONE)))
    api.on("GET", "/v1/operations/o-1", at(RUNNING, pending), at(DONE, RUNNING), finished)
    assert run("vm", "start", "web1").err.splitlines() == [
        "create disk: running",
        "create disk: done",
        "start on h1: running",
        "start on h1: done",
    ]
    assert run("vm", "start", "web1", "-q").err == ""


def test_waiting_outlives_a_server_restart(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/web1/start", accepted(operation(RUNNING)))
    busy = Answer({"code": "problem.unavailable", "detail": "stopping"}, status=503)
    api.on("GET", "/v1/operations/o-1", Answer(cut=True), busy, operation())
    ran = run("vm", "start", "web1")
    assert ran.code == 0
    assert len(api.calls("POST")) == 1  # asked for once, whatever happened on the way


def test_waiting_has_an_end(api: Api, run: Run) -> None:
    api.on("GET", "/v1/operations/o-1", operation(RUNNING))
    ran = run("operation", "wait", "o-1", "--timeout", "20ms")
    assert ran.code == 5
    assert "it goes on; wait more: virtha operation wait o-1" in ran.err
    assert run("operation", "wait", "o-1", "--timeout", "soon").code == 2


def test_several_names_each_get_their_turn(api: Api, run: Run) -> None:
    taken = Answer({"code": "problem.vm.state", "detail": "runs already"}, status=409)
    api.on("POST", "/v1/vms/a/start", accepted(operation()))
    api.on("POST", "/v1/vms/b/start", taken)
    api.on("POST", "/v1/vms/c/start", accepted(operation()))
    ran = run("vm", "start", "a", "b", "nope", "c")
    assert ran.code == 1  # the first that failed decides
    assert ran.out.splitlines() == ["VM a runs (2.5 s)", "VM c runs (2.5 s)"]
    assert "b: error: runs already" in ran.err
    assert "nope: error: no route" in ran.err


def test_several_names_stop_when_the_server_is_gone(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms/a/start", Answer(cut=True))
    assert run("vm", "start", "a", "b").code == 5
    assert [asked.path for asked in api.asked] == ["/v1/vms/a/start"]


def test_vm_state_filter_is_checked_here(api: Api, run: Run) -> None:
    assert run("vm", "list", "--state", "flying").code == 2
    api.on("GET", "/v1/vms", page(vm_view(state=VmState.PAUSED)))
    assert run("vm", "list", "--state", "paused").code == 0
    assert api.asked[0].query == {"state": "paused"}


def test_ctrl_c_while_waiting_says_that_it_goes_on(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress_module.time, "sleep", press)
    api.on("GET", "/v1/operations/o-1", operation(RUNNING), Answer(cut=True))
    ran = run("operation", "wait", "o-1")
    assert ran.code == 130
    assert "it goes on all the same; see: virtha operation wait o-1" in ran.err
