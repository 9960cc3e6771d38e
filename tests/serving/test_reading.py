"""Task routes of models that read, against the pipelines of transformers on the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import Process
from serving.test_openapi import Asked
from tiny import phrases, tiny_bert

import optimizer
from optimizer.serving.problems import Problem
from optimizer.serving.routes.reading import _encoder
from optimizer.serving.served import Served
from optimizer.store import Store

NAMES = ["O", "B-PER", "I-PER", "LOC", "I-LOC"]
#: Name in the store → the class of its head.
HEADS = {"tagger": "BertForTokenClassification", "reader": "BertForQuestionAnswering", "filler": "BertForMaskedLM"}
#: Of unequal lengths; "ß" is no token.
TEXTS = [" ".join(words) for words in phrases(6, 5, longest=6)] + ["a", "Ab cß d. e", "x  y\tz"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("readers")
    more = {"tagger": {"id2label": dict(enumerate(NAMES)), "seed": 3}}
    return {name: tiny_bert(root / name, head, **more.get(name, {})) for name, head in HEADS.items()}


@pytest.fixture(scope="module")
def store(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("read") / "models")
    for name, folder in folders.items():
        optimizer.export_onnx(str(folder), name=name, store=made)
    return made


@pytest.fixture(scope="module")
def asked(store: Store) -> Iterator[Asked]:
    """A server of them all, whose every answer is held to its own OpenAPI document."""
    process = Process([*HEADS, "--store", str(store.root), "--max-queue", "16"])
    assert process.ready
    yield Asked(process)
    process.end()


def near(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same in all but the last digits of scores."""
    assert [{**each, "score": 0} for each in ours] == [{**each, "score": 0} for each in theirs]
    assert [each["score"] for each in ours] == pytest.approx([float(each["score"]) for each in theirs], abs=1e-4)


@pytest.mark.parametrize("ignored", [None, ["PER"], []])
@pytest.mark.parametrize("way", ["simple", "none"])
def test_entities_are_those_of_transformers(
    asked: Asked, folders: dict[str, Path], way: str, ignored: list[str] | None
) -> None:
    import transformers

    theirs = transformers.pipeline("token-classification", str(folders["tagger"]), device="cpu")
    body: dict[str, Any] = {"model": "tagger", "input": TEXTS, "aggregation_strategy": way}
    more = {} if ignored is None else {"ignore_labels": ignored}
    answer = asked(200, "POST", "/v1/ner", {**body, **more})
    assert [each["index"] for each in answer["data"]] == list(range(len(TEXTS)))
    wanted = [theirs(text, aggregation_strategy=way, ignore_labels=ignored) for text in TEXTS]
    for ours, each in zip(answer["data"], wanted, strict=True):
        near(ours["entities"], each)
    kinds = {entity["entity_group" if way == "simple" else "entity"] for each in wanted for entity in each}
    assert len(kinds) >= 2, "random weights that tell nothing apart prove nothing"
    alone = asked(200, "POST", "/v1/ner", {**body, **more, "input": {"text": TEXTS[0]}})
    near(alone["data"][0]["entities"], wanted[0])


def test_entities_stand_where_they_say(asked: Asked) -> None:
    text = "ab cd. ß e"
    (found,) = asked(200, "POST", "/v1/ner", {"input": text, "ignore_labels": [], "aggregation_strategy": "none"})[
        "data"
    ]
    assert [text[each["start"] : each["end"]] for each in found["entities"]] == list("abcd.ße")
    assert [each["word"] for each in found["entities"]] == ["a", "##b", "c", "##d", ".", "ß", "e"]
    assert [each["index"] for each in found["entities"]] == list(range(1, 8))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": {"text": "a", "text_pair": "b"}}, "input should be a text"),
        ({"input": [{"image": ""}]}, "input[0] should be a text"),
        ({"input": []}, "input is empty"),
        ({"input": "a", "aggregation_strategy": "first"}, "simple or none"),
        ({"input": "a", "aggregation_strategy": ["simple"]}, "simple or none"),
        ({"input": "a", "ignore_labels": "O"}, "ignore_labels"),
        ({"input": "a", "truncate": 1}, "truncate"),
        ({"input": "a b " * 20}, "send truncate: true"),
        ({"input": "a\u0000"}, "control character"),
    ],
)
def test_what_cannot_be_tagged_is_refused(asked: Asked, body: dict[str, Any], words: str) -> None:
    answer = asked(400, "POST", "/v1/ner", {"model": "tagger", **body})
    assert words in answer["error"]["message"]


def test_long_texts_are_cut_where_that_is_asked_for(asked: Asked) -> None:
    answer = asked(200, "POST", "/v1/ner", {"input": "a b " * 20, "truncate": True, "ignore_labels": []})
    assert answer["usage"]["prompt_tokens"] == 32
    assert answer["data"][0]["entities"][-1]["end"] <= 60


def test_a_model_of_another_task_is_refused(asked: Asked) -> None:
    for path in ("/v1/classify", "/v1/embeddings"):
        answer = asked(400, "POST", path, {"model": "tagger", "input": "a"})
        assert "token-classification" in answer["error"]["message"]


@pytest.mark.parametrize("privacy", ["redact", "reject"])
def test_texts_are_screened_as_prompts_are(store: Store, tmp_path: Path, privacy: str) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(f'[privacy.models.tagger]\nprompts = "{privacy}"\n')
    process = Process(["tagger", "--store", str(store.root), "--config", str(config)])
    body = {"input": "a 123-45-6789", "ignore_labels": [], "aggregation_strategy": "none"}
    try:
        asked = Asked(process)
        if privacy == "reject":
            assert asked(400, "POST", "/v1/ner", body)["error"]["code"] == "personal_data"
        else:
            words = [each["word"] for each in asked(200, "POST", "/v1/ner", body)["data"][0]["entities"]]
            assert words[0] == "a"
            assert len(words) > 1
            assert not set("123456789") & set("".join(words))
    finally:
        process.end()


#: Of unequal lengths; the longer ones are read in several windows of 32 tokens.
CONTEXTS = [" ".join(words) for words in phrases(5, 11, longest=8)] + [
    " ".join(words) for words in phrases(5, 12, longest=60)
]


def pipelines_answers(folder: Path, question: str, context: str, top: int, longest: int, may_be_none: bool) -> Any:
    """By the rules of the pipeline of transformers 4.57, its steps one by one: windows, shares, spans, words, sums."""
    import numpy as np
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(question, context, truncation="only_second", max_length=32, stride=16,
                        return_overflowing_tokens=True)  # fmt: skip
    answers: list[dict[str, Any]] = []
    nothing = 1_000_000.0
    for place in range(len(encoded["input_ids"])):
        ids = encoded["input_ids"][place]
        own = np.array([text == 1 for text in encoded.sequence_ids(place)])
        desired = own | (np.array(ids) == tokenizer.cls_token_id)
        with torch.inference_mode():
            out = model(torch.tensor([ids]), token_type_ids=torch.tensor([encoded["token_type_ids"][place]]))
        shares = []
        for logits in (out.start_logits[0].double().numpy(), out.end_logits[0].double().numpy()):
            masked = np.where(desired, logits, -10000.0)
            shares.append(np.exp(masked - masked.max()) / np.exp(masked - masked.max()).sum())
        start, end = shares
        nothing = min(nothing, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        table = np.tril(np.triu(np.outer(start, end)), longest - 1)
        for flat in np.argsort(-table, axis=None)[: top * 2 + 10]:
            first, last = np.unravel_index(flat, table.shape)
            if not table[first, last] or not (own[first] and own[last]):
                continue
            words = encoded.token_to_word(place, int(first)), encoded.token_to_word(place, int(last))
            begins = encoded.word_to_chars(place, words[0], sequence_index=1).start
            ends = encoded.word_to_chars(place, words[1], sequence_index=1).end
            said = context[begins:ends]
            same = next((each for each in answers if each["answer"].lower() == said.lower()), None)
            if same is None:
                answers.append({"answer": said, "score": 0.0, "start": begins, "end": ends})
                same = answers[-1]
            same["score"] += float(table[first, last])
    if may_be_none:
        answers.append({"answer": "", "score": nothing, "start": 0, "end": 0})
    return len(encoded["input_ids"]), sorted(answers, key=lambda each: -each["score"])[:top]


@pytest.mark.parametrize(("top", "longest", "may_be_none"), [(1, 15, False), (4, 15, True), (3, 2, False)])
def test_answers_are_those_of_the_pipeline(
    asked: Asked, folders: dict[str, Path], top: int, longest: int, may_be_none: bool
) -> None:
    body = {"model": "reader", "top_k": top, "max_answer_len": longest, "handle_impossible_answer": may_be_none}
    rows = [{"question": "Q a", "context": context} for context in CONTEXTS]
    wanted = [pipelines_answers(folders["reader"], **row, top=top, longest=longest, may_be_none=may_be_none)
              for row in rows]  # fmt: skip
    windows = [count for count, _ in wanted]
    assert min(windows) == 1
    assert max(windows) > 3
    for part in (rows[:5], rows[5:7], *([row] for row in rows[7:])):  # no more windows at once than may wait
        answer = asked(200, "POST", "/v1/answer", {**body, "input": part})
        for ours, row in zip(answer["data"], part, strict=True):
            theirs = wanted[rows.index(row)][1]
            near(ours["answers"], theirs)
            assert {**ours, "answers": 0, "index": 0} == {**ours["answers"][0], "answers": 0, "index": 0}
            assert row["context"][ours["start"] : ours["end"]] == ours["answer"]
    one = asked(200, "POST", "/v1/answer", {**body, **rows[0]})
    near(one["data"][0]["answers"], wanted[0][1])


def test_answers_in_other_case_and_place_are_one(asked: Asked) -> None:
    body = {"question": "q", "context": "ab ab AB ab", "top_k": 50, "max_answer_len": 2}
    (found,) = asked(200, "POST", "/v1/answer", body)["data"]
    assert [each["answer"].lower() for each in found["answers"]].count("ab") == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input should be an object with question and context"),
        ({"question": "a"}, "an object with question and context"),
        ({"input": "a"}, "an object with question and context"),
        ({"input": [{"question": "a", "context": "b", "text": "c"}]}, "input[0] should be"),
        ({"input": {"question": "a", "context": "b"}, "question": "a"}, "in its place"),
        ({"question": " ", "context": "b"}, "question is empty"),
        ({"question": "a", "context": ""}, "context is empty"),
        ({"question": "a", "context": 3}, "context should be a string"),
        ({"question": "a", "context": "b", "top_k": 0}, "top_k"),
        ({"question": "a", "context": "b", "max_answer_len": 1001}, "max_answer_len"),
        ({"question": "a", "context": "b", "handle_impossible_answer": "no"}, "handle_impossible_answer"),
        ({"question": "a " * 14, "context": "b " * 30}, "the question has 14 tokens, and 12 are the most"),
        ({"question": "a", "context": "b " * 3000}, "windows of 32 tokens, and 16 are the most"),
    ],
)
def test_what_cannot_be_answered_is_refused(asked: Asked, body: dict[str, Any], words: str) -> None:
    answer = asked(400, "POST", "/v1/answer", {"model": "reader", **body})
    assert words in answer["error"]["message"]


def test_more_windows_than_may_wait_are_refused(asked: Asked) -> None:
    row = {"question": "a", "context": "b " * 120}
    asked(200, "POST", "/v1/answer", {"input": [row]})
    asked(413, "POST", "/v1/answer", {"input": [row] * 4})


MASKED = ["a b [MASK]", "[MASK]", "ab [MASK] cd. [MASK]", "x [MASK] y z ab cd ef gh"]


@pytest.mark.parametrize("top", [1, 5, 400])
@pytest.mark.parametrize("targets", [None, ["a", "##b", "z"]])
def test_fills_are_those_of_transformers(
    asked: Asked, folders: dict[str, Path], top: int, targets: list[str] | None
) -> None:
    import transformers

    theirs = transformers.pipeline("fill-mask", str(folders["filler"]), device="cpu")
    size = theirs.model.config.vocab_size
    more = {} if targets is None else {"targets": targets}
    body = {"model": "filler", "input": MASKED, "top_k": top, **more}
    answer = asked(200, "POST", "/v1/fill", body)
    for place, (text, ours) in enumerate(zip(MASKED, answer["data"], strict=True)):
        wanted = theirs(text, top_k=min(top, size), targets=targets)
        wanted = wanted if text.count("[MASK]") > 1 else [wanted]
        assert ours["index"] == place
        assert len(ours["masks"]) == len(wanted)
        for mask, each in zip(ours["masks"], wanted, strict=True):
            assert text[mask["start"] : mask["end"]] == "[MASK]"
            near(mask["fills"], each)
    usual = asked(200, "POST", "/v1/fill", {"model": "filler", "input": MASKED[0]})
    assert len(usual["data"][0]["masks"][0]["fills"]) == 5


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": ["[MASK]", "a b"]}, "input[1] has no mask; write [MASK]"),
        ({"input": "a " * 31 + "[MASK]", "truncate": True}, "input[0] has no mask"),
        ({"input": "[MASK] " * 31}, "send truncate: true"),
        ({"input": "[MASK]", "top_k": True}, "top_k"),
        ({"input": "[MASK]", "top_k": 1001}, "top_k"),
        ({"input": ["[MASK] [MASK]", "[MASK]"], "top_k": 1000}, "3 masks with 1000 tokens each are 3000, and 2000"),
        ({"input": "[MASK]", "targets": ["a", "abc"]}, "'abc' is no token of filler"),
        ({"input": "[MASK]", "targets": []}, "targets"),
        ({"input": "[MASK]", "targets": "a"}, "targets"),
        ({"input": {"text": "[MASK]", "image": "a"}}, "should be a text"),
    ],
)
def test_what_cannot_be_filled_is_refused(asked: Asked, body: dict[str, Any], words: str) -> None:
    answer = asked(400, "POST", "/v1/fill", {"model": "filler", **body})
    assert words in answer["error"]["message"]


def test_a_model_that_may_not_tell_of_personal_data_fills_no_mask(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('[privacy.models.filler]\noutputs = "redact"\n')
    process = Process(["filler", "--store", str(store.root), "--config", str(config)])
    try:
        answer = Asked(process)(400, "POST", "/v1/fill", {"input": "[MASK]"})
    finally:
        process.end()
    assert "personal data" in answer["error"]["message"]


def test_a_model_without_its_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(Problem, match="bare has no tokenizer here: its file is gone"):
        _encoder(Served("bare", "1", "bare@1:fp32", reason="its file is gone"))


def test_rows_and_failures_are_counted_as_those_of_v2(asked: Asked) -> None:
    bodies: dict[str, tuple[str, Any]] = {
        "tagger": ("/v1/ner", ["ab", "cd"]),
        "reader": ("/v1/answer", [{"question": "a b", "context": "c d"}] * 2),
        "filler": ("/v1/fill", ["a [MASK]", "[MASK] b"]),
    }

    def counted(model: str) -> tuple[int, int, int]:
        (found,) = asked(200, "GET", f"/v2/models/{model}/stats")["model_stats"]
        ended = found["inference_stats"]
        return found["inference_count"], ended["success"]["count"], ended["fail"]["count"]

    for model, (path, rows) in bodies.items():
        before = counted(model)
        asked(200, "POST", path, {"model": model, "input": rows})
        asked(400, "POST", path, {"model": model, "input": []})
        assert counted(model) == (before[0] + 2, before[1] + 1, before[2] + 1), model


def test_whatever_comes_is_answered_and_never_with_500(asked: Asked) -> None:
    """The bodies of `make conformance`, fewer of them: each of these routes answers some, and refuses others."""
    from benchmarks.serving.fuzz import fuzz_http

    statuses = fuzz_http(asked.address, 300, number=3)
    assert {"200", "400"} <= set(statuses), statuses
    _, metrics, _ = asked.raw("GET", "/metrics")
    for model, path in (("tagger", "/v1/ner"), ("reader", "/v1/answer"), ("filler", "/v1/fill")):
        labels = f'endpoint="{path}",model="{model}",status="200",version="1"'
        assert f"ml_requests_total{{{labels}}}" in metrics.decode(), f"no body for {path} was one that can be answered"
