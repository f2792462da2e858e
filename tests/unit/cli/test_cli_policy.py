"""`virtha policy`: show, set, choose a profile, budget, fields."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_fake_api import Answer, Api, Ran
from cli_shapes import page, plain

from virtha.model.host import Cluster
from virtha.model.ids import ClusterId
from virtha.model.policy import FIELD_TABLE, FencingPolicy, Policy
from virtha.model.policy.budget import Way, budget
from virtha.model.policy.profiles import PROFILES, Profile, profile_of
from virtha.model.policy.text import policy_of

pytestmark = pytest.mark.req("X6")

Run = Callable[..., Ran]
DEFAULT = plain(Policy())
PATH = "/v1/clusters/c-1/policy"


@pytest.fixture
def policy_api(api: Api) -> Api:
    api.on("GET", "/v1/clusters", page(Cluster(id=ClusterId("c-1"), name="default")))
    api.on("GET", PATH, Answer(DEFAULT, headers={"ETag": '"9"'}))
    api.on("PUT", PATH, DEFAULT)
    return api


def test_show(policy_api: Api, run: Run) -> None:
    shown = run("policy", "show").out
    assert shown.startswith("# times: profile balanced\n")
    assert "window: 10m" in shown
    assert yaml.safe_load(run("policy", "show", "-o", "yaml").out) == DEFAULT


def test_show_a_policy_with_its_own_times(policy_api: Api, run: Run) -> None:
    own = {**DEFAULT, "lease": {**DEFAULT["lease"], "kill_ms": 4_000}}
    policy_api.on("GET", PATH, own)
    assert run("policy", "show").out.startswith("# times: its own\n")


def test_what_an_old_server_has_is_shown(policy_api: Api, run: Run) -> None:
    policy_api.on("GET", PATH, {"restart": DEFAULT["restart"]})
    assert "restarts_max: 5" in run("policy", "show").out


def test_set_from_a_file_and_values(policy_api: Api, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("restart:\n  window: 20m\n")
    ran = run("policy", "set", "restart.delay=2s", "--file", str(file))
    assert ran.code == 0
    put = policy_api.calls("PUT")[0]
    wanted = {**DEFAULT["restart"], "window_ms": 1_200_000, "delay_ms": 2_000}
    assert put.body == {**DEFAULT, "restart": wanted}
    assert put.headers["if-match"] == '"9"'
    assert ran.err.splitlines() == [
        "restart.window: 10m -> 20m",
        "restart.delay: 1s -> 2s",
    ]  # no way's sum changes with these


def test_the_new_sums_are_shown_before_it_is_saved(policy_api: Api, run: Run) -> None:
    policy_api.on("PUT", PATH, Answer({"code": "problem.unavailable"}, status=503))
    ran = run("policy", "set", "detection.hung_after=20s", "lease.enabled=no")
    assert ran.code == 5
    assert "detection.hung_after: 12s -> 20s" in ran.err
    assert "its BMC switches it off. 17.3s, at worst 35.9s -> 25.3s, at worst 43.9s" in ran.err
    assert "40.91s, at worst 45.39s -> never (lease.enabled is no)" in ran.err
    assert "it just falls silent" not in ran.err  # that way stays as it is


def test_set_from_stdin(policy_api: Api, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("restart: {enabled: false}"))
    assert run("policy", "set", "--file", "-").code == 0
    assert policy_api.calls("PUT")[0].body["restart"]["enabled"] is False


def test_reset_goes_back_to_the_defaults(policy_api: Api, run: Run) -> None:
    own = {**DEFAULT, "fencing": {**DEFAULT["fencing"], "cap_count": 9}}
    policy_api.on("GET", PATH, Answer(own, headers={"ETag": '"9"'}))
    ran = run("policy", "set", "--reset", "restart.delay=2s")
    assert ran.code == 0
    put = policy_api.calls("PUT")[0].body
    assert put == {"restart": {"delay_ms": 2_000}}  # the server fills in the rest
    assert "fencing.cap_count: 9 -> 3" in ran.err


@pytest.mark.parametrize("profile", Profile)
def test_a_profile_is_chosen_and_the_rest_stays(
    profile: Profile, policy_api: Api, run: Run
) -> None:
    mine = Policy(fencing=FencingPolicy(cap_count=7))
    policy_api.on("GET", PATH, Answer(plain(mine), headers={"ETag": '"9"'}))
    ran = run("policy", "profile", profile)
    assert ran.code == 0
    put = policy_api.calls("PUT")[0]
    put_back = policy_of(put.body)
    assert profile_of(put_back) is profile
    assert put_back.fencing.cap_count == 7
    assert put.headers["if-match"] == '"9"'
    assert ("detection.beat_interval: 1s -> " in ran.err) == (profile is not Profile.BALANCED)


@pytest.mark.parametrize(
    "argv", [["set", "lease.kill=4s"], ["profile", "fast"]], ids=["set", "profile"]
)
def test_a_dry_run_shows_and_changes_nothing(argv: list[str], policy_api: Api, run: Run) -> None:
    ran = run("policy", *argv, "--dry-run")
    assert ran.code == 0
    assert "lease.kill: 3s -> " in ran.err
    assert "nothing is changed" in ran.out
    assert policy_api.calls("PUT") == []


@pytest.mark.parametrize(
    "argv",
    [
        ["set", "restart.delay=2m"],
        ["set", "detection.hung_after=40s"],
        ["set", "--file", "/nonexistent/policy.yaml"],
        ["set", "--file", "/dev/null"],
        ["set"],
        ["profile", "quick"],
        ["profile"],
    ],
    ids=["unsafe", "outlives", "no file", "empty file", "nothing", "no profile", "no word"],
)
def test_wrong_input_changes_nothing(argv: list[str], policy_api: Api, run: Run) -> None:
    ran = run("policy", *argv)
    assert ran.code == 2
    assert "  fix: " in ran.err or "  allowed: " in ran.err
    assert policy_api.calls("PUT") == []


def test_a_wrong_file_is_named_with_line_and_column(
    policy_api: Api, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("detection:\n  beat_interval: 1s\n  hung_after: 40s\n")
    ran = run("policy", "set", "--file", str(file))
    assert ran.code == 2
    assert f"error: detection.hung_after: {file}:3:15: detection.hung_after 40s must be" in ran.err
    assert "= 32.64s" in ran.err
    file.write_text("detection:\n  beat_intervall: 1s\n")
    ran = run("policy", "budget", str(file))
    assert ran.code == 2
    assert f"{file}:2:3: there is no 'beat_intervall'" in ran.err
    assert "  fix: did you mean 'beat_interval'?" in ran.err


def test_a_file_that_is_not_text(policy_api: Api, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(b"\xff\xfe")
    ran = run("policy", "budget", str(file))
    assert ran.code == 2
    assert "is not UTF-8 text" in ran.err


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


# The budget


@pytest.mark.parametrize("profile", Profile)
def test_the_budget_of_a_profile_needs_no_server(profile: Profile, api: Api, run: Run) -> None:
    ran = run("policy", "budget", profile, "-o", "json")
    assert ran.code == 0
    assert api.asked == []
    shown = json.loads(ran.out)
    assert shown["policy"] == f"profile {profile}"
    sums = {way["way"]: (way["typical_ms"], way["worst_ms"]) for way in shown["ways"]}
    wanted = budget(PROFILES[profile])
    assert sums == {one.way.value: (one.typical_ms, one.worst_ms) for one in wanted.ways}
    assert yaml.safe_load(run("policy", "budget", profile, "-o", "yaml").out) == shown


def test_the_budget_as_a_table(run: Run) -> None:
    out = run("policy", "budget", "balanced", "-o", "table").out
    assert "Time budget of profile balanced" in out
    for way in budget(Policy()).ways:
        assert way.meaning in out
        for step in way.steps:
            assert not step.worst_ms or step.meaning in out
    assert "45.39s" in out
    assert "lease.self_fence_after" in out


def test_the_budget_in_a_pipe_is_one_line_per_step(run: Run) -> None:
    lines = [line.split("\t") for line in run("policy", "budget", "fast").out.splitlines()]
    assert lines[0] == ["way", "step", "typical", "worst", "why", "settings"]
    assert {len(line) for line in lines} == {6}
    sums = {line[0]: line[3] for line in lines if line[1] == "sum"}
    assert sums["lease"] == "17.97s"
    assert set(sums) == {way.value for way in Way}
    assert run("policy", "budget", "fast", "-q").out.splitlines()[4] == "lease\t15240\t17970"


def test_the_budget_as_if(run: Run) -> None:
    ran = run("policy", "budget", "balanced", "--set", "lease.enabled=no", "-o", "table")
    assert "Its VMs wait for a person: lease.enabled is no." in ran.out
    ran = run("policy", "budget", "balanced", "--set", "detection.beat_interval=2s")
    assert ran.code == 2
    assert "2 * detection.beat_interval 2s = 4s must be less than detection.suspect_after 3s" in (
        ran.err
    )
    changed = "detection.suspect_after=5s"
    ran = run("policy", "budget", "balanced", "--set", "detection.beat_interval=2s",
              "--set", changed, "-o", "json")  # fmt: skip
    (silent,) = [w for w in json.loads(ran.out)["ways"] if w["way"] == "power_cut_silent"]
    assert silent["steps"][0]["worst_ms"] == 5_000
    assert silent["steps"][0]["settings"] == [
        "detection.suspect_after",
        "detection.beat_interval",
    ]


def test_the_budget_of_a_file_and_of_stdin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "profile: fast\nlease:\n  kill: 1s\n"
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    shown = json.loads(run("policy", "budget", str(file), "-o", "json").out)
    assert shown["policy"] == str(file)
    lease = next(way for way in shown["ways"] if way["way"] == "lease")
    assert lease["worst_ms"] == 17_970 - 510
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert json.loads(run("policy", "budget", "-", "-o", "json").out)["policy"] == "stdin"


def test_the_budget_of_a_cluster(policy_api: Api, run: Run) -> None:
    policy_api.on("GET", PATH, plain(PROFILES[Profile.CONSERVATIVE]))
    policy_api.on("GET", "/v1/clusters/fast/policy", plain(PROFILES[Profile.CONSERVATIVE]))
    only = json.loads(run("policy", "budget", "-o", "json").out)
    called_so = json.loads(run("policy", "budget", "--cluster", "fast", "-o", "json").out)
    assert only["policy"] == "the cluster's policy"
    assert called_so["policy"] == "cluster fast"
    assert only["ways"] == called_so["ways"]
    assert only["ways"][-1]["worst_ms"] == 85_970
    assert run("policy", "budget", "nope").code == 3
    assert run("policy", "budget", "fast", "--cluster", "fast").code == 2


# The fields


def test_fields(api: Api, run: Run) -> None:
    lines = run("policy", "fields").out.splitlines()
    assert len(lines) == 1 + len(FIELD_TABLE)
    found = json.loads(run("policy", "fields", "watchdog", "-o", "json").out)
    assert "lease.watchdog" in [one["field"] for one in found]
    assert all("watchdog" in (one["field"] + one["meaning"]).lower() for one in found)
    assert run("policy", "fields", "lease.kill", "-q").out == "lease.kill\n"
    assert api.asked == []


# The guide

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "policy.md"


def guide_commands() -> list[list[str]]:
    """Every `virtha policy …` of the guide, in a block or in the text."""
    text = GUIDE.read_text(encoding="utf-8")
    found = re.findall(r"(?:^    |`)virtha (policy [^`#\n]+)", text, re.MULTILINE)
    return [line.split() for line in found]


@pytest.mark.parametrize("argv", guide_commands(), ids=" ".join)
def test_what_the_guide_says_works(
    argv: list[str], policy_api: Api, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = GUIDE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "policy.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    ran = run(*argv)
    assert (ran.code, ran.err if ran.code else "") == (0, "")


def test_the_error_in_the_guide_is_the_real_one(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("detection:\n  dead_after: 6s\n  hung_after: 40s\n")
    shown = " ".join(GUIDE.read_text(encoding="utf-8").split())
    told = " ".join(run("policy", "budget", str(file)).err.replace(f"{tmp_path}/", "").split())
    assert told.partition("outlive the lease")[0] in shown
    assert "fix: lower detection.hung_after or raise lease.self_fence_after" in shown
