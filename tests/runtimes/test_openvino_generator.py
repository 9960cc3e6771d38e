"""What OpenVINO has of its own when it writes text; what it shares with the others is in test_generators.py."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
import pytest
from generators import build_llama, greedy, prompts
from processor import VNNI

import optimizer
from benchmarks.decoders import decoder
from optimizer.errors import BadInput, GateFailed, MissingPiece
from optimizer.generating.golden import reach
from optimizer.generator import Finish, Generator, GeneratorOptions, Sampling, open_generator
from optimizer.graph.head import choose_rows
from optimizer.runtimes import _openvino_decoder
from optimizer.store import Store

NATIVE = "openvino-native"


def opened(folder: Path, provider: str = NATIVE, slots: int = 0) -> Generator:
    return open_generator(folder, GeneratorOptions(provider=provider, threads=1, slots=slots))


def written(generator: Generator, asked: list[list[int]], new: int) -> list[list[int]]:
    """All begun at once."""
    begun = [generator.submit(prompt, Sampling(max_tokens=new)) for prompt in asked]
    return [[token for piece in each for token in piece.tokens] for each in begun]


@pytest.fixture(scope="module", params=["int4", "int8"])
def rounded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tiny Llama with weights in blocks, and their type; in int4 tokens are looked up in the head's own."""
    pytest.importorskip("onnxruntime_genai")
    folder = tmp_path_factory.mktemp("rounded")
    said = ("block_size=32", "algo_config=default", f"shared_embeddings={str(request.param == 'int4').lower()}")
    return build_llama(folder, request.param, *said), {"int4": "u4", "int8": "u8"}[request.param]


def test_weights_in_blocks_say_what_they_say_in_onnx_runtime(
    rounded: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations are rounded in the same blocks too, so that both are the same but where a number lies between two
    steps, from which on a text is another; and a graph that was compiled otherwise is refused. Without VNNI, OpenVINO
    leaves activations in float.
    """
    folder, stored = rounded
    rows = np.array([each[:5] for each in prompts(30) if len(each) >= 5])
    theirs, ours = opened(folder, "cpu"), opened(folder)
    try:
        difference = np.abs(ours.score(rows) - theirs.score(rows)).max(-1)
        assert np.median(difference) < (1e-4 if VNNI else 0.1)
        assert difference.max() < 0.3
        assert written(ours, prompts(3), 5) == [text[:5] for text in written(ours, prompts(3), 20)]
        assert ours.facts["products"] == {stored: 11}
    finally:
        ours.close()
        theirs.close()
    monkeypatch.setattr("optimizer.runtimes.openvino_generator._INTEGERS", ("i2",))
    with pytest.raises(GateFailed, match=r"11 products of .* and OpenVINO reads 0 so"):
        opened(folder)


@pytest.mark.parametrize(("family", "algorithm"), [("llama", "gptq"), ("gpt2", "gptq_mixed")])
def test_levels_that_gptq_chose_are_read_as_onnx_runtime_reads_them(
    family: Literal["llama", "gpt2"], algorithm: str, tmp_path: Path
) -> None:
    """Built and traced, in 4 bits alone and with others in 8: only what the numbers are is GPTQ's."""
    pytest.importorskip("onnxruntime_genai")
    model = decoder(family, size="tiny")
    made = optimizer.export_genai(
        str(model), name=family, store=Store(tmp_path / "models"), precision="int4", algorithm=algorithm,
        calib=model / "train-sample.jsonl", samples=16,
    ).artifact  # fmt: skip
    assert made.manifest.facts["gptq"]["products"] > 0
    rows = np.array([each[:5] for each in prompts(30) if len(each) >= 5])
    theirs, ours = opened(made.path, "cpu"), opened(made.path)
    try:
        difference = np.abs(ours.score(rows) - theirs.score(rows)).max(-1)
        assert np.median(difference) < (1e-3 if VNNI else 0.1)
        assert difference.max() < 0.3
        by_bits = made.manifest.facts["blocks"]["by_bits"]
        found = ours.facts["products"]
        assert (found.get("u4", 0), found.get("u8", 0)) == (by_bits["4"], by_bits.get("8", 0))
    finally:
        ours.close()
        theirs.close()


def test_the_precision_is_the_one_asked_for(llama_generator: Path) -> None:
    rows, exact = np.array(prompts(12)[11:12]), opened(llama_generator)
    wanted = exact.score(rows)
    exact.close()
    try:
        low = opened(llama_generator, f"{NATIVE}:bf16")
    except MissingPiece as error:
        assert "bf16" in error.message
        return
    difference = np.abs(low.score(rows) - wanted).max()
    low.close()
    assert (low.facts["products"], low.facts["cache"]) == ({"bf16": 11}, "bf16")
    assert 1e-3 < difference < 0.5


def test_keys_and_values_in_8_bits_are_nearly_those_in_float(
    llama_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several pages, which are larger than their tokens by what scales take; alone as beside others."""
    monkeypatch.setattr(_openvino_decoder, "_PAGES", 1)
    rows, asked = np.array([prompts(12)[11] * 20])[:, :100], prompts(12)
    exact, kept = opened(llama_generator), opened(llama_generator, f"{NATIVE}:fp32-kv8")
    try:
        assert (kept.facts["precision"], kept.facts["cache"], kept.facts["products"]) == ("fp32-kv8", "u8", {"f32": 11})
        wanted, found = exact.score(rows).astype(np.float64), kept.score(rows).astype(np.float64)
        assert 1e-4 < np.abs(found - wanted).max() < 0.1
        chances, others = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (wanted, found))
        assert (chances * np.log(chances / others)).sum(-1).mean() < 1e-4
        texts = written(kept, asked, 100)
        assert texts == [written(kept, [prompt], 100)[0] for prompt in asked]
        assert sum(map(list.__eq__, texts, written(exact, asked, 100))) > len(asked) / 2
    finally:
        exact.close()
        kept.close()


@pytest.mark.parametrize(("at_once", "chooses"), [(7, True), (2048, False)])
def test_pages_grow_and_prompts_are_read_in_parts(
    llama_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, chooses: bool
) -> None:
    """Of one text and of many together, whether or not the file's head can be asked for some tokens alone."""
    monkeypatch.setattr(_openvino_decoder, "_PAGES", 1)
    monkeypatch.setattr(_openvino_decoder, "_READ_AT_ONCE", at_once)
    folder = shutil.copytree(llama_generator, tmp_path / "decoder")
    if chooses:
        model = onnx_ir.load(str(folder / "model.onnx"))
        assert choose_rows(model, "logits")
        onnx_ir.save(model, str(folder / "model.onnx"))
    generator, asked = opened(folder), prompts(4)
    try:
        assert written(generator, asked, 50) == [greedy(prompt, 50) for prompt in asked]
        rows = np.array([asked[1] * 20])[:, :100]
        whole, last = generator.score(rows), generator.score(rows[:, :60])
        np.testing.assert_allclose(whole[:, :60], last, atol=1e-4)
    finally:
        generator.close()


def test_beams_in_8_bits_go_on_from_pages_as_they_are(llama_generator: Path) -> None:
    """Scales lie within a page, so that a beam's copy of one says what it said."""
    generator, (prompt, *_) = opened(llama_generator, f"{NATIVE}:fp32-kv8"), prompts(4)[1:]
    try:
        (one,) = written_by_beams(generator, [prompt], 40)
        again = written_by_beams(generator, [prompt] * 3, 40)
    finally:
        generator.close()
    assert again == [one] * 3
    # What is kept in 8 bits is near enough for the first tokens of the search to be those in float.
    assert one[:4] == greedy(prompt, 40, num_beams=4)[:4]


def written_by_beams(generator: Generator, asked: list[list[int]], new: int) -> list[list[int]]:
    begun = [generator.submit(prompt, Sampling(max_tokens=new, num_beams=4)) for prompt in asked]
    return [[token for piece in each for token in piece.tokens] for each in begun]


def test_rows_that_cannot_be_copied_follow_no_beams(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_openvino_decoder.PagedDecoder, "reorder")
    generator = opened(llama_generator)
    try:
        with pytest.raises(BadInput, match="openvino follows no beams"):
            generator.submit([5], Sampling(num_beams=2))
    finally:
        generator.close()


def test_a_cancelled_text_frees_its_row_and_its_pages(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are taken by long texts, and one waits: it begins after the step in which one of them is cancelled."""
    steps, step = threading.Semaphore(0), _openvino_decoder.PagedDecoder.step
    tables: list[set[int]] = []

    def on_leave(rows: Any, tokens: list[int], lengths: list[int]) -> Any:
        steps.acquire()
        logits = step(rows, tokens, lengths)
        used = [page for table in rows._tables for page in table]
        assert len(used) == len(set(used))  # no page has two owners
        tables.append(set(used))
        return logits

    monkeypatch.setattr(_openvino_decoder.PagedDecoder, "step", on_leave)
    generator, prompt = opened(llama_generator, slots=3), prompts(1)[0]
    begun = [generator.submit(prompt, Sampling(max_tokens=100)) for _ in range(3)]
    next(iter(begun[0]))
    waiting = generator.submit(prompt, Sampling(max_tokens=2))
    begun[1].cancel()
    steps.release(2)  # the one under way, and the one that the waiting text is in
    assert [token for piece in waiting for token in piece.tokens] == greedy(prompt, 2)
    steps.release(300)
    assert [list(each)[-1].finish for each in begun] == [Finish.LENGTH, Finish.CANCELLED, Finish.LENGTH]
    generator.close()
    assert max(map(len, tables)) <= 3 * 4  # a context of 128 is four pages, for each of three rows


def changed(folder: Path, out: Path, **attributes: Any) -> Path:
    """The folder with other attributes in its attentions."""
    copied = shutil.copytree(folder, out)
    model = onnx_ir.load(str(copied / "model.onnx"))
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for name, value in attributes.items():
                make = onnx_ir.AttrFloat32 if isinstance(value, float) else onnx_ir.AttrInt64
                node.attributes[name] = make(name, value)
    onnx_ir.save(model, str(copied / "model.onnx"))
    return copied


@pytest.mark.parametrize(
    ("said", "why"), [({"softcap": 30.0}, "softcap"), ({"local_window_size": 16}, "a window of 16 tokens")]
)
def test_attention_that_it_is_not_given_is_refused(
    llama_generator: Path, tmp_path: Path, said: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        opened(changed(llama_generator, tmp_path / "odd", **said))


def test_what_is_computed_in_16_bits_is_held_to_less() -> None:
    """An fp32 file has hardly any difference of its own, and in bf16 a logit of 16 is rounded by a sixteenth."""
    facts = {"parity": {"max_abs": 1e-5}}
    assert reach(facts) == reach(facts, "fp32") == 1e-3
    assert (reach(facts, "fp16"), reach(facts, "bf16")) == (pytest.approx(1 / 32), pytest.approx(1 / 4))
    assert reach({"parity": {"max_abs": 0.5}}, "bf16") == 2.0
    assert reach(facts, "fp32-kv8") == reach(facts, "fp16-kv8") == reach(facts, "bf16-kv8") == reach(facts, "bf16")
