"""Reading and editing agent.properties: what is kept, what is refused and how it is said."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.agent import properties as module
from virtha.agent.properties import (
    AgentProperties,
    get_property,
    load_properties,
    read_properties,
    set_property,
    unset_property,
    write_properties,
)
from virtha.agent.property_table import PROPERTIES, TABLE, check_value, reference_page
from virtha.domainxml.host_defaults import Cpu, CpuMode, Rng, RngBackend
from virtha.model.errors import InvalidInput
from virtha.model.power_settings import PowerHelp
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel

FULL = """\
# Written by an administrator.
! an old comment style

guid=6f1c2b52-8f43-4a8c-9a5e-000000000001
workers = 7
host=m1.example.org,10.0.0.2:9250, [fd00::1]:8250 ,[fd00::2]@roundrobin
port=8251
hypervisor.uri=qemu+unix:///system?socket=/run/l/libvirt-sock
hypervisor.type=qemu
host.overcommit.mem.mb=2048
host.lb.check.interval=0
guest.cpu.mode=custom
guest.cpu.model=Skylake-Server
guest.cpu.features=vmx  aes -avx512f
vm.rng.enable=true
vm.rng.model=egd
vm.rng.path=/run/egd.sock
vm.rng.rate.bytes=1024
vm.rng.rate.period=500
vm.watchdog.model=i6300esb
vm.watchdog.action=inject-nmi
vm.diskactivity.checkenabled=true
vm.diskactivity.checktimeout_s=60
vm.diskactivity.inactivetime_ms=20000
probe.port=9252
probe.address=192.0.2.11
probe.storage.address=2001:db8::11
migration.address=node1.storage.example.org
power.attempts=any
"""


@pytest.mark.req("A1", "A2", "A4", "A5", "A6", "W10", "L3", "L4")
def test_every_key_reaches_its_value() -> None:
    values, warnings = read_properties(FULL)
    assert warnings == ()
    assert values == AgentProperties(
        host=("m1.example.org:8251", "10.0.0.2:9250", "[fd00::1]:8250", "[fd00::2]:8251"),
        host_algorithm="roundrobin",
        guid="6f1c2b52-8f43-4a8c-9a5e-000000000001",
        workers=7,
        hypervisor_uri="qemu+unix:///system?socket=/run/l/libvirt-sock",
        hypervisor_type="qemu",
        host_overcommit_memory_bytes=2 << 30,
        host_lb_check_interval_s=0,
        guest_cpu=Cpu(
            mode=CpuMode.CUSTOM, model="Skylake-Server", features=("vmx", "aes", "-avx512f")
        ),
        rng=Rng(backend=RngBackend.EGD, path="/run/egd.sock", rate_bytes=1024, rate_period_ms=500),
        watchdog=Watchdog(model=WatchdogModel.I6300ESB, action=WatchdogAction.INJECT_NMI),
        diskactivity_check=True,
        diskactivity_timeout_s=60,
        diskactivity_quiet_ms=20_000,
        migration_address="node1.storage.example.org",
        probe_port=9252,
        probe_address="192.0.2.11",
        probe_storage_address="2001:db8::11",
        power_attempts=PowerHelp.ANY,
    )
    # Each key of the table stands in FULL, so none can be forgotten by the reader.
    assert {line.partition("=")[0].strip() for line in FULL.splitlines() if "=" in line} == set(
        PROPERTIES
    )


@pytest.mark.req("A1", "A4", "A5")
def test_an_empty_file_gives_the_documented_defaults() -> None:
    assert read_properties("") == (AgentProperties(), ())
    # The random generator's own defaults show once it is switched on.
    values, _ = read_properties("vm.rng.enable=true")
    assert values.rng == Rng()
    for item in TABLE:
        if item.default:
            check_value(item, item.default)
            read_properties(f"{item.key}={item.default}\n")


@pytest.mark.parametrize(
    "text",
    [
        "workers=9",
        "workers=9\n",
        "workers=9\r\n",
        "# x\r\nworkers=9\r\n# y",
        "# x\rworkers=9\r",
        "\ufeffworkers=9\n",
        "  workers \t=  9  \n",
        "\n\n!c\nworkers=9",
        "workers=9\nhost=",
    ],
)
@pytest.mark.req("A1", "A7")
@pytest.mark.bad_input("properties without final newline", "properties with CRLF")
def test_line_ends_blanks_and_comments(text: str) -> None:
    values, warnings = read_properties(text)
    assert (values.workers, warnings) == (9, ())


@pytest.mark.parametrize(
    ("text", "field", "message", "allowed"),
    [
        ("# a\nworkers=many", "workers", "line 2: 'many' is no value", "1 to 64"),
        ("workers=0", "workers", "line 1", "1 to 64"),
        ("workers=65", "workers", "line 1", "1 to 64"),
        ("workers=٣", "workers", "line 1", "1 to 64"),
        ("workers=-1", "workers", "line 1", "1 to 64"),
        ("workers=" + "9" * 5000, "workers", "9...' is no value", "1 to 64"),
        ("vm.rng.enable=yes", "vm.rng.enable", "line 1", "true"),
        ("\r\n\r\nvm.watchdog.model=i6300\r\n", "vm.watchdog.model", "line 3", "i6300esb"),
        ("vm.rng.path=dev/random", "vm.rng.path", "line 1", "an absolute path"),
        ("guest.cpu.features=aes,vmx", "guest.cpu.features", "line 1", "a space between"),
        ("guest.cpu.features=a<b/>", "guest.cpu.features", "line 1", "a space between"),
        ("host=a@fastest", "host", "line 1", "@shuffle"),
        ("host=a,,b", "host", "line 1", "commas"),
        ("host=a:70000", "host", "line 1", "commas"),
        ("guid=a\x1b[2Jb", "guid", "line 1: 'a\\x1b", "one line"),
        ("workers=4\n\nworkers=5\n", "workers", "stands twice, in lines 1 and 3", ""),
        ("mystery=1\r\nmystery=1", "mystery", "lines 1 and 2", ""),
        ("workers", "workers", "", ""),
        ("=5", "key", "line 1: not a property", "key=value"),
        ("workers 5", "workers 5", "line 1: not a property", "key=value"),
        ("workers:5", "workers:5", "line 1: not a property", "key=value"),
        ("host=a,\\\n  b", "host", "line 1: a line can't be continued", ""),
        ("vm.watchdog.model=ib700", "vm.watchdog.model", "needs vm.watchdog.action", "reset"),
        ("#\nvm.watchdog.action=reset", "vm.watchdog.action", "line 2", "ib700"),
        ("guest.cpu.mode=custom", "guest.cpu.mode", "needs guest.cpu.model", ""),
        ("guest.cpu.mode=maximum\nguest.cpu.model=x", "guest.cpu.model", "line 2", ""),
        ("vm.diskactivity.checktimeout_s=5", "vm.diskactivity.checktimeout_s", "line 1: 5 s", ""),
    ],
)
@pytest.mark.req("A1", "W10")
@pytest.mark.bad_input("properties with a duplicate key")
def test_bad_lines_name_key_line_and_what_is_allowed(
    text: str, field: str, message: str, allowed: str
) -> None:
    if text == "workers":
        # Java reads a lone key as an empty value: unset.
        assert read_properties(text)[0].workers == 5
        return
    with pytest.raises(InvalidInput) as caught:
        read_properties(text)
    assert caught.value.field == field
    assert message in str(caught.value)
    assert allowed in " ".join(caught.value.allowed)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("vm.watchdog.modle", "vm.watchdog.model"),
        ("host.overcommit.memory.mb", "host.overcommit.mem.mb"),
        ("WORKERS", "workers"),
        ("zone", None),
    ],
)
@pytest.mark.req("A1")
def test_unknown_keys_warn_with_the_nearest_known_one(key: str, near: str | None) -> None:
    values, warnings = read_properties(f"# c\n{key}=1\nworkers=2")
    assert values.workers == 2
    assert len(warnings) == 1
    assert warnings[0].startswith(f"line 2: there is no property {key}")
    assert ("did you mean" in warnings[0]) == (near is not None)
    assert (near or "") in warnings[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "host=m1@static\n"),
        ("workers=5", "workers=5\nhost=m1@static\n"),
        ("workers=5\r\n# end", "workers=5\r\n# end\r\nhost=m1@static\r\n"),
        ("host=old", "host=m1@static"),
        ("# c\n  host = old  \nworkers=5", "# c\n  host = m1@static  \nworkers=5"),
        ("host=old\r\nworkers=5\r\n", "host=m1@static\r\nworkers=5\r\n"),
        ("host=\nworkers=5\n", "host=m1@static\nworkers=5\n"),
        ("host\n", "host=m1@static\n"),
        ("\ufeffhost=old\n", "\ufeffhost=m1@static\n"),
        ("#host=old\n", "#host=old\nhost=m1@static\n"),
        (
            "host.lb.check.interval=3\nmyhost=1\nhost.x=2",
            "host.lb.check.interval=3\nmyhost=1\nhost.x=2\nhost=m1@static\n",
        ),
    ],
)
@pytest.mark.req("A7", "L3")
@pytest.mark.bad_input("properties without final newline", "properties with CRLF")
def test_setting_touches_nothing_else(before: str, after: str) -> None:
    assert set_property(before, "host", "m1@static") == after
    assert get_property(after, "host") == "m1@static"


@pytest.mark.req("A7")
@pytest.mark.bad_input("properties with a duplicate key")
def test_setting_refuses_what_reading_would_refuse() -> None:
    for text, key, value, message in (
        ("", "hsot", "m1", "did you mean host?"),
        ("", "workers", "lots", "is no value"),
        ("", "guid", "a\nworkers=99", "is no value"),
        ("host=a\nhost=b", "host", "c", "stands twice, in lines 1 and 2"),
    ):
        with pytest.raises(InvalidInput, match=None) as caught:
            set_property(text, key, value)
        assert message in str(caught.value)


@pytest.mark.req("A7")
def test_unsetting_takes_the_whole_line_and_only_that() -> None:
    text = "# a\r\nhost = x\r\nhost.lb.check.interval=3\r\nhost=y"
    assert unset_property(text, "host") == "# a\r\nhost.lb.check.interval=3\r\n"
    assert unset_property(text, "port") == text
    assert get_property("workers=1", "host") is None


_LINES = st.lists(
    st.tuples(
        st.sampled_from(
            ["# c\x85d", "!", "", "  ", "workers=3", " host =a,b@shuffle ", "x.y=\u2028z", "guid"]
        ),
        st.sampled_from(["\n", "\r\n", "\r"]),
    ),
    max_size=8,
    unique_by=lambda pair: pair[0].strip(" #!") or pair,
)


@given(_LINES, st.booleans(), st.sampled_from(["host", "workers", "port", "guid"]))
@pytest.mark.req("A7")
def test_any_file_survives_an_edit(lines: list[tuple[str, str]], ends: bool, key: str) -> None:
    text = "".join(content + end for content, end in lines)
    if not ends:
        text = text.rstrip("\r\n")
    value = {"host": "h1:1@static", "workers": "8", "port": "99", "guid": "g"}[key]
    edited = set_property(text, key, value)
    assert get_property(edited, key) == value
    others = [content for content, _ in lines if content.partition("=")[0].strip() != key]
    for content in others:
        assert content in edited
    assert set_property(edited, key, value) == edited
    if get_property(text, key) is None:
        assert unset_property(edited, key).startswith(text)


@pytest.mark.req("A7")
def test_writing_keeps_mode_link_and_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    real = tmp_path / "real.properties"
    real.write_bytes(b"# caf\xe9\r\nworkers=2")
    real.chmod(0o640)
    link = tmp_path / "agent.properties"
    link.symlink_to(real)
    write_properties(link, set_property(load_properties(link), "workers", "3"))
    assert real.read_bytes() == b"# caf\xe9\r\nworkers=3"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    write_properties(tmp_path / "new.properties", "workers=1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agent.properties",
        "new.properties",
        "real.properties",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.req("A7")
def test_writing_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "agent.properties"
    path.write_text("workers=2\n")
    os.chown(path, 1234, 2345)
    write_properties(path, "workers=3\n")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


@pytest.mark.req("A7")
@pytest.mark.bad_input("full disk")
def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.properties"
    path.write_text("workers=2\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_properties(path, "workers=3\n")
    assert path.read_text() == "workers=2\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.req("A1")
def test_the_reference_page_names_every_key() -> None:
    page = subprocess.run(
        [sys.executable, "-m", "virtha.agent.property_table"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert page == reference_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(TABLE)
    for item, row in zip(TABLE, rows, strict=True):
        assert f"`{item.key}`" in row
        assert item.meaning in row
        assert row.count(" | ") == 5
