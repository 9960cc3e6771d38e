"""What became of a request: its times, the run that it shared, and why it was refused. ``ml-opt why`` asks here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.explaining import document, summary
from optimizer.serving.form import COUNT, NUMBER, TEXT, TRUTH, WHOLE, listed, object_of, or_null, spoken
from optimizer.serving.pacing import limits_of
from optimizer.serving.problems import Problem
from optimizer.serving.record import ASKED_AT, RECENT, REFUSED, SLOWEST, Record
from optimizer.serving.route import Route, Scope
from optimizer.serving.tickets import Limits

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]

#: Requests in each of the two lists.
_LISTED = 20


async def _requests(call: Call) -> Response:
    records = call.state.records
    return json_answer(
        {
            "worker": os.getpid(),
            "workers": call.state.settings.workers,
            "slowest": [summary(record) for record in records.slowest(_LISTED)],
            "newest": [summary(record) for record in records.newest(_LISTED)],
        }
    )


async def _request(call: Call) -> Response:
    id = call.request.path_params["id"]
    found = call.state.records.find(id)
    if found is None:
        message = (
            f"no request {id[:128]!r} is kept; of those that asked a model the newest {RECENT} and the slowest "
            f"{SLOWEST} are, and the newest {REFUSED} that were refused"
        )
        headers = {"X-Workers": str(call.state.settings.workers)}  # each of which keeps its own
        raise Problem(404, message, headers, code="request_not_found", reason="unknown_request")
    record, same_id = found
    return json_answer(document(record, same_id, *_queue(call, record)))


def _queue(call: Call, record: Record) -> tuple[Limits, str]:
    """The limits of the queue that it was in, and what shares a run there, while its model is served."""
    for served in call.state.models:
        if (served.name, served.version) == (record.model, record.version):
            usual = limits_of(call.state.settings, served.model)
            return usual if served.batcher is None else served.batcher.limits, served.batching
    return limits_of(call.state.settings, {}), ""


#: Seconds, and words for the rest.
_SUMMARY = {
    **dict.fromkeys(("id", "at", "endpoint", "model", "version", "ref", "provider"), TEXT),
    "status": WHOLE,
    "seconds": NUMBER,
}
_RUN = {
    **dict.fromkeys(("seconds", "padding"), NUMBER),
    "beside": TRUTH,
    **dict.fromkeys(
        ("requests", "rows", "length", "tokens", "computed_tokens", "own_rows", "own_tokens", "mates_not_named"), COUNT
    ),
    "mates": listed(TEXT),
}
_LISTS = object_of(
    "Requests",
    {
        "worker": {**WHOLE, "description": "The process that answers, which knows its own requests alone."},
        "workers": COUNT,
        **dict.fromkeys(("slowest", "newest"), listed(object_of("RequestSummary", _SUMMARY))),
    },
)
_RECORD = object_of(
    "RequestRecord",
    {
        **_SUMMARY,
        "same_id": COUNT,
        "who": TEXT,
        "parts": listed(object_of("", {"part": TEXT, "seconds": NUMBER, "what": TEXT})),
        "longest": TEXT,
        "runs": listed(object_of("Run", _RUN)),
        "refused": or_null(object_of("", {"message": TEXT, "reason": TEXT})),
        "advice": listed(TEXT),
    },
    {"prompt_tokens": COUNT, "tokens": COUNT, "cache": TEXT, "trace": TEXT},
)

ROUTES = (
    Route(ASKED_AT, ("GET",), Scope.ADMIN, _requests, "The slowest and the newest requests.", spoken(_LISTS)),
    # The id is a client's own, and may hold a slash.
    Route(
        ASKED_AT + "/{id:path}",
        ("GET",),
        Scope.ADMIN,
        _request,
        "Where the time of one request went, and why.",
        spoken(_RECORD),
    ),
)
