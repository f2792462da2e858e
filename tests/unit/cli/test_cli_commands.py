"""Nouns and verbs: what goes to the server."""

import json
from collections.abc import Callable

import msgspec
import pytest
from cli_fake_api import Answer, Api, Ran
from cli_shapes import (
    NOON,
    accepted,
    host_view,
    operation,
    page,
    plain,
    vm_view,
)

from virtha.control.requests import (
    CephCreate,
    StorageCreate,
    TokenCreate,
    UserCreate,
    VmChange,
    VmCreate,
)
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
from virtha.model.watchdog import WatchdogAction, WatchdogModel

Run = Callable[..., Ran]
RUNNING, FAILED, DONE = OperationState.RUNNING, OperationState.FAILED, OperationState.DONE


@pytest.mark.req("W1", "W2", "A8")
def test_vm_create_sends_what_the_server_reads(api: Api, run: Run) -> None:
    api.on("POST", "/v1/vms", accepted(operation(kind="vm.create")))
    ran = run(
        *("vm", "create", "web1", "--image", "tiny", "--memory", "128MiB", "--vcpus", "2", "--ha"),
        *("--watchdog", "i6300esb:reset", "--storage", "ds1", "--machine", "pc", "--start"),
        *("--disk", "name=data,size=1GiB", "--disk", "path=old.qcow2,format=raw"),
        *("--nic", "bridge=br0,name=front", "--nic", "br1"),
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
    assert [(nic.bridge, nic.name) for nic in sent.nics] == [("br0", "front"), ("br1", None)]


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
    assert run("vm", "edit", "web1", "--grade", "observe").code == 0
    wrong = run("vm", "edit", "web1", "--grade", "some")
    assert wrong.code == 2 and "--grade" in wrong.err and "'observe'" in wrong.err
    assert [asked.body for asked in api.asked] == [
        {"ha": False, "memory_bytes": 1 << 30},
        {"watchdog": None},
        {"grade": "observe"},
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


@pytest.mark.req("W1", "W3")
@pytest.mark.parametrize(
    ("noun", "path", "named"),
    [
        ("vm", "/v1/vms/web1/watchdog", "VM web1"),
        ("template", "/v1/templates/web1/watchdog", "template web1"),
    ],
)
def test_watchdog_card(api: Api, run: Run, noun: str, path: str, named: str) -> None:
    card = {"model": "ib700", "action": "poweroff"}
    api.on("PUT", path, card)
    api.on("GET", path, card)
    api.on("DELETE", path, Answer(status=204))
    ran = run(noun, "watchdog", "set", "web1", "ib700:poweroff")
    assert ran.out == f"{named} has watchdog ib700:poweroff\n"
    assert api.asked[0].body == card
    assert json.loads(run(noun, "watchdog", "show", "web1", "-o", "json").out) == card
    assert run(noun, "watchdog", "show", "web1").out == "model\tib700\naction\tpoweroff\n"
    assert run(noun, "watchdog", "remove", "web1").out == f"{named} has no watchdog now\n"
    asked = len(api.asked)
    for wrong, told in (
        ("ib700", "the action is missing"),
        ("tardis:reset", "allowed: i6300esb, ib700, diag288, itco"),
        ("ib700:dance", "allowed: reset, poweroff, pause, dump, none"),
        ("none", "'none' is no watchdog model"),
    ):
        ran = run(noun, "watchdog", "set", "web1", wrong)
        assert ran.code == 2 and told in ran.err, ran.err
    assert len(api.asked) == asked, "none of it was sent"


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
    ceph = ("--ceph-monitor", "10.0.0.11", "--ceph-monitor", "10.0.0.12", "--ceph-pool", "vms")
    assert run("storage", "add", "ds1", *ceph, "--ceph-user", "virtha").code == 0
    asked = msgspec.convert(api.calls("POST", "/v1/storage-domains")[1].body, StorageCreate)
    assert (asked.kind, asked.path) == ("ceph-rbd", None)
    assert asked.ceph == CephCreate(monitors=("10.0.0.11", "10.0.0.12"), pool="vms", user="virtha")
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
