"""YAML with positions: every part knows its place, every refusal names it."""

import pytest
import yaml

from virtha.model.errors import InvalidInput
from virtha.model.yaml_reader import (
    YamlList,
    YamlMap,
    YamlNode,
    YamlScalar,
    read_yaml,
)

pytestmark = pytest.mark.req("X3", "X6")


@pytest.fixture(params=["SafeLoader", "CSafeLoader"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser and libyaml's, which not every installation has, must read alike."""
    found = getattr(yaml, request.param, None)
    if found is None:
        pytest.skip("this PyYAML is built without libyaml")
    monkeypatch.setattr("virtha.model.yaml_reader._LOADER", found)


def plain(node: YamlNode | None) -> object:
    match node:
        case YamlMap():
            return {entry.key: plain(entry.value) for entry in node.entries}
        case YamlList():
            return [plain(item) for item in node.items]
        case YamlScalar():
            return node.value
        case _:
            return None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\nb: [x, 'y', \"2\"]\n", {"a": 1, "b": ["x", "y", "2"]}),
        ("a: {b: {c: ~}}\n", {"a": {"b": {"c": None}}}),
        ("- on\n- No\n- true\n- 'true'\n", [True, False, True, "true"]),
        ("- 1.5\n- -2\n- 1e3\n- .5\n", [1.5, -2, "1e3", ".5"]),
        ("- 1:30\n- 010\n- 0x10\n- 1_000\n- 99999999999999999999\n",
         ["1:30", "010", "0x10", "1_000", "99999999999999999999"]),
        ("- 2026-01-01\n- <<\n- =\n", ["2026-01-01", "<<", "="]),
        ("a: |\n  7\n", {"a": "7\n"}),
    ],
)  # fmt: skip
def test_values_are_what_people_mean(text: str, value: object) -> None:
    assert plain(read_yaml(text, file="f.yaml")) == value


def test_positions() -> None:
    root = read_yaml("hosts:\n  - name: h1\n    tags: [a,  b]\n", file="dir/f.yaml")
    assert isinstance(root, YamlMap)
    hosts = root.entries[0]
    assert str(hosts.at) == "dir/f.yaml:1:1"
    assert isinstance(hosts.value, YamlList)
    host = hosts.value.items[0]
    assert isinstance(host, YamlMap)
    assert str(host.entries[0].value.at) == "dir/f.yaml:2:11"
    tags = host.entries[1]
    assert str(tags.at) == "dir/f.yaml:3:5"
    assert isinstance(tags.value, YamlList)
    assert str(tags.value.items[1].at) == "dir/f.yaml:3:16"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: 'a' is given already in line 1"),
        ("a: &x 1\nb: *x\n", r"f.yaml:2:4: aliases \(\*x\) are not read"),
        ("a: &x [*x]\n", r"f.yaml:1:8: aliases"),
        ("a: !foo 1\n", r"f.yaml:1:4: tags \(!foo\) are not read"),
        ("!!python/object:os.system {}\n", r"f.yaml:1:1: tags"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: there is a second document"),
        ("? [a, b]\n: 1\n", "f.yaml:1:3: a key must be text"),
        ("a: [1,\n  2\n", r"f.yaml:\d:\d: not valid YAML"),
        ("a:\n\tb: 1\n", r"f.yaml:2:\d: not valid YAML"),
        ("a: 'x\n", r"f.yaml:\d:\d: not valid YAML"),
        ("a: 1\nb: \x01\n", r"f.yaml:2:\d: not valid YAML"),
        ("\ud800", r"f.yaml:1:1: not valid YAML"),
        ("[" * 100_000, "f.yaml:1:51: nested deeper than 50 levels"),
        ("{a: " * 60, r"f.yaml:1:\d+: nested deeper than 50 levels"),
        ("#" * 2_000_000, "f.yaml:1:1: the document is larger than 1 MiB"),
    ],
)
def test_what_is_refused_names_its_place_and_the_fix(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as refused:
        read_yaml(text, file="f.yaml", bytes_max=1 << 20)
    assert refused.value.fix
