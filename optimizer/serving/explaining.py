"""A request's record in words: what took the most of its time, and what would change that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from optimizer.serving.record import Part, Record
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.serving.tickets import Limits

__all__ = ["PARTS", "document", "summary"]

#: Part of a request → what happens in it.
PARTS: Mapping[str, str] = {
    "parse": "reading tensors out of the body",
    "tokenize": "texts or images into the model's inputs",
    "queue": "waiting for the model",
    "compute": "the run of the model",
    "cache_hit": "finding the answer, which was kept",
    "cache_miss": "looking for a kept answer, in vain",
    "serialize": "writing the answer",
    "first_token": "waiting for a place, and reading the prompt",
    "write": "writing the text, token by token, and sending it",
    "rest": "all else: the way in, sending the body, other requests on the event loop",
}
#: Padding of a run from which it is worth a word.
_WASTE = 0.3
#: Why a request was refused, by the reason that the metrics have → what to change.
_REASONS: Mapping[str, str] = {
    "queue_full": "the queue was full: come again after Retry-After, make runs faster (a smaller or quantized variant: "
    "ml-opt optimize), or let more wait with a larger --max-queue",
    "deadline": "it would not have been answered in its time: come again after Retry-After, give it more time "
    "(X-Request-Timeout, --deadline), or make runs faster (ml-opt optimize)",
    "late": "its time was over while it waited or ran: give it more (X-Request-Timeout, V2's timeout, --deadline), "
    "or make runs faster (ml-opt optimize)",
    "disconnected": "the client went away before it was answered: look at the client's own timeout",
    "too_large": "it is larger than the server takes: send less at once, or raise --max-body, --max-queue "
    "or --max-megapixels",
    "unauthorized": "it brought no key that is known: ml-opt keys list",
    "forbidden": "its key may not do this: ml-opt keys create --scope",
    "rate": "its key was used more often than its rate allows: ml-opt keys create --rate",
    "tokens": "its key's budget of tokens does not allow it: ml-opt keys create --tokens",
    "not_ready": "the model was not ready: POST /v2/repository/index says where it is",
    "unloading": "the model was being unloaded: ask again, or ask another version",
    "model": "the model itself refused these inputs, or failed on them; the log has the rest",
    "bug": "this is a fault of the server; its log has the traceback",
    "unknown_path": "there is no such route: /docs lists them all",
    "wrong_method": "the route takes another method: /docs lists them all",
}


def document(record: Record, same_id: int, limits: Limits, batching: str) -> dict[str, JSON]:
    """What is known of a request, as JSON.

    Args:
        record: of the request.
        same_id: how many requests are kept under its id.
        limits: of the model's queue; advice names the options that would change them.
        batching: what shares a run of the model, as its metadata say; empty where it is not served any more.

    Returns:
        seconds everywhere; ``parts`` in the order that they came, with all that no part claims as ``rest``.
    """
    times = dict(record.times)
    times["rest"] = max(0.0, record.seconds - sum(times.values()))
    longest = max(times, key=lambda part: times[part])
    known: dict[str, JSON] = {
        **summary(record),
        "same_id": same_id,
        "who": record.who,
        "parts": [{"part": part, "seconds": took, "what": PARTS.get(part, "")} for part, took in times.items()],
        "longest": longest,
        "runs": [_run(part, record.id) for part in record.runs],
        "refused": None,
        "advice": [],
    }
    for name in ("prompt_tokens", "tokens", "cache", "trace"):
        if name in record.notes:
            known[name] = record.notes[name]
    if (message := record.notes.get("error")) is not None:
        reason = str(record.notes.get("reason", ""))
        known["refused"] = {"message": message, "reason": reason}
        known["advice"] = [_REASONS.get(reason, "the message names the field: send another request")]
    else:
        known["advice"] = _advice(record, longest, limits, batching)
    return known


def summary(record: Record) -> dict[str, JSON]:
    """A request in one line of a list."""
    return {
        "id": record.id,
        "at": datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        "endpoint": record.endpoint,
        "status": record.status,
        "seconds": record.seconds,
        "model": record.model,
        "version": record.version,
        "ref": record.ref,
        "provider": record.provider,
    }


def _run(part: Part, id: str) -> dict[str, JSON]:
    run = part.run
    mates = [owner for owner in dict.fromkeys(run.owners) if owner and owner != id]
    return {
        "seconds": run.seconds,
        "beside": run.beside,
        "requests": run.requests,
        "rows": run.rows,
        "length": run.computed // max(run.rows, 1),
        "tokens": run.tokens,
        "computed_tokens": run.computed,
        "padding": _padding(part),
        "own_rows": part.rows,
        "own_tokens": part.tokens,
        "mates": mates,
        "mates_not_named": run.requests - len(run.owners),
    }


def _padding(part: Part) -> float:
    """The share of a run that was computed for padding."""
    return 1 - part.run.tokens / part.run.computed if part.run.computed else 0.0


def _advice(record: Record, longest: str, limits: Limits, batching: str) -> list[str]:
    """What would change the part that took longest; the likeliest first."""
    optimize = f"ml-opt optimize looks for a faster variant of {record.model}" if record.model else ""
    if longest == "queue":
        return [*_of_queue(record, limits, batching), optimize]
    if longest == "compute":
        return [*_of_run(record), optimize]
    by_part = {
        "parse": "send tensors as binary data instead of JSON (V2's binary tensor extension)",
        "tokenize": "send shorter texts or smaller pictures, or arrays that the client prepared (V2's infer)",
        "serialize": "ask for binary data, and only for the outputs that are needed",
        "first_token": "a shorter prompt is read faster; other texts may have had the places first (ml_texts_waiting)",
        "write": f"ask for fewer tokens (max_tokens), or serve a variant with smaller weights; {optimize}",
        "rest": "the server itself was busy, or the body or the answer travelled slowly: see how many requests are "
        "under way at once (ml_active_requests), and how large they are",
    }
    return [by_part[longest]] if longest in by_part else []


def _of_queue(record: Record, limits: Limits, batching: str) -> list[str]:
    found = []
    run = record.runs[0].run if record.runs else None
    if limits.delay and record.times["queue"] <= limits.delay * 1.5 and run and run.rows < limits.rows:
        found.append(f"--delay lets requests wait {limits.delay * 1000:g} ms for others; without it none waits idly")
    if batching == "none":
        found.append("this model runs one request after the other, as its requests cannot share a run")
    elif run and run.rows >= limits.rows:
        found.append(f"its run was full ({run.rows} rows): a larger --max-batch takes more at once")
    elif run and run.computed >= limits.tokens * 0.9:
        found.append(f"its run was full ({run.computed} tokens): a larger --max-tokens takes more at once")
    return [*found, "the model was busy with others: a second server beside this one shares the load"]


def _of_run(record: Record) -> list[str]:
    found = []
    for part in record.runs:
        if _padding(part) > _WASTE:
            length = part.run.computed // max(part.run.rows, 1)
            found.append(
                f"{_padding(part):.0%} of its run was padding to {length} tokens, the longest of its mates; "
                "a smaller --max-tokens, or longer texts to a server of their own, keep that down"
            )
        if part.run.requests > 1:
            found.append(f"it shared its run with {part.run.requests - 1} others; --slo keeps runs short")
        if part.run.beside:
            found.append(
                "its run had a share of the cores, as more waited than one run takes; --streams 1 gives each run all "
                "of them, and fewer are answered"
            )
    return found[:2]
