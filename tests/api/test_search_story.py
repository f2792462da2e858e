"""Searches as users meet them: by commands, against a real server process."""

import json

import pytest
from story import Story

WRONG: list[tuple[str, str, str, str]] = [
    ("vm", "nme = web1", "problem.search.syntax", "column 1: Vms have no field 'nme'"),
    ("vm", "status = up and ha = maybe", "problem.search.syntax", "column 22: 'maybe' is no value"),
    ("vm", "(status = up", "problem.search.syntax", "a parenthesis is not closed"),
    ("host", "sortby nam", "problem.search.syntax", "did you mean name?"),
    ("template", "Vms: name = a", "problem.search.syntax", "this is a list of Templates"),
    ("cluster", "name > a", "problem.search.syntax", "can't be compared by >"),
    ("storage", "(" * 100_000, "problem.search.syntax", "too long"),
    ("vm", "((((((((((((((((((name = a", "problem.search.syntax", "inside each other"),
    ("vm", "name = " + "*a" * 9, "problem.search.syntax", "9 wildcards"),
    ("event", "page 1000000", "problem.search.costly", "more than one request may"),
]


@pytest.mark.bad_input("search that can't be read", "search that asks too much", story=True)
@pytest.mark.parametrize(
    ("noun", "search", "code", "told"), WRONG, ids=[f"{row[0]} {row[1][:30]}" for row in WRONG]
)
def test_a_wrong_search_is_told_with_its_column(
    story: Story, noun: str, search: str, code: str, told: str
) -> None:
    done = story.run(noun, "list", "--search", search)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: search: "), done.stderr
    assert told in done.stderr and f"code: {code}" in done.stderr


@pytest.mark.bad_input("search that smuggles", story=True)
def test_nothing_in_a_search_is_more_than_text(story: Story) -> None:
    for text in (
        "name = x';DROP TABLE vm;--",
        "name = '1'='1'",
        'name = "x\' UNION SELECT password_hash FROM user_account --"',
        "name = web_",
        "name = %",
        '"\'); DELETE FROM event; --"',
    ):
        assert json.loads(story.ok("vm", "list", "--search", text, "-o", "json")) == [], text
    assert [vm["vm"]["name"] for vm in json.loads(story.ok("vm", "list", "-o", "json"))] == ["web1"]


@pytest.mark.req("W9")
def test_lists_are_searched_by_commands(story: Story) -> None:
    def names(noun: str, search: str, *more: str) -> list[str]:
        found = json.loads(story.ok(noun, "list", "--search", search, *more, "-o", "json"))
        return [one.get(noun, one)["name"] for one in found]

    assert names("vm", "name = WEB*") == []
    assert names("vm", "name = WEB*", "--ignore-case") == ["web1"]
    assert names("vm", "last_event = null and Clusters.name = default") == ["web1"]
    assert names("host", "sortby name desc") == ["h2", "h1"]
    assert names("host", "status = up") == ["h1"]
    assert names("cluster", "Hosts.name = h2") == ["default"]
    events = json.loads(
        story.ok("event", "list", "--search", "code = host.joined sortby time asc", "-o", "json")
    )
    assert [event["fields"]["host"] for event in events] == ["h1", "h2"]
    done = story.run("vm", "list", "--ignore-case")
    assert done.returncode == 2 and done.stderr.startswith("error: --ignore-case: ")
