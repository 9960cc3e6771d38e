"""OpenVINO GenAI's continuous batching, on what optimum-intel exports; the environment has neither of ml-opt's.

    python -m benchmarks.peers.openvino_genai prepare SOURCE FOLDER fp32|int8|int4

exports; the other words are those of :mod:`benchmarks.peers.writers`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import writers
from benchmarks.peers.gguf_llama import end_tokens
from optimizer.generator import Generator, Sampling
from optimizer.runtime import Candidate
from optimizer.types import JSON

#: Weights in 4 bits share a scale in groups of 128, as is the exporter's own choice; matrices whose width is no
#: multiple of that take the largest group that fits.
_INT4 = ("--group-size", "128", "--group-size-fallback", "adjust")

#: Most tokens of a step, as llama.cpp has it by default; with 256, the pipeline's own choice, prompts are read slower.
_STEP = 2048


class PagedEngine:
    """A pipeline with a paged cache; caching of prompts is off, as everyone reads every prompt.

    Raises:
        RuntimeError: openvino_genai cannot open the folder.
    """

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        config = json.loads((folder / "config.json").read_bytes())
        self.context, self.vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
        self.end_tokens = end_tokens(folder)
        settings = openvino_genai.SchedulerConfig()
        settings.cache_size = 1  # GiB
        settings.enable_prefix_caching = False
        settings.max_num_batched_tokens = _STEP
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), settings, "CPU", properties)
        self.facts: dict[str, JSON] = {
            "runtime": "openvino-genai",
            "threads": threads,
            "precision": precision or "chosen by OpenVINO",
            "openvino_genai": openvino_genai.__version__,
        }
        self._tensor, self._config = openvino.Tensor, openvino_genai.GenerationConfig
        self._running = openvino_genai.GenerationStatus.RUNNING
        self._numbers = itertools.count()

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        """Hand a prompt to the pipeline's own queue."""
        import numpy as np

        config = self._config()
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = sampling.min_tokens
        config.do_sample = False
        return self._pipeline.add_request(next(self._numbers), self._tensor(np.array([prompt], np.int64)), config)

    def step(self, texts: Sequence[Any]) -> list[tuple[tuple[int, ...], bool]]:
        """One step of the pipeline, which schedules prompts and texts by itself."""
        self._pipeline.step()
        return [self._said(text) for text in texts]

    def _said(self, text: Any) -> tuple[tuple[int, ...], bool]:
        found: list[int] = []
        while text.can_read():
            for output in text.read().values():
                found += output.generated_ids
        return tuple(found), text.get_status() != self._running


def _open(candidate: Candidate, threads: int) -> Generator:
    return writers.SteppedGenerator(PagedEngine(candidate.path, candidate.provider.precision, threads))


def _prepare(source: str, folder: str, weights: str) -> None:
    words = ["export", "openvino", "--model", source, "--task", "text-generation-with-past", "--weight-format", weights]
    words += _INT4 if weights == "int4" else ()
    subprocess.run([str(Path(sys.executable).with_name("optimum-cli")), *words, folder], check=True)


if __name__ == "__main__":
    writers.main(_open, _prepare)
