"""What the façade makes of requests that no oVirt client would send, over TLS and a real socket: a fault that says what is wrong,
and nothing changed."""

import time
from collections.abc import Callable

import pytest
from ovirtsdk4 import reader
from server_process import PASSWORD
from story import Story

XML = {"Content-Type": "application/xml"}
LAUGHS = "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">'
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMB = f'<!DOCTYPE vm [<!ENTITY a "ha">{LAUGHS}]><vm><name>&i;</name></vm>'
EXTERNAL = '<!DOCTYPE vm [<!ENTITY x SYSTEM "file:///etc/hostname">]><vm><name>&x;</name></vm>'


@pytest.fixture
def refuses(story: Story) -> Callable[..., None]:
    """That a change of web1 with this body is refused, in time, and that all is as it was."""

    def check(body: bytes, status: int, told: str, kind: str = "application/xml") -> None:
        before = story.state()
        with story.rest() as client:
            web1 = client.get("/v1/vms/web1").json()["vm"]["id"]
            began = time.monotonic()
            headers = {"Content-Type": kind}
            answer = client.put(f"/ovirt-engine/api/vms/{web1}", content=body, headers=headers)
            assert time.monotonic() - began < 60
        assert answer.status_code == status, answer.text
        fault = reader.Reader.read(answer.text)
        assert told in fault.detail and fault.reason
        assert story.state() == before

    return check


@pytest.mark.bad_input("XML bomb", "external entity", "XML nested too deeply", story=True)
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (BOMB, "document type"),
        (EXTERNAL, "document type"),
        ("<vm>" + "<cluster>" * 100_000, "nested too deeply"),
        ("<vm>" + "<nics/>" * 100_000 + "</vm>", "too many elements"),
    ],
    ids=["bomb", "external", "deep", "many"],
)
def test_xml_that_would_cost_much_costs_nothing(
    refuses: Callable[..., None], body: str, told: str
) -> None:
    refuses(body.encode(), 400, told)


@pytest.mark.bad_input("wrong content type", "wrong value in a body", story=True)
def test_bodies_of_the_wrong_kind_and_wrong_values_are_named(refuses: Callable[..., None]) -> None:
    refuses(b"name: web2", 415, "application/xml", kind="application/yaml")
    refuses(b'{"name": "web2"}', 400, "no XML")
    refuses(b"<vm><memory>much</memory></vm>", 400, "vm.memory")
    refuses(b"<vm><watchdog><model>tardis</model></watchdog></vm>", 400, "watchdog.model")


@pytest.mark.bad_input("body of 100 MB", story=True)
def test_a_body_of_100_mb_is_not_even_read(story: Story) -> None:
    before = story.state()
    with story.rest() as client:
        web1 = client.get("/v1/vms/web1").json()["vm"]["id"]
        body = b"<vm><name>" + b"x" * (100 << 20) + b"</name></vm>"
        path = f"/ovirt-engine/api/vms/{web1}"
        assert client.put(path, content=body, headers=XML).status_code == 413
    assert story.state() == before


@pytest.mark.bad_input("huge max", "search that smuggles", "search that can't be read", story=True)
def test_lists_are_bounded_and_searches_are_never_sql(story: Story) -> None:
    before = story.state()
    with story.rest() as client:
        for maximum in ("9223372036854775807", "-1"):
            answer = client.get("/api/vms", params={"max": maximum})
            assert answer.status_code == 200 and "<name>web1</name>" in answer.text
        for maximum in ("9" * 100, "many", "1.0"):
            answer = client.get("/api/events", params={"max": maximum})
            assert answer.status_code == 400 and "[max:" in answer.text
        for search in ("name =", 'name="', "vcpus>" * 500, "color = red", "name = x or"):
            answer = client.get("/api/vms", params={"search": search})
            assert answer.status_code == 400 and "[search:" in answer.text, answer.text
            assert "problem.search.syntax" in answer.text and "column" in answer.text
        # Text to the search, and nothing to the database; _ and % are no wildcards.
        for search in (
            "name='x' or name='1'='1'",
            "name=x;drop table vm",
            "name=web_",
            "name=web%",
        ):
            answer = client.get("/api/vms", params={"search": search})
            assert answer.status_code == 200 and "<vm " not in answer.text, answer.text
        found = client.get("/api/vms", params={"search": "name=web*", "max": "1"})
        assert "<name>web1</name>" in found.text
    assert story.state() == before


@pytest.mark.bad_input("wrong password", story=True)
def test_a_wrong_password_is_no_way_in_and_told(story: Story) -> None:
    with story.server.rest() as client:
        form = {"grant_type": "password", "username": "admin@internal", "password": PASSWORD + "x"}
        answer = client.post("/ovirt-engine/sso/oauth/token", data=form)
        assert answer.status_code == 401 and answer.json()["error"] == "access_denied"
        basic = client.get("/api/vms", auth=("admin@internal", PASSWORD + "x"))
        assert basic.status_code == 401 and "<fault>" in basic.text
        assert client.get("/api/vms", auth=("admin@internal", PASSWORD)).status_code == 200
    assert len(story.events("user.sign_in_failed")) == 2


@pytest.mark.bad_input(
    "body of a removal", "request from another site", "sign-in form of 1 MiB", story=True
)
def test_what_is_asked_in_the_wrong_way_is_not_carried_out(story: Story) -> None:
    before = story.state()
    basic = ("admin@internal", PASSWORD)
    with story.rest() as client:
        web1 = client.get("/v1/vms/web1").json()["vm"]["id"]
    with story.server.rest() as client:
        path = f"/ovirt-engine/api/vms/{web1}"
        body = "<action><vm><disks><detach_only>true</detach_only></disks></vm></action>"
        removal = client.request("DELETE", path, content=body, headers=XML, auth=basic)
        assert removal.status_code == 400 and "detach_only in the query" in removal.text
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            for method, target in (("POST", f"{path}/stop"), ("DELETE", path)):
                foreign = client.request(method, target, headers=headers, auth=basic)
                assert foreign.status_code == 403 and "another site" in foreign.text
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for raw in (b"a=&" * (1 << 18), b"a=&" * 1_000):
            sso = client.post("/ovirt-engine/sso/oauth/token", content=raw, headers=form)
            assert sso.status_code in (400, 413) and sso.json()["error_code"] == "invalid_request"
    assert story.state() == before
