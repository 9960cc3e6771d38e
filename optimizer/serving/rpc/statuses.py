"""What a problem is in gRPC: a code, words, and when to come again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimizer.serving.rpc.messages import message

__all__ = ["code_of", "metadata_of"]

#: Status of HTTP → code of gRPC. 413 is no RESOURCE_EXHAUSTED, which clients try again.
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
#: Headers of an answer that gRPC has a word of its own for, or no use.
_LEFT_OUT = ("content-", "inference-", "connection", "x-content-type-options", "x-frame-options")


def code_of(status: int) -> Any:
    """The ``grpc.StatusCode`` of a status of HTTP that is no 200."""
    import grpc

    return grpc.StatusCode[_CODES.get(status, "INTERNAL")]


def metadata_of(headers: Mapping[str, str], status: int = 200, words: str = "") -> tuple[tuple[str, str | bytes], ...]:
    """What an answer's headers say, as trailing metadata.

    ``Retry-After`` is also said as gRPC has it: ``RetryInfo`` in ``grpc-status-details-bin`` (google.rpc.Status), and
    ``grpc-retry-pushback-ms`` (gRFC A6), which a client's own policy of retries keeps to.

    Args:
        headers: names in lower case.
        status: of HTTP.
        words: of the problem.
    """
    found: list[tuple[str, str | bytes]] = [
        (name, value) for name, value in headers.items() if not name.startswith(_LEFT_OUT)
    ]
    if status != 200 and (after := _milliseconds(headers)):
        delay = message("RetryInfo")()
        delay.retry_delay.seconds, rest = divmod(after, 1000)
        delay.retry_delay.nanos = rest * 1_000_000
        details = message("Status")(code=code_of(status).value[0], message=words)
        details.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=delay.SerializeToString())
        found += [
            ("grpc-status-details-bin", details.SerializeToString()),
            ("grpc-retry-pushback-ms", str(after)),
        ]
    return tuple(found)


def _milliseconds(headers: Mapping[str, str]) -> int:
    exact, whole = headers.get("retry-after-ms", ""), headers.get("retry-after", "")
    if exact.isdigit():
        return int(exact)
    return int(whole) * 1000 if whole.isdigit() else 0
