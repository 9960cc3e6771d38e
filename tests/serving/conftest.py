"""One store of tiny models, and one server process for all tests of what it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving import artifacts

ROOT = Path(__file__).parents[2]

#: A planted model that takes its time.
SLOW = {"latency_s": 0.2, "wait": "sleep"}


#: What the extra ``serve`` does not install: every server of these tests runs without it.
NOT_INSTALLED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pyarrow", "huggingface_hub", "safetensors")
_RUN = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_INSTALLED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (not in the extra serve)", name=name)
sys.meta_path.insert(0, Blocker())
from optimizer.cli.main import main
main()
"""


@dataclass
class Process:
    """A server in a process of its own."""

    words: list[str]
    port: int = 0
    process: subprocess.Popen[str] = field(init=False)
    log: list[dict[str, Any]] = field(default_factory=list)
    ready: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, "serve", *self.words, "--port", str(self.port), "--json", "--threads", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        self.ready = json.loads(line) if line.startswith('{"event"') else {}

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classes` in two versions, and `vectors`; no test writes into it."""
    from optimizer.store import Store

    store = Store(tmp_path_factory.mktemp("serving") / "models")
    artifacts.put(store, "classes", seed=1)
    artifacts.put(store, "classes", seed=2)
    artifacts.put(store, "vectors", "last_hidden_state")
    return store.root


@pytest.fixture(scope="session")
def server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of `classes` in two versions, `vectors`, and planted ones: `slow`, `kinds` (of numbers), `failing`."""
    home = tmp_path_factory.mktemp("planted")
    (home / "slow.json").write_text(json.dumps(SLOW))
    every = [
        {"name": name, "dtype": dtype, "shape": ["batch", 2]}
        for name, dtype in (("i", "int64"), ("u", "uint64"), ("h", "float16"), ("b", "bool"), ("d", "float64"))
    ]
    (home / "kinds.json").write_text(json.dumps({"inputs": every}))
    (home / "failing.json").write_text(json.dumps({"fail_after": 0}))
    planted = [f"fake:{home / name}.json" for name in ("slow", "kinds", "failing")]
    words = ["classes@1", "classes@2", "vectors", *planted, "--store", str(tiny_store), "--max-queue", "8"]
    grpc = ["--grpc-port", "0"] if importlib.util.find_spec("grpc") else []
    process = Process([*words, "--max-body", "1", *grpc])
    assert process.ready, process.process.stderr
    yield process
    process.end()
