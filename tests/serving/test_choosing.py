"""Which variant is served where none was named: by this machine's verdict, by another's, or the most exact."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import stores
from serving import artifacts
from serving.test_app import call

pytest.importorskip("starlette")

from optimizer.environment import cpu_facts, describe
from optimizer.errors import BadInput, UnknownName
from optimizer.serving import choosing
from optimizer.serving.app import build_app
from optimizer.serving.choosing import chosen
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store
from optimizer.types import Kind

INT8 = {"quantized": {"total": 4}}


def add(store: Store, variant: str, facts: dict[str, Any] | None = None, kind: Kind = Kind.ONNX, **model: Any) -> None:
    with store.scratch() as scratch:
        (scratch.path / "model.onnx").write_bytes(variant.encode())
        key = variant.encode().hex().ljust(64, "0")
        stores.commit(store, scratch, "m", {"digest": "s"}, variant, key, kind=kind, facts=facts or {}, model=model)


def judge(store: Store, best: str, *candidates: tuple[str, str, str | None], **cpu: Any) -> None:
    """Keep a verdict as ``ml-opt optimize`` does; of this machine, unless ``cpu`` says another."""
    environment = json.loads(json.dumps(describe()))
    environment["cpu"].update(cpu)
    rows = [{"ref": f"m@1:{variant}", "provider": where, "outcome": how} for variant, where, how in candidates]
    document = {"best": f"m@1:{best}", "provider": "cpu", "created": "2026-11-20T10:00:00+00:00",
                "environment": environment, "candidates": rows}  # fmt: skip
    (store.version_folder("m", 1) / "verdict.json").write_text(json.dumps(document))
    store.set_alias("best", f"m@1:{best}")


def picked(store: Store, text: str = "m@best", provider: str = "auto") -> tuple[str, str, str]:
    choice = chosen(store, text, provider)
    return choice.artifact.variant, choice.provider, choice.why


@pytest.fixture
def three(store: Store) -> Store:
    add(store, "fp32", {"ops": {"MatMul": 9}})
    add(store, "fp32-ort", {"ops": {"Attention": 2}})
    add(store, "int8-dynamic", INT8)
    return store


@pytest.mark.parametrize("text", ["m@best", "m", "m@1"])
def test_the_verdict_of_this_processor_is_followed(three: Store, text: str) -> None:
    judge(three, "int8-dynamic", ("fp32-ort", "cpu", "PASS"), ("int8-dynamic", "cpu", "PASS"))
    variant, provider, why = picked(three, text)
    assert (variant, provider) == ("int8-dynamic", "cpu")
    assert why == "the best by the verdict of 2026-11-20, on this processor"
    assert picked(three, "m:fp32") == ("fp32", "", "")  # who names one gets it


def test_a_verdict_from_elsewhere_says_what_is_right_and_not_what_is_fast(
    three: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {**cpu_facts(), "features": ["avx2"]}
    monkeypatch.setattr(choosing, "cpu_facts", lambda: facts)
    judge(three, "int8-dynamic", ("int8-dynamic", "cpu", "PASS"), ("fp32-ort", "cpu", "PASS"), model="A Far CPU")
    variant, _, why = picked(three)
    assert variant == "fp32-ort"
    assert "on A Far CPU" in why
    facts["features"] = ["avx2", "avx512_vnni"]
    assert picked(three)[0] == "int8-dynamic"
    # What was right elsewhere only by a provider that is not here is not taken.
    judge(three, "int8-dynamic", ("int8-dynamic", "cuda", "PASS"), model="A Far CPU")
    monkeypatch.setattr(choosing, "_works_here", lambda provider: provider == "cpu")
    assert picked(three)[0] == "fp32-ort"


def test_without_a_verdict_nothing_coarser_is_taken_than_there_is(three: Store) -> None:
    add(three, "engine", kind=Kind.ENGINE)
    add(three, "for-gpu", prefers="cuda")
    variant, provider, why = picked(three, "m@best")
    assert (variant, provider) == ("fp32-ort", "")  # the fused one of the two
    assert why.startswith("the most exact that runs here")
    assert "engine is made for one device" in why
    assert "cuda does not work here, which for-gpu is made for" in why


def test_the_alias_may_be_somebodys_own(three: Store) -> None:
    three.set_alias("best", "m@1:int8-dynamic")
    assert picked(three) == ("int8-dynamic", "", "")
    three.set_alias("prod", "m@1:fp32")
    assert picked(three, "m@prod") == ("fp32", "", "")


def test_what_cannot_be_chosen(store: Store) -> None:
    for variant in ("one", "two"):
        add(store, variant, kind=Kind.ENGINE)
    with pytest.raises(BadInput, match="nothing of m runs here"):
        chosen(store, "m")
    with pytest.raises(UnknownName):
        chosen(store, "m@nothing")
    with pytest.raises(UnknownName):
        chosen(store, "nobody@best")


def test_a_damaged_verdict_is_none(three: Store) -> None:
    for text in ("{", "[]", '{"candidates": [1, {}]}', '{"candidates": [{"outcome": "PASS"}], "environment": 3}'):
        (three.version_folder("m", 1) / "verdict.json").write_text(text)
        assert picked(three)[0] == "fp32-ort"


def test_the_choice_is_said_wherever_one_looks(store: Store) -> None:
    artifacts.put(store, "classes", variant="fp32")
    artifacts.put(store, "classes", variant="other")

    async def scene() -> tuple[Any, Any]:
        settings, metrics = Settings(threads=1), Metrics()
        models = Repository(store, settings, metrics)
        app = build_app(State(settings, models, metrics))
        await models.start(["classes@best"])
        try:
            found = [await call(app, "GET", path) for path in ("/v2/models/classes", "/health")]
        finally:
            await models.close()
        return tuple(json.loads(content) for _, content, _ in found)

    about, health = asyncio.run(scene())
    assert about["parameters"]["ref"] == "classes@1:fp32"
    assert about["parameters"]["why"].startswith("the most exact")
    assert health["models"][0]["ref"] == "classes@1:fp32"
    assert health["models"][0]["why"] == about["parameters"]["why"]
