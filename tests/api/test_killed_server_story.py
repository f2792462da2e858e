"""A server that is killed, and what its clients find when it is back: requests with a key."""

import json
import sys
from pathlib import Path

import httpx
import pytest
from server_process import initialise, serving

from virtha.api.keyed import REPLAYED

KILLED_BEFORE_ITS_ANSWER = Path(__file__).with_name("killed_before_its_answer.py")
KEY = {"Idempotency-Key": "5f0c1c52-0b6e-4a43-9d2e-3f1a7b1f6c11"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("killed")
    initialise(made)
    return made


def test_a_keyed_request_that_lost_its_answer_is_not_carried_out_again(root: Path) -> None:
    body = {"name": "east"}
    prefix = (sys.executable, str(KILLED_BEFORE_ITS_ANSWER))
    with serving(root, prefix=prefix) as server, server.local() as client:
        with pytest.raises(httpx.TransportError):
            client.post("/v1/clusters", json=body, headers=KEY)
        assert server.process.wait(timeout=200) == -9
    with serving(root) as server, server.local() as client:
        for _ in range(2):
            answer = client.post("/v1/clusters", json=body, headers=KEY)
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "problem.key.answer_lost"
        assert [one["name"] for one in client.get("/v1/clusters").json()["items"]] == [
            "default",
            "east",
        ]
        other = {"Idempotency-Key": KEY["Idempotency-Key"] + "-2"}
        made = client.post("/v1/clusters", json={"name": "west"}, headers=other)
        assert made.status_code == 201
    with serving(root) as server, server.local() as client:
        again = client.post("/v1/clusters", json={"name": "west"}, headers=other)
        assert (again.status_code, json.loads(again.content)) == (201, made.json())
        assert again.headers[REPLAYED] == "true", "kept over a restart"
