"""OpenVINO GenAI's continuous batching, on what optimum-intel exports; the environment has neither of ml-opt's.

    python -m benchmarks.peers.openvino_genai prepare SOURCE FOLDER fp32|int8|int4

exports; without arguments it is the worker that such a folder is measured in.
"""

from __future__ import annotations

import itertools
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimizer.benching.generation_worker import main
from optimizer.generator import Finish, Piece, Sampling
from optimizer.runtime import Candidate
from optimizer.types import JSON


class PagedGenerator:
    """One thread steps the pipeline and hands tokens on; caching of prompts is off, as everyone reads every prompt."""

    context = 2**20
    end_tokens: tuple[int, ...] = ()

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        settings = openvino_genai.SchedulerConfig()
        settings.cache_size = 1
        settings.enable_prefix_caching = False
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), settings, "CPU", properties)
        self.vocabulary = 2**31
        self.facts: dict[str, JSON] = {
            "runtime": "openvino-genai",
            "threads": threads,
            "openvino_genai": openvino_genai.__version__,
        }
        self._tensor, self._config = openvino.Tensor, openvino_genai.GenerationConfig
        self._numbers = itertools.count()
        self._waiting: queue.SimpleQueue[tuple[Sequence[int], Sampling, queue.SimpleQueue[Piece]] | None]
        self._waiting = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        """Begin a text."""
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._waiting.put((prompt, sampling, pieces))
        return _Text(pieces)

    def score(self, tokens: Any) -> Any:
        """Logits are not handed out."""
        raise NotImplementedError

    def close(self) -> None:
        """End the thread."""
        self._waiting.put(None)

    def _work(self) -> None:
        running: list[tuple[Any, queue.SimpleQueue[Piece]]] = []
        while True:
            while not self._waiting.empty() or not running:
                asked = self._waiting.get()
                if asked is None:
                    return
                running.append((self._begin(*asked[:2]), asked[2]))
            self._pipeline.step()
            for handle, pieces in running:
                while handle.can_read():
                    for output in handle.read().values():
                        pieces.put(Piece(tuple(output.generated_ids)))
            for each in [each for each in running if "RUNNING" not in str(each[0].get_status())]:
                each[1].put(Piece((), Finish.LENGTH))
                running.remove(each)

    def _begin(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        import numpy as np

        config = self._config()
        config.max_new_tokens = sampling.max_tokens
        config.ignore_eos = True
        config.do_sample = False
        return self._pipeline.add_request(next(self._numbers), self._tensor(np.array([prompt], np.int64)), config)


class _Text:
    def __init__(self, pieces: queue.SimpleQueue[Piece]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        while True:
            piece = self._pieces.get()
            yield piece
            if piece.finish is not None:
                return

    def cancel(self) -> None:
        """Nobody does."""


def _open(candidate: Candidate, threads: int) -> Any:
    return PagedGenerator(candidate.path, candidate.provider.precision, threads)


def _prepare(source: str, folder: str, weights: str) -> None:
    words = ["export", "openvino", "--model", source, "--task", "text-generation-with-past", "--weight-format", weights]
    subprocess.run([str(Path(sys.executable).with_name("optimum-cli")), *words, folder], check=True)


if __name__ == "__main__":
    _prepare(*sys.argv[2:]) if sys.argv[1:] else main(_open)
