import json

import numpy as np
import pytest

from optimizer.benching.workload import Workload, name_of
from optimizer.data.batching import IN_ORDER, ONE_BY_ONE, SORTED, Batching
from optimizer.data.preprocess import Preprocessor
from optimizer.errors import BadInput

SPECS = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids", "attention_mask")]


@pytest.fixture(scope="module")
def tokenizer(minilm_dir):
    """The preprocessor of MiniLM, from its folder alone."""
    return Preprocessor.open(minilm_dir, {"inputs": SPECS, "max_length": 256})


@pytest.fixture
def workload(tokenizer, sentences):
    def make(batching, model=None, **settings):
        return Workload.open(sentences, tokenizer, batching, model or {}, **settings)

    return make


def test_a_pass_has_every_row_in_order_with_its_own_tokens(workload, tokenizer, sentences):
    made = workload(IN_ORDER, rows=50)
    texts = [json.loads(line)["text"] for line in sentences.read_text().splitlines()]
    assert made.batch == 50
    assert list(made.places) == sorted(made.places)
    feeds = made.feeds()
    assert [len(batch["input_ids"]) for batch in feeds] == [32, 18]
    lengths = np.concatenate([batch["attention_mask"].sum(1) for batch in feeds])
    assert lengths.tolist() == list(made.lengths)
    vocabulary = tokenizer._encoders[0]._tokenizer
    first = feeds[0]["input_ids"][0][feeds[0]["attention_mask"][0] == 1]
    assert first.tolist() == vocabulary.encode(texts[made.places[0]]).ids


def test_its_rows_have_the_lengths_of_the_whole_file(workload):
    whole, part = workload(SORTED, rows=10_000), workload(SORTED, rows=100)
    assert whole.batch == 600
    for share in (0.1, 0.5, 0.9):
        assert abs(np.quantile(whole.lengths, share) - np.quantile(part.lengths, share)) <= 2


def test_rows_of_like_length_share_a_batch_and_little_is_padded(workload):
    in_order, by_length = workload(IN_ORDER), workload(Batching(tokens=1024))
    assert in_order.padding > 2
    assert by_length.padding < 1.2
    computed = sum(batch["input_ids"].size for batch in by_length.feeds())
    assert computed == pytest.approx(by_length.padding * sum(by_length.lengths))
    assert by_length.batched(IN_ORDER).padding == in_order.padding


def test_one_by_one_pads_nothing(workload):
    made = workload(ONE_BY_ONE, rows=8)
    assert made.padding == 1
    assert [batch["input_ids"].shape[0] for batch in made.feeds()] == [1] * 8


def test_a_model_of_few_rows_gets_no_larger_batch(workload):
    assert max(len(group) for group in workload(SORTED, {"max_batch": 4}).groups) == 4


def test_two_ways_of_batching_the_same_rows_are_two_loads(workload):
    made = workload(SORTED)
    assert made != made.batched(IN_ORDER)
    assert name_of(made) != name_of(made.batched(IN_ORDER))
    assert str(made) == str(made.batched(IN_ORDER)) == "512 rows of sentiment-test.jsonl"
    assert made.to_json() == {
        "rows": 512,
        "file": "sentiment-test.jsonl",
        "batching": "sorted:32",
        "batches": 16,
        "padding": made.padding,
    }


def test_rows_without_a_length_are_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 3), np.float32))
    specs = [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]
    with pytest.raises(BadInput, match="have no lengths"):
        Workload.open(tmp_path / "rows.npz", Preprocessor.open(tmp_path, {"inputs": specs}), SORTED, {})
