"""The policy as YAML: durations as people write them, errors with line and field."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_fake_api import Answer, Api, Ran
from cli_shapes import page, plain

from virtha.cli.policy_text import (
    apply_changes,
    change_from_assignment,
    changes_from_yaml,
    policy_to_yaml,
    short_name,
)
from virtha.model.errors import InvalidInput
from virtha.model.host import Cluster
from virtha.model.ids import ClusterId
from virtha.model.policy import Policy, RestartPolicy

Run = Callable[..., Ran]
DEFAULT = plain(Policy())
PATH = "/v1/clusters/c-1/policy"


@pytest.fixture
def policy_api(api: Api) -> Api:
    api.on("GET", "/v1/clusters", page(Cluster(id=ClusterId("c-1"), name="default")))
    api.on("GET", PATH, Answer(DEFAULT, headers={"ETag": '"9"'}))
    api.on("PUT", PATH, DEFAULT)
    return api


@pytest.mark.parametrize(
    ("field", "name"),
    [("delay_ms", "delay"), ("delay_ms_max", "delay_max"), ("restarts_max", "restarts_max")],
)
def test_names_of_durations(field: str, name: str) -> None:
    assert short_name(field) == name


def test_what_is_shown_can_be_given_back() -> None:
    custom = plain(Policy(restart=RestartPolicy(delay_ms=1_500, restarts_max=2, enabled=False)))
    text = policy_to_yaml(custom)
    assert "delay: 1.5s" in text
    assert apply_changes(DEFAULT, changes_from_yaml(text)) == custom
    # The API's own document is accepted as well.
    assert apply_changes(DEFAULT, changes_from_yaml(yaml.safe_dump(custom))) == custom


def test_what_is_not_given_stays() -> None:
    changed = apply_changes(DEFAULT, changes_from_yaml("restart:\n  window: 20m\n"))
    assert changed["restart"] == {**DEFAULT["restart"], "window_ms": 1_200_000}


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("restart:\n  delay: 5s\n  dely: 1s\n", "restart.dely", "line 3: there is no 'dely'"),
        ("restrat: {}\n", "restrat", "line 1: there is no 'restrat'"),
        ("restart:\n  delay: soon\n", "restart.delay", "line 2: 'soon' is not a duration"),
        ("restart:\n\n  delay: 1.5\n", "restart.delay", "line 3: '1.5' is not a duration"),
        ("restart:\n  enabled: maybe\n", "restart.enabled", "line 2: 'maybe' does not fit"),
        ("restart:\n  restarts_max: yes\n", "restart.restarts_max", "line 2: 'yes' does not fit"),
        ("restart:\n  restarts_max:\n", "restart.restarts_max", "line 2: '' does not fit"),
        ("restart:\n  restarts_max: -1\n", "restart.restarts_max", "line 2: -1 is out of range"),
        ("restart:\n  delay: 2m\n", "restart.delay", "line 2: the first delay 2m is longer"),
        ("restart:\n  delay: [1s]\n", "restart.delay", "line 2: this is one value"),
        ("restart:\n  delay: 1:30\n", "restart.delay", "line 2: '1:30' is not a duration"),
        ("restart:\n  restarts_max: 010\n", "restart.restarts_max", "line 2: '010' does not"),
        ("restart:\n  restarts_max: 2026-99-99\n", "restart.restarts_max", "does not fit"),
        ("restart:\n  delay: !foo 1s\n  window: !foo 1\n", "restart.window", "'1' is not a dur"),
        ("restart: 5\n", "restart", "line 1: this is a section"),
        (
            "restart:\n  delay: 1s\n  delay_ms: 2\n",
            "restart.delay",
            "line 3: given already in line 2",
        ),
        ("restart: [\n", "policy", "not valid YAML"),
        ("restart:\n\tdelay: 1s\n", "policy", "line 2: not valid YAML"),
        ("", "policy", "the document is empty"),
        ("- restart\n", "policy", "line 1: this is a section"),
        ("!!python/object:os.system {}\n", "policy", "this is a section|there is no"),
        ("[" * 100_000, "policy", "nested too deeply"),
        ("#" * (1 << 20) + "\n", "policy", "larger than 1 MiB"),
    ],
)
def test_wrong_documents_name_line_and_field(text: str, field: str, says: str) -> None:
    if text.startswith("!!"):
        # A tag of another language is data to us, never an object to build.
        assert changes_from_yaml(text) == []
        return
    with pytest.raises(InvalidInput, match=says.replace("[", r"\[")) as caught:
        apply_changes(DEFAULT, changes_from_yaml(text))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("restart.delay=1.5s", ("restart", "delay_ms"), 1_500),
        ("restart.delay_ms=20", ("restart", "delay_ms"), 20),
        ("restart.enabled=false", ("restart", "enabled"), False),
        ("restart.restarts_max=3", ("restart", "restarts_max"), 3),
    ],
)
def test_single_values(text: str, path: tuple[str, ...], value: object) -> None:
    change = change_from_assignment(text)
    assert (change.path, change.value) == (path, value)


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("restart.delay", "policy", "is not FIELD=VALUE"),
        ("restart.dealy=1s", "restart.dealy", "there is no 'dealy'"),
        ("restart.delay.x=1s", "restart.delay", "there is nothing below it"),
        ("restart=1", "restart", "this is a section"),
        ("restart.delay=1x", "restart.delay", "'1x' is not a duration"),
        ("restart.delay=[", "restart.delay", "is no value"),
        ("restart.delay=", "restart.delay", "is not a duration"),
    ],
)
def test_wrong_single_values(text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        change_from_assignment(text)
    assert says in caught.value.message
    assert "line" not in caught.value.message
    assert caught.value.field == field


def test_show(policy_api: Api, run: Run) -> None:
    assert "window: 10m" in run("policy", "show").out
    assert yaml.safe_load(run("policy", "show", "-o", "yaml").out) == DEFAULT


def test_set_from_a_file_and_values(policy_api: Api, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("restart:\n  window: 20m\n")
    assert run("policy", "set", "restart.delay=2s", "--file", str(file)).code == 0
    put = policy_api.calls("PUT")[0]
    wanted = {**DEFAULT["restart"], "window_ms": 1_200_000, "delay_ms": 2_000}
    assert put.body == {"restart": wanted}
    assert put.headers["if-match"] == '"9"'


def test_set_from_stdin(policy_api: Api, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("restart: {enabled: false}"))
    assert run("policy", "set", "--file", "-").code == 0
    assert policy_api.calls("PUT")[0].body["restart"]["enabled"] is False


@pytest.mark.parametrize(
    "argv",
    [
        ["restart.delay=2m"],
        ["--file", "/nonexistent/policy.yaml"],
        ["--file", "/dev/null"],
        [],
    ],
    ids=["unsafe", "no file", "empty file", "nothing"],
)
def test_wrong_input_changes_nothing(argv: list[str], policy_api: Api, run: Run) -> None:
    ran = run("policy", "set", *argv)
    assert ran.code == 2
    assert policy_api.calls("PUT") == []


def test_somebody_else_was_quicker(policy_api: Api, run: Run) -> None:
    stale = {"code": "problem.stale", "detail": "it is at revision 10 now"}
    policy_api.on("PUT", PATH, Answer(stale, status=412))
    ran = run("policy", "set", "restart.delay=2s")
    assert ran.code == 1
    assert "code: problem.stale" in ran.err


def test_which_cluster(api: Api, run: Run) -> None:
    clusters = [Cluster(id=ClusterId(name), name=name) for name in ("b", "a")]
    api.on("GET", "/v1/clusters", page(*clusters))
    ran = run("policy", "show")
    assert ran.code == 2
    assert "--cluster: which cluster?\n  allowed: a, b" in ran.err
