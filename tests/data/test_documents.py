"""Documents in tokens, and windows that score each of them once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.decoders import decoder
from optimizer.data.documents import Answers, read_documents, read_pairs, windows
from optimizer.errors import BadInput, Damaged


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 16, 50])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 7), (8, 1), (2, 1), (64, 32)])
def test_every_token_but_the_first_is_scored_once_and_has_what_was_promised(
    length: int, window: int, stride: int
) -> None:
    scored: list[int] = []
    for each in windows(length, window, stride):
        assert 0 < each.end - each.begin <= window
        for token in range(each.first, each.end):
            scored.append(token)
            assert token - each.begin >= min(token, window - stride)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_windows_that_leave_tokens_out_are_refused(stride: int) -> None:
    with pytest.raises(BadInput, match="stride"):
        list(windows(20, 8, stride))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return decoder(request.param, size="tiny")


def rows(path: Path, *texts: object, column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def test_tokens_are_those_of_transformers_with_the_begin_token_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    found = read_documents(rows(tmp_path / "a.jsonl", "def add(a, b):\n", "x" * 2000), folder)
    wanted = AutoTokenizer.from_pretrained(folder)(["def add(a, b):\n", "x" * 2000], truncation=False).input_ids
    assert [list(each.tokens) for each in found] == wanted
    assert found[1].name.endswith("a.jsonl, row 2")


def test_texts_of_another_column_and_a_limit(folder: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", "one two", "three four", column="body")
    assert len(read_documents(path, folder, {"text": "body"}, limit=1)) == 1
    with pytest.raises(BadInput, match="no column for text"):
        read_documents(path, folder)


def test_what_is_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 2: text should be a text"):
        read_documents(rows(tmp_path / "a.jsonl", "one two", 3), folder)
    with pytest.raises(BadInput, match="two tokens"):
        read_documents(rows(tmp_path / "b.jsonl", ""), folder)


def test_a_folder_without_a_tokenizer_and_one_that_is_damaged(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", "one two")
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        read_documents(data, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(Damaged, match="cannot be read"):
        read_documents(data, tmp_path)


def test_pairs_are_a_prompt_as_it_is_read_and_an_answer_as_it_is_written(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = decoder("llama", size="tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "def add(a, b):", "summary": "adds two"}) + "\n")
    (found,) = read_pairs(path, folder, Answers((7, 8), 1, 64, 64))
    assert list(found.read) == tokenizer("def add(a, b):").input_ids
    assert list(found.tokens) == [7, 8, *tokenizer("adds two", add_special_tokens=False).input_ids, 1]
    assert (found.first, found.scored) == (2, len(found.tokens) - 2)
    (whole,) = found.windows(2, 1)
    assert (whole.begin, whole.end, whole.first) == (0, len(found.tokens), 2)
    (endless,) = read_pairs(path, folder, Answers((7,), None, 64, 64))
    assert endless.tokens == (7, *found.tokens[2:-1])


@pytest.mark.parametrize(
    ("row", "answers", "said"),
    [
        ({"text": "a"}, Answers((7,), 1, 9, 9), "no column for target"),
        ({"text": "a", "target": 3}, Answers((7,), 1, 9, 9), "target should be a text"),
        ({"text": "a", "target": ""}, Answers((7,), None, 9, 9), "its answer has no token"),
        ({"text": "x y z a b c", "target": "a"}, Answers((7,), 1, 3, 9), "the model takes 3"),
        ({"text": "a", "target": "x y z a b c"}, Answers((7,), 1, 9, 3), "its answer has"),
    ],
)
def test_a_pair_that_is_none_is_refused(row: dict[str, object], answers: Answers, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=said):
        read_pairs(path, decoder("llama", size="tiny"), answers)
