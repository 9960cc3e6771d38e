"""Text into tokens and back: as transformers does, and never half a character."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.generating.tokens import TextTokenizer

TEXT = "def naïve(größe): # 日本語 🙂👩‍👩‍👧 – ½ \n\treturn '\u0301'"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return decoder(request.param, size="tiny")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the manner of Llama 2: ▁ for blanks, and bytes for what it has no token for."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁hello", "▁world", "a", "b", "lo"]
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("sentencepiece")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), TextTokenizer(folder)
    for text in (TEXT, "", " ", "<|begin_of_text|>twice", "class A:\n    pass"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_begin_token_is_there_once_or_never(tmp_path: Path, wanted: bool) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(decoder("llama", size="tiny") / name, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_bos_token": wanted}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert TextTokenizer(tmp_path).encode("x").count(0) == int(wanted)


def pieces(tokenizer: TextTokenizer, prompt: list[int], tokens: list[int]) -> list[str]:
    text = tokenizer.after(prompt)
    return [*(text.add([token]) for token in tokens), text.end()]


def test_pieces_are_the_whole_and_never_half_a_character(folder: Path) -> None:
    tokenizer = TextTokenizer(folder)
    tokens = tokenizer.encode(TEXT)
    for cut in range(len(tokens)):
        got = pieces(tokenizer, tokens[:cut], tokens[cut:])
        # A prompt that was cut within a character has its half of it said already.
        before = tokenizer.decode(tokens[:cut])
        if before.endswith("\ufffd"):
            continue
        assert "".join(got) == TEXT[len(before) :]
        assert not any("\ufffd" in piece for piece in got)


def test_any_tokens_are_said_as_they_are_decoded(folder: Path) -> None:
    """Bytes that never become a character too; at the end at the latest."""
    tokenizer, dice = TextTokenizer(folder), random.Random(0)
    prompt = tokenizer.encode("def f(")
    for _ in range(100):
        tokens = [dice.randrange(3, 300) for _ in range(40)]
        whole = tokenizer.decode(prompt + tokens)[len(tokenizer.decode(prompt)) :]
        got = pieces(tokenizer, prompt, tokens)
        assert "".join(got) == whole


def test_blanks_between_prompt_and_answer_stay(sentencepiece: Path) -> None:
    tokenizer = TextTokenizer(sentencepiece)
    ids = {name: n for n, name in enumerate(["▁", "▁hello", "▁world", "a", "b", "lo"], 259)}
    euro = [3 + byte for byte in "€".encode()]
    got = pieces(tokenizer, [1, ids["▁hello"]], [ids["▁world"], *euro, ids["▁"], ids["a"]])
    assert "".join(got) == " world€ a"
    assert not any("\ufffd" in piece for piece in got)
    assert got[1:4] == ["", "", "€"]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="not a tokenizer"):
        TextTokenizer(tmp_path)
