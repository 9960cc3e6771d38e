"""Sessions that several threads run at the same time, each run on a thread of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving.artifacts import write_graph

from optimizer.runtime import STREAMING, Provider, Session, SessionOptions, get_runtime


def opened(provider: str, path: Path, streams: int) -> Session:
    found = Provider(provider)
    return get_runtime(found).open(path, SessionOptions(found, threads=2, streams=streams), model={})


@pytest.mark.parametrize("provider", STREAMING)
def test_each_thread_gets_its_own_answer(tmp_path: Path, provider: str) -> None:
    write_graph(tmp_path / "model.onnx", "logits")
    random = np.random.default_rng(0)
    requests = []
    for length in (3, 7, 12, 30) * 25:
        ids = random.integers(4, 20, (2, length))
        requests.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    one, several = opened(provider, tmp_path / "model.onnx", 1), opened(provider, tmp_path / "model.onnx", 2)
    try:
        wanted = [one.run(feeds)["logits"] for feeds in requests]
        with ThreadPoolExecutor(2) as threads:
            got = list(threads.map(lambda feeds: several.run(feeds)["logits"], requests))
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    finally:
        one.close()
        several.close()
