"""agent.properties as editors leave it, through the commands that an administrator uses."""

import json
from pathlib import Path

import pytest
from server_process import Done, command


class Host:
    """A host's root with that file; each command is the real one."""

    def __init__(self, root: Path, content: bytes) -> None:
        self.root = root
        self.path = root / "etc" / "virtha" / "agent.properties"
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(content)

    def run(self, *words: str) -> Done:
        return command("agent", "properties", *words, "--root", str(self.root))

    def get(self, key: str) -> str:
        done = self.run("get", key)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.mark.req("A1", "A7")
@pytest.mark.bad_input("properties without final newline", story=True)
@pytest.mark.parametrize(
    "content", [b"# mine\nworkers=7", b"# mine\nworkers=7\n# end", b"workers=7"]
)
def test_a_missing_final_newline_joins_no_two_keys(tmp_path: Path, content: bytes) -> None:
    host = Host(tmp_path, content)
    assert host.run("set", "vm.rng.enable", "true").returncode == 0
    assert host.path.read_bytes() == content + b"\nvm.rng.enable=true\n"
    assert (host.get("workers"), host.get("vm.rng.enable")) == ("7", "true")
    assert host.run("unset", "vm.rng.enable").returncode == 0
    assert host.path.read_bytes() == content + b"\n"


@pytest.mark.req("A1", "A7")
@pytest.mark.bad_input("properties with CRLF", story=True)
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_crlf_stays_crlf_and_is_no_part_of_a_value(tmp_path: Path, end: bytes) -> None:
    content = b"# mine\r\nworkers=7\r\nhost=m1,m2@static" + end
    host = Host(tmp_path, content)
    assert (host.get("workers"), host.get("host")) == ("7", "m1,m2@static")
    assert host.run("set", "workers", "9").returncode == 0
    assert host.path.read_bytes() == content.replace(b"7", b"9", 1)
    assert host.run("set", "vm.rng.enable", "true").returncode == 0
    written = host.path.read_bytes()
    assert written.endswith(b"@static\r\nvm.rng.enable=true\r\n")
    assert written.count(b"\n") == written.count(b"\r\n")
    rows = {row["key"]: row for row in json.loads(host.run("list", "--json").stdout)}
    assert rows["workers"]["value"] == "9"


@pytest.mark.req("A1", "A7")
@pytest.mark.bad_input("properties with a duplicate key", story=True)
@pytest.mark.parametrize(
    "words",
    [
        ("get", "workers"),
        ("list",),
        ("set", "workers", "9"),
    ],
)
def test_a_key_that_stands_twice_is_told_with_both_lines(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    content = b"workers=7\r\n# other\r\nworkers = 8"
    host = Host(tmp_path, content)
    done = host.run(*words)
    assert done.returncode == 2, (words, done)
    assert "workers: stands twice, in lines 1 and 3" in done.stderr
    assert "fix: remove one of the two lines" in done.stderr
    assert host.path.read_bytes() == content
    assert list(host.path.parent.iterdir()) == [host.path]
    # Removing it removes both, as the way out of it.
    assert host.run("unset", "workers").returncode == 0
    assert host.path.read_bytes() == b"# other\r\n"
