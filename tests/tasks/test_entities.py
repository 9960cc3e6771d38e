"""Entities and words against seqeval and transformers: where words begin, what is cut off, what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import accuracy_score, f1_score
from tiny import phrases, tiny_bert

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput, MissingPiece
from optimizer.task import get_task
from optimizer.tasks._entities import ENTITY_F1, WORD_ACCURACY, Tagged

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
INPUTS = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in ("input_ids", "attention_mask")]
MODEL: dict[str, Any] = {"task": "token-classification", "labels": NAMES, "inputs": INPUTS, "max_length": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(
        tmp_path_factory.mktemp("tagger") / "tagger", "BertForTokenClassification", id2label=dict(enumerate(NAMES))
    )


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(Path("f.jsonl"), number, value) for number, value in enumerate(values, 1)]


def logits_of(folder: Path, feeds: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits.numpy()


def test_it_is_seqevals_number_on_a_real_model(folder: Path) -> None:
    """Against the way of transformers' own examples: words split by the tokenizer, first pieces, seqeval."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    words = [each for each in phrases(60, 1, longest=9) if sum(map(len, each)) <= 22]
    drawn = np.random.default_rng(0)
    tags = [[NAMES[tag] for tag in drawn.integers(0, 5, len(each))] for each in words]
    rows = rows_of(*({"tokens": each, "ner_tags": tag} for each, tag in zip(words, tags, strict=True)))
    pre = Preprocessor.open(folder, MODEL)
    truths = ENTITY_F1.truths(rows, pre, MODEL)
    feeds = pre.feeds(rows)
    outputs = {"logits": logits_of(folder, feeds)}
    counts = ENTITY_F1.score(outputs, feeds, truths, MODEL)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    said = []
    for each in words:
        encoded = tokenizer(each, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1)
        places = encoded.word_ids()
        said.append([NAMES[best[places.index(word)]] for word in range(len(each))])
    assert any(each != tag for each, tag in zip(said, tags, strict=True))
    assert ENTITY_F1.value(counts) == pytest.approx(f1_score(tags, said), abs=1e-12)
    assert 0 < ENTITY_F1.value(counts) < 1
    right = WORD_ACCURACY.score(outputs, feeds, truths, MODEL)
    assert WORD_ACCURACY.value(right) == pytest.approx(accuracy_score(tags, said), abs=1e-12)


def test_words_tags_and_tokens_are_the_same_answer(folder: Path) -> None:
    pre = Preprocessor.open(folder, MODEL)
    words, tags = ["ab", "c", "def"], ["B-PER", "O", "B-LOC"]
    numbers = [NAMES.index(tag) for tag in tags]
    by_word = ENTITY_F1.truths(rows_of({"tokens": words, "tags": tags}), pre, MODEL)
    assert by_word == [Tagged(tuple(tags), (1, 3, 4))]
    for values in (
        {"text": "ab  c def", "labels": numbers},
        {"text": "ab c def", "tags": "B-PER O B-LOC"},
        {"words": words, "text": "something else", "tags": np.array(numbers)},
        # One a token, and one a token with [CLS] and [SEP], as preprocessed data sets have them.
        {"text": "ab c def", "tags": [1, -100, 0, 3, -100, -100]},
        {"text": "ab c def", "tags": [-100, 1, -100, 0, 3, -100, -100, -100]},
    ):
        assert ENTITY_F1.truths(rows_of(values), pre, MODEL) == by_word, values
    named = Preprocessor.open(folder, MODEL, columns={"tokens": "w", "tags": "t"})
    assert ENTITY_F1.truths(rows_of({"w": words, "t": tags}), named, MODEL) == by_word


def test_words_are_fed_as_their_text(folder: Path) -> None:
    pre = Preprocessor.open(folder, MODEL)
    words, text = rows_of({"tokens": ["ab", "c"]}, {"text": "ab c"})
    np.testing.assert_array_equal(pre.feeds([words])["input_ids"], pre.feeds([text])["input_ids"])
    assert pre.content(words) == pre.content(text)


def test_what_is_cut_off_is_missed(folder: Path) -> None:
    pre = Preprocessor.open(folder, {**MODEL, "max_length": 5})
    (row,) = rows_of({"tokens": ["a", "b", "c", "d", "e"], "tags": ["B-PER", "O", "O", "O", "B-PER"]})
    truths = ENTITY_F1.truths([row], pre, MODEL)
    assert truths[0].places == (1, 2, 3, None, None)
    feeds = pre.feeds([row])
    logits = np.zeros((1, 5, 5), np.float32)
    logits[..., 1] = 1  # B-PER everywhere
    assert ENTITY_F1.score({"logits": logits}, feeds, truths, MODEL).tolist() == [[1, 3, 2]]


def test_padding_on_the_left_moves_nothing(folder: Path) -> None:
    truth = Tagged(("B-PER", "O"), (1, 2))
    logits = np.zeros((2, 6, 5), np.float32)
    logits[0, 1, 1] = logits[0, 2, 0] = 1
    logits[1, 3, 1] = logits[1, 4, 0] = 1
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    counts = ENTITY_F1.score({"logits": logits}, {"attention_mask": mask}, [truth, truth], MODEL)
    assert counts.tolist() == [[1, 1, 1], [1, 1, 1]]
    logits[1, 3] = np.nan
    broken = ENTITY_F1.score({"logits": logits}, {"attention_mask": mask}, [truth, truth], MODEL)
    assert broken.tolist() == [[1, 1, 1], [0, 0, 1]], "a NaN is no entity"


def test_counts_add_up_as_seqeval_adds_them() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"], ["O"]]
    said = [["B-PER", "I-PER", "O", "B-PER"], ["I-LOC", "B-LOC", "O"], ["O"]]
    logits = np.stack([np.eye(5)[[NAMES.index(tag) for tag in (*row, *["O"] * (4 - len(row)))]] for row in said])
    truths = [Tagged(tuple(row), tuple(range(len(row)))) for row in truth]
    counts = ENTITY_F1.score({"logits": logits}, {}, truths, MODEL)
    assert ENTITY_F1.value(counts) == pytest.approx(f1_score(truth, said))
    weights = np.array([[1.0, 0, 0], [2, 1, 0]])
    twice = f1_score([truth[0], truth[0], truth[1]], [said[0], said[0], said[1]])
    assert ENTITY_F1.aggregate(counts, weights).tolist() == pytest.approx([f1_score(truth[:1], said[:1]), twice])
    assert ENTITY_F1.value(counts[2:]) == 0, "without any entity there is no F1 to have"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ["a", "b"]}, "row 2 has no column for tags: wanted tags or ner_tags"),
        ({"tokens": ["a", "b"], "tags": ["O", "B-ORG"]}, r"row 2: the model knows no tag 'B-ORG'; it knows 0 \(O\), 1"),
        ({"tokens": ["a", "b"], "tags": [0, 5]}, "the model knows no tag 5"),
        ({"tokens": ["a", "b"], "tags": [0, -1]}, "the model knows no tag -1"),
        ({"tokens": ["a", "b"], "tags": [0, True]}, "the model knows no tag True"),
        ({"tokens": ["a", "b"], "tags": 3}, "row 2: tags should be a list of tags, and is 3"),
        ({"tokens": ["a", "bc"], "tags": ["O"]}, r"row 2 has 1 tags, and 2 words, 3 tokens, 5 tokens with"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "row 2: tokens should be a list of words"),
    ],
)
def test_rows_that_cannot_be_judged(folder: Path, values: dict[str, Any], message: str) -> None:
    pre = Preprocessor.open(folder, MODEL)
    with pytest.raises(BadInput, match=message):
        ENTITY_F1.truths(rows_of({"tokens": ["ab"], "tags": ["O"]}, values), pre, MODEL)


def test_a_file_is_tagged_one_way(folder: Path) -> None:
    """A row with a tag too many is no row of tokens, though it may have as many."""
    pre = Preprocessor.open(folder, MODEL)
    rows = rows_of({"text": "abc d", "tags": [0, 0]}, {"text": "ab c", "tags": [0, 0, 0]})
    with pytest.raises(BadInput, match="row 2 has 3 tags, and 2 words, 3 tokens"):
        ENTITY_F1.truths(rows, pre, MODEL)


def test_the_usual_metric_is_that_of_the_tags() -> None:
    task = get_task("token-classification")
    assert task.metric(None, MODEL) is ENTITY_F1
    assert task.metric("accuracy", MODEL) is WORD_ACCURACY
    kinds = {"labels": ["NOUN", "VERB"]}
    assert task.metric(None, kinds) is WORD_ACCURACY
    with pytest.raises(
        BadInput, match=r"f1 cannot be measured here: entities need tags such as O, B-PER .* NOUN, VERB"
    ):
        task.metric("f1", kinds)
    with pytest.raises(BadInput, match=r"f1 cannot be measured here: .*this model's are unnamed"):
        task.metric(None, {})


def test_without_seqeval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(MissingPiece, match="F1 of entities needs the package seqeval") as found:
        ENTITY_F1.score({"logits": np.zeros((1, 1, 5))}, {}, [Tagged(("O",), (0,))], MODEL)
    assert 'pip install "ml-opt[metrics]"' in found.value.hint
