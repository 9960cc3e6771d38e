"""What an encoder-decoder writes is a text of its own; what a decoder writes goes on from its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from optimizer.generating.asked import check_asked
from optimizer.generating.config import DecoderConfig
from optimizer.generating.tokens import TextTokenizer
from optimizer.generating.writing import Writing
from optimizer.generator import Finish, Generator, Piece, Sampling


class Says:
    """Writes the same whatever is asked."""

    context, vocabulary, end_tokens = 8, 4, ()

    def __init__(self, answers: int, tokens: Sequence[int]) -> None:
        self.answers, self.tokens = answers, tokens
        self.facts: dict[str, Any] = {}

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        tokens = self.tokens

        class Text:
            def __iter__(self) -> Any:
                yield Piece(tuple(tokens), Finish.STOP)

            def cancel(self) -> None: ...

        return Text()

    def score(self, tokens: Any, read: Any = None) -> Any: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("answers", "text"), [(0, " a house"), (4, "a house")])
def test_an_answer_begins_without_the_space_that_joins_a_text_to_its_prompt(
    answers: int, text: str, tmp_path: Path
) -> None:
    words = {"<unk>": 0, "▁see": 1, "▁a": 2, "▁house": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.save(str(tmp_path / "tokenizer.json"))
    generator = Says(answers, (2, 3))
    assert isinstance(generator, Generator)
    assert "".join(Writing(generator, TextTokenizer(tmp_path), [1], Sampling())) == text


def test_room_is_what_a_prompt_leaves_or_an_answer_of_its_own() -> None:
    given = (Path("m"), Path("m/model.onnx"), "t5", 8, 4, (), 1, 1, 8, {}, {})
    assert DecoderConfig(*given).room(5) == 3
    assert DecoderConfig(*given, encoder=Path("m/encoder.onnx"), answers=6).room(5) == 6
    check_asked([1] * 8, Sampling(max_tokens=6), 8, 4, answers=6)
