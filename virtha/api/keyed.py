"""The header Idempotency-Key: a request that is repeated with it is answered again, not carried out again."""

import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from virtha.api.problems import MEDIA_TYPE, encode_problem, problem_of
from virtha.api.route import Answer, Call, Route
from virtha.api.times import encode
from virtha.control.keyed_requests import FIELD, asked
from virtha.model.errors import InvalidInput, VirthaError
from virtha.model.kept_answer import KeptAnswer

HEADER = FIELD.lower()
_CHARACTERS = "[A-Za-z0-9._~+/=:-]{16,255}"
PATTERN = f'^("{_CHARACTERS}"|{_CHARACTERS})$'
"""With the quotation marks of the IETF's draft, or without. At least 16, for keys must not meet by chance."""
REPLAYED = "Idempotent-Replayed"
_KEY = re.compile(PATTERN)


def key_of(one: Route, headers: Mapping[str, str]) -> str | None:
    """None: it has none, or needs none, for the method says already that it may be repeated. Raises InvalidInput."""
    given = headers.get(HEADER)
    if given is None or one.method != "POST":
        return None
    if not one.keyed:
        raise InvalidInput(
            "this request takes none: its answer is not kept",
            field=FIELD,
            fix="leave it out, and look before you repeat it",
        )
    if _KEY.fullmatch(given) is None:
        raise InvalidInput(
            "is no key",
            field=FIELD,
            allowed=("16 to 255 of A-Z a-z 0-9 . _ ~ + / = : -",),
            fix="take a new UUID for each request",
        )
    return given.strip('"')


async def answer_once(one: Route, call: Call[Any, Any], key: str, said: bytes) -> Answer:
    """``said``: the request's path, query and conditions, and its body."""
    requests = call.control.keyed_requests
    request = asked(call.caller, key, said)
    kept = await requests.answer_to(request)
    if kept is not None:
        return Answer(
            raw=kept.body.encode(),
            status=kept.status,
            revision=kept.revision,
            location=kept.location,
            headers={REPLAYED: "true", **_kind_of(kept)},
        )
    work = _answered(one, call)
    return await requests.carry_out(request, work, answer_of=_to_keep, refusal_of=_refusal)


def _kind_of(kept: KeptAnswer) -> dict[str, str]:
    refused = kept.status >= HTTPStatus.BAD_REQUEST
    return {"Content-Type": MEDIA_TYPE} if refused else {}


def _refusal(error: VirthaError) -> KeptAnswer:
    return KeptAnswer(status=error.http_status, body=encode_problem(problem_of(error)).decode())


async def _answered(one: Route, call: Call[Any, Any]) -> Answer:
    """With its bytes, and the status that it has."""
    answer = await one.handler(call)
    return replace(answer, raw=encode(answer.body, one.answer), status=answer.status or one.status)


def _to_keep(answer: Answer) -> KeptAnswer:
    assert answer.raw is not None and answer.status is not None
    return KeptAnswer(
        status=answer.status,
        body=answer.raw.decode(),
        revision=answer.revision,
        location=answer.location,
    )
