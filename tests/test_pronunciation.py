"""How wrong a pronunciation is, and what is read of the dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pronunciation import _tokenizer, errors, read


def test_errors_are_edits_to_the_nearest_pronunciation_that_is_right() -> None:
    rows = [
        {"known": ["T OW K AH N"]},
        {"known": ["R EH D", "R IY D"]},
        {"known": ["K AE T"]},
        {"known": ["AH"]},
    ]
    found = errors(rows, ["T OW K AH N", "R IY D", "K T S", ""])
    # One left out and one too many; one left out. The second word's other pronunciation is as right.
    assert found == {"phonemes": pytest.approx(3 / 12), "words": 0.5}


def test_a_word_has_all_its_pronunciations_without_stress(tmp_path: Path) -> None:
    path = tmp_path / "words.dict"
    path.write_text(
        "read R EH1 D\nread(2) R IY1 D # the present\nrecord R AH0 K AO1 R D\nrecord(2) R AH1 K AO0 R D\nétude EY1\n",
        encoding="utf-8",
    )
    assert read(path) == {"read": ["R EH D", "R IY D"], "record": ["R AH K AO R D"]}


def test_letters_and_phonemes_are_tokens() -> None:
    tokenizer = _tokenizer({"T", "OW", "K", "AH", "N"})
    assert tokenizer.convert_ids_to_tokens(tokenizer("token").input_ids) == [*"token", "</s>"]
    said = tokenizer("T OW K AH N").input_ids
    assert tokenizer.convert_ids_to_tokens(said) == ["T", "OW", "K", "AH", "N", "</s>"]
    assert tokenizer.decode(said, skip_special_tokens=True) == "T OW K AH N"
