"""Loaded by the command of schemathesis alone: it signs in when it was signed out, has the installation filled between its
requests, makes some of them sound, and counts what was answered. The test that began it is at the other end of a pipe."""

import atexit
import os
import re
from collections import Counter
from multiprocessing.connection import Connection
from random import Random
from typing import Any
from uuid import uuid4

import schemathesis
import test_schemathesis
from filled_installation import MADE, SILENCE, VM
from hypothesis.control import current_build_context, currently_in_test_context
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure
from schemathesis.generation.meta import TestPhase

PIPE = "VIRTHA_WHOLE_RUN_PIPE"
"""The descriptor of the test's pipe."""
SIGN_IN, FILL, COUNTED = "sign in", "fill", "counted"
KEY = "Idempotency-Key"
OTHER_NAME = re.compile(r"Invalid component: parameter `\w+` in path - violates `enum`")
"""Of a path that names none of what was there when the run began, and perhaps what was made since. The list is the test's own, the
document has none."""
FILL_AFTER = 100
"""Requests: about as many as it takes to delete a few things that others are about."""

CHECK = test_schemathesis.no_fault_of_ours
"""Registered by its module, which stands here for that alone."""

SOUND_SHARE = 0.25
SOUND: dict[str, dict[str, Any]] = {
    **{f"POST /v1/{collection}": body for collection, _, body in MADE},
    "POST /v1/vms": VM,
    "POST /v1/templates": {"vm": "web3"},
    "POST /v1/storage-domains": {"cluster": "default"},
    "POST /v1/silences": SILENCE,
    "POST /v1/tokens": {"cluster": "default"},
    "POST /v1/sessions/tokens": {},
    "POST /v1/users/{ref}/grants": {"role": "watcher"},
    "POST /v1/vms/{ref}/snapshots": {},
    **{f"PATCH /v1/{one}/{{ref}}": {} for one in ("clusters", "users", "vms", "receivers")},
}
"""Bodies that are taken."""
NAMELESS = (
    *("POST /v1/silences", "POST /v1/tokens", "POST /v1/sessions/tokens"),
    "POST /v1/users/{ref}/grants",
)
"""What the others make is given a name that is free."""


class Run:
    """What the hooks remember."""

    def __init__(self) -> None:
        self.test = Connection(int(os.environ[PIPE]))
        self.answers: Counter[tuple[str, str, int]] = Counter()
        """By operation, whether it was made good or bad, and status."""
        self.since_filled = FILL_AFTER
        self.sequence: object = None
        self.there: dict[str, list[str]] = {}
        self.sound: set[str] = set()
        """Cases by their ids."""
        self.chance = Random(0)

    def ask(self, what: str) -> Any:
        self.test.send((what, None))
        return self.test.recv()

    def fill_between(self) -> None:
        """Never within a sequence of requests that build on each other: what one deleted would be there again for the next."""
        sequence = current_build_context() if currently_in_test_context() else None
        if sequence is not None and sequence is self.sequence:
            return
        self.sequence = sequence
        if self.since_filled >= FILL_AFTER:
            self.there = self.ask(FILL)
            self.since_filled = 0

    def make_sound(self, case: Any) -> None:
        """Of things that are there, without conditions and parameters, with a body that is taken: what is asked for by chance is
        mostly refused at the first thing that it names."""
        for name in ("If-Match", "If-None-Match"):
            case.headers.pop(name, None)
        case.query = {}
        for name in case.path_parameters:
            of = test_schemathesis.collection_of(case.path, {"name": name, "in": "path"})
            if found := self.there.get(of):
                case.path_parameters[name] = self.chance.choice(found)
        label = case.operation.label
        if label in SOUND:
            name = f"new{uuid4().hex[:8]}"
            has_name = label.startswith("POST") and label not in NAMELESS
            case.body = {**SOUND[label], **({"name": name} if has_name else {})}
            if label == "POST /v1/storage-domains":
                case.body["path"] = f"/srv/{name}"
        self.sound.add(case.id)

    def count(self, case: Any, status: int) -> None:
        mode = "sound" if case.id in self.sound else ""
        if not mode and case.meta is not None:
            mode = case.meta.generation.mode.value
        self.answers[case.operation.label, mode, status] += 1
        self.since_filled += 1

    def tell(self) -> None:
        self.test.send((COUNTED, dict(self.answers)))


RUN = Run()
atexit.register(RUN.tell)


@schemathesis.auth(retry_on=[401])
class SignedIn:
    """Asked anew after each 401: a run signs itself out, by a session's id or as a user that is changed."""

    def get(self, case: Any, context: Any) -> str:
        header: str = RUN.ask(SIGN_IN)
        return header

    def set(self, case: Any, data: str, context: Any) -> None:
        case.headers["Authorization"] = data


@schemathesis.check
def a_bad_request_is_refused(ctx: Any, response: Any, case: Any) -> bool | None:
    """Theirs, but for what was made sound: it names things that are there by now, which the document could not list when the run
    began."""
    if case.id in RUN.sound:
        return None
    try:
        refused: bool | None = test_schemathesis.REFUSES(ctx, response, case)
    except Failure as found:
        if OTHER_NAME.search(found.message):
            return None
        raise
    return refused


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    RUN.fill_between()
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if KEY in case.headers:
        # By chance it is nearly always the same one, and all but its first request are refused.
        case.headers[KEY] = str(uuid4())
    if case.meta.phase.name is TestPhase.FUZZING and RUN.chance.random() < SOUND_SHARE:
        RUN.make_sound(case)


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    RUN.count(case, response.status_code)
