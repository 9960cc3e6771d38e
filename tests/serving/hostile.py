"""Clients that do a server no good: they hang up, read slowly or nothing, and send what is too large, cut short or no
request at all. Each is a function of a port and a source of random numbers, and says what it was answered."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator

__all__ = ["HOSTILE", "LARGE", "STALLING"]

#: Floats of an answer of the model ``large`` (of one input ``x`` ``[batch, 2]``): 8 MB, where a socket's two ends hold
#: some 3 MB at most, so that the server has to wait for the reader.
LARGE = 2_000_000
#: Texts with all that can be told of each token: some 4 MB, so that it has to wait in the middle of the stream.
STALLING = {
    "model": "llama", "messages": [{"role": "user", "content": "go"}], "n": 32, "max_tokens": 90, "stream": True,
    "temperature": 0, "logprobs": True, "top_logprobs": 20,
}  # fmt: skip
_STREAM = {"model": "llama", "prompt": "def ", "max_tokens": 48, "temperature": 0, "stream": True}
_TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
_SLOW = "/v2/models/slow/infer"
_COMPLETIONS = "/v1/completions"


def _body(document: object) -> bytes:
    return json.dumps(document).encode()


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


@contextlib.contextmanager
def _connected(port: int, receive: int = 0) -> Iterator[socket.socket]:
    """A connection; ``receive`` are the bytes that the system takes in for it while nobody reads."""
    with socket.socket() as made:
        if receive:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        made.settimeout(60)
        made.connect(("127.0.0.1", port))
        yield made


def _status(connection: socket.socket) -> int:
    """Of the answer; 0 where the connection ended before there was one."""
    said = b""
    with contextlib.suppress(OSError):
        while b"\r\n" not in said and (part := connection.recv(4096)):
            said += part
    return int(said.split(b" ", 2)[1]) if said.startswith(b"HTTP/1.1 ") else 0


def _before_the_body(port: int, drawn: random.Random) -> int:
    head = _head(_SLOW, 200)
    with _connected(port) as connection:
        connection.sendall(head[: drawn.randrange(1, len(head) + 1)])
        time.sleep(drawn.random() / 50)
    return 0


def _in_the_body(port: int, drawn: random.Random) -> int:
    body = _body({"inputs": [_TENSOR]})
    with _connected(port) as connection:
        connection.sendall(_head(_SLOW, len(body)) + body[: drawn.randrange(len(body))])
        time.sleep(drawn.random() / 50)
    return 0


def _while_it_waits(port: int, drawn: random.Random) -> int:
    body = _body({"inputs": [_TENSOR]})
    with _connected(port) as connection:
        connection.sendall(_head(_SLOW, len(body)) + body)
        time.sleep(drawn.random() / 20)
    return 0


def _in_the_stream(port: int, drawn: random.Random) -> int:
    body = _body(_STREAM)
    with _connected(port) as connection:
        connection.sendall(_head(_COMPLETIONS, len(body)) + body)
        status = _status(connection)
        time.sleep(drawn.random() / 20)
    return status


def _stalled(port: int, drawn: random.Random, path: str, document: object, least: int) -> int:
    """Read nothing for a while, then all of it, or nothing any more."""
    body = _body(document)
    with _connected(port, receive=4096) as connection:
        connection.sendall(_head(path, len(body)) + body)
        status = _status(connection)
        time.sleep(0.2 + drawn.random() / 2)
        if status != 200 or drawn.random() < 0.5:
            return status
        size, end = 0, b""
        while size < least and not end.endswith(b"[DONE]\n\n\r\n0\r\n\r\n") and (part := connection.recv(1 << 20)):
            size, end = size + len(part), (end + part)[-40:]
    return status


def _slow_reader_of_an_answer(port: int, drawn: random.Random) -> int:
    document = {"inputs": [_TENSOR], "parameters": {"binary_data_output": True}}
    return _stalled(port, drawn, "/v2/models/large/infer", document, 4 * LARGE)


def _slow_reader_of_a_stream(port: int, drawn: random.Random) -> int:
    return _stalled(port, drawn, "/v1/chat/completions", STALLING, 1 << 30)


def _too_large(port: int, drawn: random.Random) -> int:
    """Said to be too large, or found to be."""
    size = (1 << 20) + drawn.randrange(1, 1 << 19)
    with _connected(port) as connection, contextlib.suppress(OSError):  # the rest of it is not read
        if drawn.random() < 0.5:
            connection.sendall(_head(_SLOW, size) + bytes(size))
        else:
            head = _head(_SLOW, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            connection.sendall(head + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
        return _status(connection)
    return 0


def _cut_short(port: int, drawn: random.Random) -> int:
    """Less than was said, and then no more of it; or a document that ends in the middle."""
    body = _body({"inputs": [_TENSOR]})
    part = body[: drawn.randrange(len(body))]
    with _connected(port) as connection:
        if drawn.random() < 0.5:
            connection.sendall(_head(_SLOW, len(body)) + part)
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.sendall(_head(_SLOW, len(part)) + part)
        return _status(connection)


def _malformed(port: int, drawn: random.Random) -> int:
    body = drawn.randbytes(drawn.randrange(1, 500))
    path = drawn.choice([_SLOW, "/v2/models/classes/infer", _COMPLETIONS, "/v1/classify"])
    with _connected(port) as connection:
        connection.sendall(_head(path, len(body)) + body)
        return _status(connection)


def _no_request(port: int, drawn: random.Random) -> int:
    with _connected(port) as connection:
        connection.sendall(b"\x16\x03\x01" + drawn.randbytes(drawn.randrange(1, 200)) + b"\r\n\r\n")
        return _status(connection)


#: Each with how often it comes, and the statuses that it may be answered; 0 is none.
HOSTILE: dict[Callable[[int, random.Random], int], tuple[int, set[int]]] = {
    _before_the_body: (12, {0}),
    _in_the_body: (12, {0}),
    _while_it_waits: (12, {0}),
    _in_the_stream: (12, {0, 200}),
    _slow_reader_of_an_answer: (12, {0, 200}),
    _slow_reader_of_a_stream: (4, {0, 200}),
    _too_large: (12, {0, 413}),
    _cut_short: (12, {0, 400}),
    _malformed: (12, {0, 400}),
    _no_request: (12, {0, 400}),
}
