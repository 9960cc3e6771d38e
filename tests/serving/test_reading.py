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
from optimizer.store import Store

NAMES = ["O", "B-PER", "I-PER", "LOC", "I-LOC"]
#: Name in the store → the class of its head.
HEADS = {"tagger": "BertForTokenClassification"}
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
