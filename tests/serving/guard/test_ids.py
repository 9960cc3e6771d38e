"""Token ids in place of a text: the settings for personal data hold for them as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from served_texts import put_text
from serving import artifacts
from serving.test_app import call
from serving.test_why import play
from tokenizers import Tokenizer, decoders

from optimizer.generating.tokens import TextTokenizer
from optimizer.serving.guard.doorkeeper import Doorkeeper
from optimizer.serving.guard.guarding import Guarding
from optimizer.serving.guard.keys import KeyFile
from optimizer.serving.guard.screening import PrivacySettings, Screen
from optimizer.serving.problems import Problem
from optimizer.serving.state import State
from optimizer.store import Store

ADDRESS, HONEST = "write to ada.b@ex.org", "a cab, a bad cab. a fed bee"
#: What the letters' own tokenizer does not know.
MARKS = ["@", ".", ",", "-"]


def guarding(prompts: str) -> Guarding:
    screen = Screen(usual=PrivacySettings.from_mapping({"prompts": prompts, "kinds": ["email"]}))
    return Guarding(Doorkeeper(), screen)


@pytest.fixture
def vectors(store: Store, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """A model of vectors whose tokenizer cuts at every mark, as BERT's does; its tokenizer."""
    write, vocabulary = artifacts.write_tokenizer, artifacts.VOCABULARY
    monkeypatch.setattr(artifacts, "VOCABULARY", [*vocabulary, *MARKS])

    def written(folder: Path) -> None:
        write(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.save(str(folder / "tokenizer.json"))

    monkeypatch.setattr(artifacts, "write_tokenizer", written)
    artifact = artifacts.put(store, "vectors", "last_hidden_state")
    return Tokenizer.from_file(str(artifact.path / "tokenizer.json"))


def asked(store: Store, ref: str, guard: Any, path: str, *documents: Any) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []

    async def scene(app: Any, state: State) -> None:
        state.guard = guard
        for document in documents:
            status, body, _ = await call(app, "POST", path, json.dumps(document).encode())
            found.append((status, body.decode()))

    play(store.root, scene, (ref,))
    return found


@pytest.fixture(autouse=True)
def no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "keys.json"))
    assert not KeyFile(None).read().keys


@pytest.mark.parametrize(
    ("prompts", "text", "status", "said"),
    [
        ("off", ADDRESS, 200, "embedding"),
        ("reject", ADDRESS, 400, "input[0] holds personal data (email), which vectors is not given"),
        ("reject", HONEST, 200, "embedding"),
        ("redact", HONEST, 400, "input[0] has token ids, out of which nothing can be redacted for vectors"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_ids_of_embeddings(
    vectors: Tokenizer, store: Store, prompts: str, text: str, status: int, said: str, several: bool
) -> None:
    ids = vectors.encode(text).ids
    assert 1 not in ids, "the tokenizer knows every letter of it"
    (found,) = asked(store, "vectors", guarding(prompts), "/v1/embeddings", {"input": [ids] if several else ids})
    assert found[0] == status
    assert said in found[1]
    assert "ada" not in found[1]


def test_ids_that_are_none_of_the_models_are_said_to_be_so(vectors: Tokenizer, store: Store) -> None:
    (found,) = asked(store, "vectors", guarding("reject"), "/v1/embeddings", {"input": [5, -7]})
    assert found[0] == 400
    assert "-7 is no token of this model" in found[1]


@pytest.mark.parametrize("prompts", ["off", "reject", "redact"])
def test_ids_of_a_prompt(store: Store, llama_generator: Path, prompts: str) -> None:
    put_text(store, llama_generator, "plain")
    tokenizer = TextTokenizer(llama_generator)

    def completion(text: str | Sequence[str]) -> Any:
        given = tokenizer.encode(text) if isinstance(text, str) else [tokenizer.encode(each) for each in text]
        return {"prompt": given, "max_tokens": 2}

    bodies = [completion(text) for text in (ADDRESS, [HONEST, ADDRESS], HONEST)]
    address, several, honest = asked(store, "plain", guarding(prompts), "/v1/completions", *bodies)
    statuses = (address[0], several[0], honest[0])
    assert statuses == {"off": (200, 200, 200), "reject": (400, 400, 200), "redact": (400, 400, 400)}[prompts]
    if prompts == "reject":
        assert "prompt holds personal data (email), which plain is not given" in address[1]
    if prompts == "redact":
        assert "send the text" in honest[1]


def test_nobody_decodes_what_nobody_looks_at() -> None:
    def never() -> str:
        raise AssertionError("it was decoded")

    Screen().tokens(never, "m", "p")
    redacting = Screen(usual=PrivacySettings.from_mapping({"prompts": "redact"}))
    with pytest.raises(Problem, match="send the text"):
        redacting.tokens(never, "m", "p")


def test_numbers_in_groups_are_found_with_and_without_the_spaces_beside_marks() -> None:
    screen = Screen(usual=PrivacySettings.from_mapping({"prompts": "reject"}))
    for text in (
        "at 123 - 45 - 6789 now",
        "from 198. 51. 100. 7 on",
        "pay 4111 1111 1111 1111",
        "call +1 415 555 2671",
    ):
        with pytest.raises(Problem, match="personal data"):
            screen.tokens(lambda text=text: text, "m", "p")  # type: ignore[misc]
    screen.tokens(lambda: "version 1. 2. 3 of 2024 - 01 - 31 , and nothing else", "m", "p")
