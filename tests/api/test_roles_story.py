"""Roles in clusters, tokens and lock-outs as their users meet them: the real command line against a real server process."""

import time

import pytest
from server_process import PASSWORD
from story import Story, refused, seconds, wait_until


@pytest.mark.bad_input(
    "role that may not in that cluster",
    "id of a cluster that the user may not see",
    "unknown role",
    story=True,
)
def test_a_user_of_one_cluster_works_there_and_knows_of_no_other(story: Story) -> None:
    story.ok("cluster", "create", "apart")
    wanted = ("user", "create", "ann", "--role", "none", "--password-stdin")
    story.ok(*wanted, stdin=f"{PASSWORD}\n")
    assert story.sign_in("ann", PASSWORD).returncode == 0
    assert "web1" not in story.ok("vm", "list", user="ann")
    story.ok("user", "grant", "ann", "viewer", "--cluster", "default")
    assert "web1" in story.ok("vm", "list", user="ann")
    assert "apart" not in story.ok("cluster", "list", user="ann")
    may_not = "ann has not the permission vms.operate"
    refused(story.run("vm", "start", "web1", user="ann"), 6, "problem.forbidden", may_not)
    story.ok("role", "create", "starter", "vms.operate")
    story.ok("user", "grant", "ann", "starter", "--cluster", "apart")
    there = f"{may_not} in cluster default"
    refused(story.run("vm", "start", "web1", user="ann"), 6, "problem.forbidden", there)
    story.ok("user", "revoke", "ann", "viewer", "--cluster", "default")
    unseen = story.run("vm", "start", "web1", user="ann")
    refused(unseen, 3, "problem.not_found", "there is no VM 'web1'", "fix: ")
    assert "web1" not in story.ok("status", user="ann")
    assert "in apart" in story.ok("whoami", user="ann")
    before = story.ok("user", "grants", "ann", "-o", "json")
    king = story.run("user", "grant", "ann", "king", "--cluster", "default")
    refused(king, 2, "problem.invalid", "there is no role 'king'", "allowed: viewer", "starter")
    nowhere = story.run("user", "grant", "ann", "viewer", "--cluster", "nowhere")
    refused(nowhere, 3, "problem.not_found", "there is no cluster 'nowhere'", "fix: ")
    assert story.ok("user", "grants", "ann", "-o", "json") == before
    used = story.run("role", "delete", "starter", "--yes")
    refused(used, 4, "problem.role.in_use", "users have it: ann", "fix: ")
    assert "starter" in story.ok("role", "list")


@pytest.mark.bad_input("expired access token", story=True)
def test_a_token_for_a_program_may_less_and_ends(story: Story) -> None:
    token = story.ok("session", "token", "backup", "--role", "viewer").strip()
    assert "web1" in story.ok("vm", "list", "--token", token)
    less = story.run("vm", "start", "web1", "--token", token)
    refused(less, 6, "problem.forbidden", "admin has not the permission vms.operate", "fix: ")
    short = story.ok("session", "token", "short", "--expires", "1s").strip()
    with story.rest() as client:
        items = client.get("/v1/sessions").json()["items"]
    ends = [seconds(one["expires"]) for one in items if one["description"] == "short"]
    wait_until(lambda: time.time() > max(ends, default=0))
    ended = story.run("vm", "list", "--token", short)
    refused(ended, 6, "problem.token.expired", "the sign-in ended at", "fix: ")
    (ident,) = (one["id"] for one in items if one["description"] == "backup")
    story.ok("session", "end", ident, "--yes")
    refused(story.run("vm", "list", "--token", token), 6, "problem.unauthenticated", "fix: ")


@pytest.mark.bad_input("token for what its user has no more", story=True)
def test_a_token_for_a_cluster_that_its_user_has_no_more_lists_nothing_as_if_it_were_all(
    story: Story,
) -> None:
    story.ok("user", "create", "cid", "--role", "none", "--password-stdin", stdin=f"{PASSWORD}\n")
    story.ok("user", "grant", "cid", "viewer", "--cluster", "default")
    assert story.sign_in("cid", PASSWORD).returncode == 0
    token = story.ok("session", "token", "backup", "--cluster", "default", user="cid").strip()
    assert "web1" in story.ok("vm", "list", "--token", token)
    story.ok("user", "revoke", "cid", "viewer", "--cluster", "default")
    good_for_nothing = story.run("vm", "list", "--token", token)
    refused(good_for_nothing, 6, "problem.token.powerless", "fix: ")


def test_a_lock_out_is_ended_by_an_administrator(story: Story) -> None:
    wanted = ("user", "create", "bob", "--password-stdin")
    story.ok(*wanted, stdin=f"{PASSWORD}\n")
    for _ in range(5):
        refused(story.sign_in("bob", "wrong"), 6, "problem.password.wrong")
    refused(story.sign_in("bob", PASSWORD), 6, "problem.sign_in.limited", "user unlock")
    assert len(story.events("user.locked_out")) == 1
    story.ok("user", "unlock", "bob")
    assert story.sign_in("bob", PASSWORD).returncode == 0
