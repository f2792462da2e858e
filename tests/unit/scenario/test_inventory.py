"""Inventories as people write them: what is read, and what every mistake is answered with."""

from pathlib import Path

import pytest

from virtha.engine.affinity import AffinityKind
from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.dependencies import StartCondition
from virtha.model.errors import InvalidInput
from virtha.model.evidence import IdentityMatch
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.scenario.inventory import (
    BmcAnswers,
    FedBy,
    Inventory,
    engine_host,
    engine_vm,
    read_inventory,
)
from virtha.scenario.inventory_check import check_inventory

pytestmark = pytest.mark.req("X3")

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30

GOOD = """\
cluster: mine
policy: {profile: fast, fencing: {cap_count: 5}}
storage: [fast, slow]
reference: yes
groups:
  - {name: pair, kind: apart, hard: yes}
  - {name: near, kind: together}
hosts:
  - name: "h{n}"
    count: 2
    rack: a
    memory: 64GiB
    reserved: 512MiB
    cpus: 16
    tags: [ssd, gpu]
    power:
      - [{name: "{host}-left", fed_by: own}, {name: "{host}-right", answers: ignores}]
      - {answers: dead, fed_by: host, names_host: no, tested: no, status: no, answer_time: 2s, switch_time: 9s}
  - {name: old, number: 40, memory: 32GiB, cpus: 8, storage: slow, watchdog: no}
vms:
  - {name: db, on: h1, memory: 1.5GiB, vcpus: 4, ha: yes, priority: 7, tags: ssd, storage: [fast, slow], groups: [pair, near], grade: move}
  - {name: "web-{n}", count: 3, first: 5, on: [rack=a, old], memory: 2GiB, storage: slow, depends_on: [db, {vm: "app-{n}", condition: guest_agent}], start_time: 900ms, boot_time: 1m}
  - {name: "app-{n}", count: 3, first: 5, on: h2, memory: 2GiB, ignore: yes, storage: slow}
  - {name: image, on: nowhere, memory: 1GiB, storage: slow}
"""


def read(text: str) -> Inventory:
    found = read_inventory(text, file="i.yaml")
    check_inventory(found)
    return found


def test_all_that_can_be_said_is_read() -> None:
    found = read(GOOD)
    assert (found.cluster, found.storage, found.reference) == ("mine", ("fast", "slow"), True)
    assert found.policy.detection == PROFILES[Profile.FAST].detection
    assert found.policy.fencing.cap_count == 5
    assert [(one.name, one.number) for one in found.hosts] == [("h1", 1), ("h2", 2), ("old", 40)]
    first = found.hosts[0]
    assert (first.rack, first.memory_bytes, first.reserved_bytes) == ("a", 64 * GIB, GIB // 2)
    assert (first.tags, first.storage, first.watchdog) == (("ssd", "gpu"), ("fast", "slow"), True)
    feeds, second = first.power
    assert [one.device for one in feeds] == ["h1-left", "h1-right"]
    assert (feeds[0].fed_by, feeds[0].answers) == (FedBy.OWN, BmcAnswers.TRUTH)
    assert feeds[1].answers is BmcAnswers.IGNORES
    only = second[0]
    assert (only.device, only.answers, only.fed_by) == ("h1-power2.1", BmcAnswers.DEAD, FedBy.HOST)
    assert (only.identity, only.tested, only.reads_state) == (IdentityMatch.UNKNOWN, False, False)
    assert (only.answer_ms, only.switch_ms) == (2_000, 9_000)
    assert (found.hosts[2].storage, found.hosts[2].watchdog) == (("slow",), False)
    assert found.racks == ("a",)
    vms = {vm.name: vm for vm in found.vms}
    assert list(vms) == ["db", "web-5", "web-6", "web-7", "app-5", "app-6", "app-7", "image"]
    assert [vms[f"web-{n}"].on for n in (5, 6, 7)] == ["h1", "h2", "old"]
    assert vms["image"].on is None
    assert (vms["web-5"].start_ms, vms["web-5"].boot_ms) == (900, 60_000)
    needs = vms["web-6"].depends_on
    assert [(one.name, one.condition) for one in needs] == [
        ("db", StartCondition.STARTED),
        ("app-6", StartCondition.GUEST_AGENT),
    ]


def test_it_maps_to_what_the_engine_takes() -> None:
    found = read(GOOD)
    host = engine_host(found.hosts[0])
    assert (host.host_id, host.name, host.number, host.cpus) == ("h1", "h1", 1, 16)
    assert host.features == {Feature(FeatureKind.TAG, "ssd"), Feature(FeatureKind.TAG, "gpu")}
    assert [len(level.feeds) for level in host.power] == [2, 1]
    assert host.power[1].feeds[0].reads_state is False
    vms = {one.name: engine_vm(one) for one in found.vms}
    db = vms["db"]
    assert (db.memory_bytes, db.vcpus, db.ha, db.priority) == (GIB * 3 // 2, 4, True, 7)
    assert db.grade == "move"
    assert Feature(FeatureKind.STORAGE, "fast") in db.features
    assert [(group.kind, group.hard) for group in db.groups] == [
        (AffinityKind.APART, True),
        (AffinityKind.TOGETHER, False),
    ]
    assert (db.wanted_up, vms["image"].wanted_up) == (True, False)
    assert vms["app-5"].ignore


def test_the_example_is_good() -> None:
    found = read((ROOT / "examples" / "three-racks.yaml").read_text())
    assert (len(found.hosts), len(found.vms), found.racks) == (18, 120, ("r1", "r2", "r3"))


HOSTS = "hosts: [{name: h1, memory: 8GiB, cpus: 4}, {name: h2, memory: 8GiB, cpus: 4}]\n"


def with_vms(*lines: str, top: str = "") -> str:
    return HOSTS + top + "vms:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


VM = "name: v, on: h1, memory: 1GiB"

BAD: dict[str, tuple[str, str, str]] = {
    "empty": ("", "i.yaml: there is nothing in it", "allowed: cluster, policy"),
    "a list": ("- a\n", "i.yaml:1:1: this must be fields with values", "allowed: cluster"),
    "no hosts": ("vms: []\n", "i.yaml:1:1: 'hosts' is missing", "write hosts:"),
    "hosts left empty": ("hosts: []\n", "i.yaml:1:8: there is no host", "write at least one"),
    "unknown key": ("hots: []\n", "hots: i.yaml:1:1: there is no 'hots'", "did you mean 'hosts'?"),
    "unknown host key": (
        "hosts:\n  - {name: h, memroy: 1GiB}\n",
        "hosts.memroy: i.yaml:2:15: there is no 'memroy'",
        "did you mean 'memory'?",
    ),
    "no memory": (
        "hosts: [{name: h, cpus: 4}]\n",
        "hosts.memory: i.yaml:1:9: 'memory' is missing",
        "write for example memory: 16GiB",
    ),
    "decimal unit": (
        "hosts: [{name: h, memory: 64GB, cpus: 4}]\n",
        "hosts.memory: i.yaml:1:27: '64GB' is not a size",
        "KiB, MiB, GiB or TiB",
    ),
    "no memory at all": (
        "hosts: [{name: h, memory: 0, cpus: 4}]\n",
        "hosts.memory: i.yaml:1:27: it can't be zero",
        "",
    ),
    "all reserved": (
        "hosts: [{name: h, memory: 1GiB, reserved: 1GiB, cpus: 4}]\n",
        "hosts.reserved: i.yaml:1:43: the host keeps all of its memory",
        "lower reserved",
    ),
    "cpus": (
        "hosts: [{name: h, memory: 1GiB, cpus: many}]\n",
        "hosts.cpus: i.yaml:1:39: 'many' does not fit here",
        "allowed: 1 to 8192",
    ),
    "a bad name": (
        "hosts: [{name: 'h 1', memory: 1GiB, cpus: 4}]\n",
        "hosts.name: i.yaml:1:16: 'h 1' is no name",
        "letters, digits",
    ),
    "a host twice": (
        "hosts:\n  - {name: h, memory: 1GiB, cpus: 4}\n  - {name: h, memory: 1GiB, cpus: 4}\n",
        "hosts.name: i.yaml:3:12: there is a host 'h' already in line 2",
        "give each its own name",
    ),
    "a number twice": (
        "hosts:\n  - {name: g, number: 3, memory: 1GiB, cpus: 4}\n"
        "  - {name: h, number: 3, memory: 1GiB, cpus: 4}\n",
        "hosts.number: i.yaml:3:23: 3 is the number of g already",
        "leave numbers out",
    ),
    "many of one name": (
        "hosts: [{name: h, count: 3, memory: 1GiB, cpus: 4}]\n",
        "hosts.name: i.yaml:1:16: 'h' would be the name of 3",
        "write h-{n}",
    ),
    "n without count": (
        "hosts: [{name: 'h{n}', memory: 1GiB, cpus: 4}]\n",
        "hosts.name: i.yaml:1:16: there is no count for {n}",
        "add count: 3",
    ),
    "unknown domain of a host": (
        "storage: [fast]\nhosts: [{name: h, memory: 1GiB, cpus: 4, storage: fats}]\n",
        "hosts.storage: i.yaml:2:51: there is no storage domain 'fats'",
        "did you mean 'fast'?",
    ),
    "what a BMC does": (
        "hosts: [{name: h, memory: 1GiB, cpus: 4, power: {answers: lies}}]\n",
        "hosts.power.answers: i.yaml:1:59: 'lies' does not fit here",
        "says_off",
    ),
    "two devices of one name": (
        "hosts: [{name: h, memory: 1GiB, cpus: 4, power: [{name: a}, {name: a}]}]\n",
        "hosts.power.name: i.yaml:1:68: h has two devices 'a'",
        "rename one",
    ),
    "a level of nothing": (
        "hosts: [{name: h, memory: 1GiB, cpus: 4, power: [[]]}]\n",
        "hosts.power: i.yaml:1:50: a level without a device",
        "",
    ),
    "a duration without unit": (
        with_vms(VM + ", boot_time: 5"),
        "vms.boot_time: i.yaml:3:48: '5' is not a duration",
        "write for example 1.5s",
    ),
    "nowhere said": (
        with_vms("name: v, memory: 1GiB"),
        "vms.on: i.yaml:3:5: 'on' is missing",
        "or nowhere",
    ),
    "unknown host": (
        with_vms("name: v, on: h11, memory: 1GiB"),
        "vms.on: i.yaml:3:19: there is no host 'h11'; allowed: h1, h2",
        "did you mean 'h1'?",
    ),
    "unknown rack": (
        with_vms("name: v, on: rack=a, memory: 1GiB"),
        "vms.on: i.yaml:3:19: there is no rack 'a'",
        "none is in this inventory",
    ),
    "on no host of a list": (
        with_vms("name: v, on: [], memory: 1GiB"),
        "vms.on: i.yaml:3:19: the list is empty",
        "write nowhere",
    ),
    "a VM twice": (
        with_vms(VM, VM),
        "vms.name: i.yaml:4:12: there is a VM 'v' already in line 3",
        "give each its own name",
    ),
    "unknown VM": (
        with_vms(VM + ", depends_on: [w]"),
        "vms.depends_on: i.yaml:3:50: there is no VM 'w'",
        "allowed: v",
    ),
    "health is not reported": (
        with_vms(VM, "name: w, on: h1, memory: 1GiB, depends_on: [{vm: v, condition: healthy}]"),
        "vms.depends_on.condition: i.yaml:4:69: nobody reports the health",
        "write guest_agent",
    ),
    "unknown domain": (
        with_vms(VM + ", storage: fast", top="storage: [slow]\n"),
        "vms.storage: i.yaml:4:46: there is no storage domain 'fast'",
        "allowed: slow",
    ),
    "which domain": (
        with_vms(VM, top="storage: [slow, fast]\n"),
        "vms.storage: i.yaml:4:5: 'storage' is missing",
        "say which it has disks in: slow, fast",
    ),
    "a domain that its host lacks": (
        "storage: [a, b]\nhosts: [{name: h1, memory: 8GiB, cpus: 4, storage: a}]\n"
        f"vms: [{{{VM}, storage: b}}]\n",
        "vms.storage: i.yaml:3:48: v runs on h1, which does not reach storage domain 'b'",
        "correct the storage",
    ),
    "more processors than there are": (
        with_vms(VM + ", vcpus: 5"),
        "vms.vcpus: i.yaml:3:44: v has 5 and runs on h1, which has 4",
        "correct the vcpus",
    ),
    "unknown group": (
        with_vms(VM + ", groups: [g]"),
        "vms.groups: i.yaml:3:46: there is no affinity group 'g'",
        "none is in this inventory",
    ),
    "a group of no kind": (
        HOSTS + "groups: [{name: g}]\n",
        "groups.kind: i.yaml:2:10: 'kind' is missing",
        "write kind: apart or kind: together",
    ),
    "a group twice": (
        HOSTS + "groups: [{name: g, kind: apart}, {name: g, kind: apart}]\n",
        "groups.name: i.yaml:2:41: there are two groups 'g'",
        "rename one",
    ),
    "yes or no": (
        with_vms(VM + ", ha: maybe"),
        "vms.ha: i.yaml:3:41: 'maybe' does not fit here",
        "allowed: yes, no",
    ),
    "more memory than the host has": (
        with_vms("name: 'v{n}', count: 9, on: h1, memory: 1GiB"),
        "vms.memory: i.yaml:3:12: with v9 the VMs on h1 need 9GiB, and it has 8GiB",
        "put it on another host",
    ),
    "a cycle": (
        with_vms(
            VM + ", depends_on: [w]",
            "name: w, on: h1, memory: 1GiB, depends_on: [x]",
            "name: x, on: h1, memory: 1GiB, depends_on: [v]",
            "name: y, on: h1, memory: 1GiB, depends_on: [v]",
        ),
        "vms.depends_on: i.yaml:5:12: these VMs wait for each other: v -> w -> x -> v",
        "remove one of these dependencies",
    ),
    "affinity that contradicts itself": (
        with_vms(
            VM + ", groups: [together, apart]",
            "name: w, on: h1, memory: 1GiB, groups: [together]",
            "name: x, on: h1, memory: 1GiB, groups: [together, apart]",
            top="groups: [{name: together, kind: together, hard: yes}, "
            "{name: apart, kind: apart, hard: yes}]\n",
        ),
        "vms.groups: i.yaml:6:12: v and x must be apart by 'apart'",
        "make one of the rules soft",
    ),
    "a policy that can't be": (
        HOSTS + "policy:\n  detection:\n    hung_after: 40s\n",
        "detection.hung_after: i.yaml:4:17: detection.hung_after 40s must be less than",
        "lower detection.hung_after",
    ),
    "a policy with a typing mistake": (
        HOSTS + "policy: {lease: {kil: 4s}}\n",
        "lease.kil: i.yaml:2:18: there is no 'kil'",
        "did you mean 'kill'?",
    ),
    "not YAML": ("hosts: [\n", "i.yaml:2:1: not valid YAML", ""),
}


@pytest.mark.bad_input("unknown field")
@pytest.mark.parametrize(("text", "message", "way_out"), BAD.values(), ids=BAD)
def test_a_mistake_is_answered_with_place_field_and_way_out(
    text: str, message: str, way_out: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    said = str(caught.value)
    assert message in said
    assert way_out in said


@pytest.mark.bad_input("inventory with a cycle")
def test_the_first_vm_with_which_a_cycle_closes_is_named() -> None:
    """Not the first of the file: that one may have nothing to do with it."""
    lines = [f"name: v{n}, on: h1, memory: 1MiB, depends_on: [v{(n + 1) % 40}]" for n in range(40)]
    with pytest.raises(InvalidInput, match=r"i.yaml:43:12"):
        read(with_vms("name: free, on: h1, memory: 1MiB", *lines))


def test_what_looks_wrong_and_is_not() -> None:
    """A memory that the policy promises twice; a soft rule that contradicts; a chain without a cycle."""
    read(
        HOSTS
        + "policy: {recovery: {memory_overcommit_percent: 150}}\n"
        + "groups: [{name: t, kind: together, hard: yes}, {name: a, kind: apart}]\n"
        + "vms:\n  - {name: 'v{n}', count: 12, on: h1, memory: 1GiB, groups: [t, a]}\n"
        + "  - {name: w, on: h2, memory: 1GiB, depends_on: [v1, v2, v1]}\n"
    )
