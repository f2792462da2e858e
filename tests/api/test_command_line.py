"""Every command with wrong words and values, as a new user types them, against a real server process:
each error names what is wrong and what would be right, and the exit code is the documented one."""

import json

import pytest
from server_process import command
from story import Story

WRONG: list[tuple[str, int, str]] = [
    ("vm create", 2, "NAME"),
    ("vm create web9 --memory lots", 2, "--memory"),
    ("vm create web9 --memory 10", 2, "--memory"),
    ("vm create web9 --vcpus 0", 2, "--vcpus"),
    ("vm create web9 --machine foo", 2, "--machine"),
    ("vm create web9 --architecture z80", 2, "architecture"),
    ("vm create web9 --disk siz=1GiB", 2, "--disk"),
    ("vm create web9 --nic mac=52:54:00:00:00:01", 2, "--nic"),
    ("vm create web9 --nic mac=zz,bridge=br0", 2, "--nic: nics[0].mac"),
    ("vm create web9 --cluster nope", 3, "cluster"),
    ("vm create web9 --image tiny --storage nope", 3, "--storage"),
    ("vm create web9 --timeout soon", 2, "--timeout"),
    ("vm create bad/name", 2, "name"),
    ("vm edit web1", 2, ""),
    ("vm edit nope --ha", 3, ""),
    ("vm edit web1 --revision x", 2, "--revision"),
    ("vm delete web1", 2, "--yes"),
    ("vm start nope", 3, ""),
    ("vm start web1 --host nope", 3, "host"),
    ("vm adopt", 2, "NAME"),
    ("vm events web1 --limit 0", 2, "--limit"),
    ("vm watchdog set web1 foo:reset", 2, "watchdog.model"),
    ("vm list --state up", 2, "--state"),
    ("vm list --nope", 2, ""),
    ("vm lst", 2, ""),
    ("host show nope", 3, ""),
    ("host remove h2", 2, "--yes"),
    ("host remove h2 --powered-off --yes", 2, "--yes-it-is-off"),
    ("host remove h2 --yes-it-is-off", 2, "--yes-it-is-off"),
    ("cluster create default", 1, "name"),
    ("cluster edit default", 2, ""),
    ("policy show --cluster nope", 3, ""),
    ("policy set", 2, "policy"),
    ("policy set restart.delay=5", 2, "restart.delay"),
    ("policy set restart.dely=5s", 2, "restart.dely"),
    ("policy set --file /nope/policy.yaml", 2, "--file"),
    ("storage add s9", 2, "--path"),
    ("storage add s9 --path relative", 2, "path"),
    ("storage remove nope --yes", 3, ""),
    ("image list --storage nope", 3, ""),
    ("event list --severity bad", 2, "--severity"),
    ("event list --vm nope", 3, "vm"),
    ("event follow --after 999999999", 2, "after"),
    ("event follow --give-up soon", 2, "--give-up"),
    ("event follow -o yaml", 2, "--output"),
    ("hold because --lift", 2, "--lift"),
    ("login ftp://server1", 2, "URL"),
    ("login http://server1:8443", 2, "URL"),
    ("token create --uses 0", 2, "--uses"),
    ("token create --expires 400d", 2, "--expires"),
    ("token create --expires soon", 2, "--expires"),
    ("user create eve", 2, "--password-stdin"),
    ("user create eve --role king", 2, "--role"),
    ("user edit admin --role viewer", 4, ""),
    ("user delete nope --yes", 3, ""),
    ("setting set nope 1", 3, "key"),
    ("setting set order.deadline soon", 2, "value"),
    ("setting set order.deadline 1ms", 2, "value"),
    ("codes vm.watchdog.fire", 3, "CODE"),
    ("completion tcsh", 2, "bash|zsh|fish"),
    ("vm list -o xml", 2, "--output"),
    ("vm list --url ftp://server1", 2, "--url"),
    ("vm list --token wrong", 6, ""),
    ("agent join https://127.0.0.1:1", 2, "--token"),
    ("nope", 2, ""),
]


@pytest.mark.parametrize(("words", "code", "field"), WRONG, ids=[words for words, _, _ in WRONG])
def test_wrong_words_are_told_with_field_and_fix(
    words: str, code: int, field: str, story: Story
) -> None:
    done = story.run(*words.split())
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    start = f"error: {field}: " if field else "error: "
    # What is told before it (a warning, a question) stands on lines of its own.
    told = done.stderr[done.stderr.index("error: ") :]
    assert told.startswith(start), done.stderr
    assert "\n  fix: " in told or "\n  allowed: " in told, done.stderr
    assert "\n  code: " in told and "Traceback" not in told


@pytest.mark.req("L6")
def test_whoami_with_nothing_but_a_token(story: Story) -> None:
    with story.rest() as client:
        token = client.headers["Authorization"].removeprefix("Bearer ")
    given = {"VIRTHA_TOKEN": token, "VIRTHA_URL": story.url}
    authority = story.server.root / "var/lib/virtha/server/authority/authority.crt"
    done = command("whoami", "-o", "json", **given, VIRTHA_AUTHORITY=str(authority))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["user"], found["role"]) == ("admin", "administrator")
    assert found["from"] == "VIRTHA_TOKEN" and found["expires"].endswith("Z")
    wrong = {**given, "VIRTHA_TOKEN": token[:-2] + "AA", "VIRTHA_AUTHORITY": str(authority)}
    assert command("whoami", **wrong).returncode == 6
