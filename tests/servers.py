"""A small real HTTP server: the Open Inference Protocol and OpenAI's, as late and as wrong as planted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INPUTS = [
    {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
    {"name": "mask", "datatype": "INT64", "shape": [-1, -1]},
]


class Server:
    """A server in threads of this process.

    Args:
        latency_s: of an answer; of a stream, before its first piece and between pieces.
        alone: one query at a time, the others wait: its capacity is 1 / latency_s.
        fails: the status to fail the n-th query with, counted from 0; 0 answers it.
        hangs: whether the n-th query is answered a second too late.
        ready: whether it says so.
        pieces: of a streamed answer.
        cut: whether a stream ends without saying so.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        *,
        alone: bool = False,
        fails: Callable[[int], int] = lambda number: 0,
        hangs: Callable[[int], bool] = lambda number: False,
        ready: bool = True,
        pieces: int = 4,
        cut: bool = False,
        inputs: list[dict[str, Any]] = INPUTS,
    ) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.connections: set[Any] = set()
        turn = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one segment an answer

            def do_GET(self) -> None:
                if self.path == "/v2/health/ready":
                    self.answer(200 if ready else 503, b"")
                elif self.path == "/v2/models/m":
                    self.answer(200, json.dumps({"name": "m", "inputs": inputs, "outputs": []}).encode())
                else:
                    self.answer(404, b'{"error": "no such model"}')

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with turn:
                    number = len(outer.asked)
                    outer.asked.append((self.path, body))
                    outer.connections.add(self.client_address)
                    if alone:
                        time.sleep(latency_s)
                if hangs(number):
                    time.sleep(1.0)
                if status := fails(number):
                    self.answer(status, b'{"error": "planted"}')
                elif self.path == "/v1/chat/completions":
                    self.stream()
                else:
                    if not alone:
                        time.sleep(latency_s)
                    self.answer(200, b'{"outputs": []}')

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.event({"choices": [{"delta": {"role": "assistant"}}]})
                for number in range(pieces):
                    time.sleep(latency_s)
                    self.event({"choices": [{"delta": {"content": f"w{number} "}}]})
                if not cut:
                    self.wfile.write(b"data: [DONE]\n\n")
                self.wfile.flush()
                self.close_connection = True

            def event(self, data: Any) -> None:
                self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
                self.wfile.flush()

            def log_message(self, *words: Any) -> None:
                """Keep the tests' output clean."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *about: Any) -> None:
                """A client that went away is what some tests are about."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *about: object) -> None:
        self._server.shutdown()
        self._server.server_close()
