"""Answers out of a text: torchmetrics' SQuAD on a real model, and where an answer may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import phrases, tiny_bert

from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.errors import BadInput
from optimizer.task import get_task
from optimizer.tasks._squad import ANSWER_F1, EXACT_MATCH, Asked, exact, normalized, overlap

INPUTS = [
    {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
    for name in ("input_ids", "attention_mask", "token_type_ids")
]
MODEL: dict[str, Any] = {"task": "question-answering", "inputs": INPUTS, "max_length": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("reader") / "reader", "BertForQuestionAnswering")


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(Path("f.jsonl"), number, value) for number, value in enumerate(values, 1)]


def test_it_is_torchmetrics_number_on_a_real_model(folder: Path) -> None:
    """Spans by a plain loop over the tokens of transformers, scores by torchmetrics."""
    import torch
    from torchmetrics.functional.text import squad
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    drawn = np.random.default_rng(0)
    values, said = [], []
    for words in phrases(40, 1, longest=9):
        question, context = "q a", " ".join(words)
        encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt", truncation=True,
                            max_length=32)  # fmt: skip
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            out = model(**encoded)
        start, end = out.start_logits[0], out.end_logits[0]
        own = [place for place, text in enumerate(encoded.sequence_ids()) if text == 1]
        spans = [(float(start[i] + end[j]), i, j) for i in own for j in own if i <= j < i + 30]
        _, first, last = max(spans)
        said.append(context[offsets[first][0] : offsets[last][1]])
        chosen = sorted(drawn.choice(len(words), 2))
        answers = [" ".join(words[chosen[0] : chosen[1] + 1]), words[0]]
        if drawn.random() < 0.4:
            answers = [f"The {said[-1]}."]
        values.append({"question": question, "context": context, "answers": {"text": answers, "answer_start": [0, 0]}})
    rows = rows_of(*values)
    pre = Preprocessor.open(folder, MODEL)
    truths = ANSWER_F1.truths(rows, pre, MODEL)
    feeds = pre.feeds(rows)
    with torch.inference_mode():
        out = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    outputs = {"start_logits": out.start_logits.numpy(), "end_logits": out.end_logits.numpy()}
    theirs = squad(
        [{"prediction_text": text, "id": str(place)} for place, text in enumerate(said)],
        [{"answers": value["answers"], "id": str(place)} for place, value in enumerate(values)],
    )
    ours = [metric.value(metric.score(outputs, feeds, truths, MODEL)) for metric in (EXACT_MATCH, ANSWER_F1)]
    assert ours == pytest.approx([theirs["exact_match"].item() / 100, theirs["f1"].item() / 100], abs=1e-6)
    assert 0.2 < ours[0] < ours[1] < 1


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("The  Cat!", "cat"),
        ("a cat sat", "cat sat on"),
        ("", "x"),
        ("the", "a"),
        ("x y x", "x x z"),
        ("an-ant", "anant"),
    ],
)
def test_two_answers_as_torchmetrics_compares_them(said: str, right: str) -> None:
    from torchmetrics.functional.text import squad

    theirs = squad(
        [{"prediction_text": said, "id": "1"}], [{"answers": {"text": [right], "answer_start": [0]}, "id": "1"}]
    )
    assert exact(said, right) == theirs["exact_match"].item() / 100
    assert overlap(said, right) == pytest.approx(theirs["f1"].item() / 100)
    assert normalized("  The Cat, an  Ant. ") == "cat ant"


def test_answers_in_every_form(folder: Path) -> None:
    pre = Preprocessor.open(folder, MODEL)
    asked = {"question": "q", "context": "ab c"}
    for given in ({"text": ["ab"], "answer_start": [0]}, ["ab"], "ab", np.array(["ab"]), {"text": np.array(["ab"])}):
        (truth,) = ANSWER_F1.truths(rows_of({**asked, "answers": given}), pre, MODEL)
        # [CLS] q [SEP] a ##b c [SEP]
        assert truth == Asked("ab c", ((3, 0, 1), (4, 1, 2), (5, 3, 4)), ("ab",), False)
    assert ANSWER_F1.truths(rows_of({**asked, "answer": "ab"}), pre, MODEL)[0].answers == ("ab",)
    (kept,) = ANSWER_F1.truths(rows_of({**asked, "answers": ["the", "ab"]}), pre, MODEL)
    assert kept.answers == ("ab",)
    (bare,) = ANSWER_F1.truths(rows_of({**asked, "answers": ["the"]}), pre, MODEL)
    assert (bare.answers, bare.may_be_none) == (("the",), False)


def logits(*places: tuple[int, int], tokens: int = 7) -> dict[str, Any]:
    """Outputs that point from one token to another, a row each."""
    start, end = np.zeros((2, len(places), tokens), np.float32)
    for row, (first, last) in enumerate(places):
        start[row, first] = end[row, last] = 5
    return {"start_logits": start, "end_logits": end}


def test_a_question_without_an_answer(folder: Path) -> None:
    pre = Preprocessor.open(folder, MODEL)
    asked = {"question": "q", "context": "ab c"}
    rows = rows_of({**asked, "answers": {"text": [], "answer_start": []}}, {**asked, "answers": "ab"})
    truths = ANSWER_F1.truths(rows, pre, MODEL)
    assert [truth.may_be_none for truth in truths] == [True, True]
    at_first = logits((0, 0), (0, 0))
    assert EXACT_MATCH.score(at_first, {}, truths, MODEL).tolist() == [1, 0]
    assert EXACT_MATCH.score(logits((3, 4), (3, 4)), {}, truths, MODEL).tolist() == [0, 1]
    # Where every question has an answer, "none" is no answer, and the next likeliest counts.
    only = ANSWER_F1.truths(rows[1:], pre, MODEL)
    torn = logits((0, 0))
    torn["start_logits"][0, 3] = torn["end_logits"][0, 4] = 4
    assert EXACT_MATCH.score(torn, {}, only, MODEL).tolist() == [1]
    assert EXACT_MATCH.score(torn, {}, truths[1:], MODEL).tolist() == [0]
    broken = logits((0, 0), (0, 0))
    broken["end_logits"][0, 6] = np.nan
    assert EXACT_MATCH.score(broken, {}, truths, MODEL).tolist() == [0, 0], "NaN is no answer"


def test_an_answer_is_a_span_of_the_context_and_not_too_long() -> None:
    context = " ".join("abcdefgh"[place % 8] for place in range(40))
    spans = tuple((place + 3, 2 * place, 2 * place + 1) for place in range(40))
    asked = Asked(context, spans, ("x",), False)

    def said(start: int, end: int) -> float:
        truth = Asked(context, spans, (context[2 * (start - 3) : 2 * (end - 3) + 1],), False)
        return float(EXACT_MATCH.score(logits((start, end), tokens=44), {}, [truth], MODEL)[0])

    assert said(3, 32) == 1, "30 tokens are allowed"
    assert said(3, 33) == 0, "31 are not"
    backwards = EXACT_MATCH.score(logits((10, 5), tokens=44), {}, [asked], MODEL)
    assert backwards.tolist() == [0]
    left = np.zeros((1, 50), int)
    left[0, 6:] = 1
    moved = logits((11, 12), tokens=50)
    truth = Asked(context, spans, (context[4:7],), False)
    assert EXACT_MATCH.score(moved, {"attention_mask": left}, [truth], MODEL).tolist() == [1], "padding on the left"
    assert ANSWER_F1.score(logits((1, 1)), {}, [Asked("", (), ("x",), False)], MODEL).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "row 1 has no column for answers: wanted answers or answer, found question, context"),
        ({"answers": 3}, "row 1: answers should be"),
        ({"answers": {"start": [0]}}, "row 1: answers should be"),
        ({"answers": ["x", None]}, "row 1: answers should be"),
        ({"answers": []}, "no row has an answer"),
    ],
)
def test_rows_that_cannot_be_judged(folder: Path, values: dict[str, Any], message: str) -> None:
    pre = Preprocessor.open(folder, MODEL)
    with pytest.raises(BadInput, match=message):
        ANSWER_F1.truths(rows_of({"question": "q", "context": "ab", **values}), pre, MODEL)


def test_arrays_have_no_text(folder: Path) -> None:
    pre = Preprocessor.open(folder, MODEL)
    ids = {name: np.ones(4, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with pytest.raises(BadInput, match="where a token stands in a text"):
        ANSWER_F1.truths(rows_of({**ids, "answers": "x"}), pre, MODEL)


def test_both_are_the_tasks() -> None:
    task = get_task("question-answering")
    assert task.metric(None, {}) is task.metric("f1", {}) is ANSWER_F1
    assert task.metric("exact-match", {}) is EXACT_MATCH
    assert EXACT_MATCH.binary
    assert not ANSWER_F1.binary
