"""Every class that is left to onnxruntime-genai's builder answers as PyTorch does; its ways stay its own."""

from __future__ import annotations

import logging
import shutil
import sys
import types
from pathlib import Path

import pytest

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.exporting import genai_builder
from optimizer.exporting.genai_builder import KNOWN, Build, build, knows
from optimizer.exporting.genai_golden import load_tokenizer, parity, write_on
from optimizer.hf import load_model, read_config
from optimizer.types import Precision

pytest.importorskip("onnxruntime_genai")

MORE = {"Gemma": {"head_dim": 16}, "Qwen3": {"head_dim": 16}, "HunYuanDenseV1": {"head_dim": 16}}
FP32 = Build(Precision.FP32, "cpu", 32, "default", False, True, None, False)


def random_model(name: str, folder: Path) -> Path:
    """Two small layers with random weights, larger than usual so that what they do shows."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        **MORE.get(name.removesuffix("ForCausalLM"), {}),
    )  # fmt: skip
    model = getattr(transformers, name)(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(decoder("llama", size="tiny") / file, folder / file)
    return folder


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_class_it_knows_answers_as_pytorch(name: str, tmp_path: Path) -> None:
    folder, out = random_model(name, tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    assert knows(name, read_config(folder))
    loaded = load_model(folder, "text-generation")
    golden = write_on(loaded, load_tokenizer(folder, False), 128)
    build(folder, out, FP32, read_config(folder))
    assert {file.name for file in out.iterdir()} == {"model.onnx", "model.onnx.data", "genai_config.json"}
    found = parity(out, golden)
    assert found["max_abs"] <= 1e-4
    assert found["top1"] == 1.0


def test_heads_that_its_kernels_do_not_take_are_traced() -> None:
    assert knows("LlamaForCausalLM", {"hidden_size": 64, "num_attention_heads": 4})
    assert not knows("LlamaForCausalLM", {"hidden_size": 96, "num_attention_heads": 4})
    assert not knows("OlmoForCausalLM", {"hidden_size": 64, "num_attention_heads": 4})


def test_it_leaves_no_trace_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody's own module may be called as one of the builder's; the path, the log and the terminal are theirs."""
    theirs = types.ModuleType("builders")
    monkeypatch.setitem(sys.modules, "builders", theirs)
    path, handlers = list(sys.path), list(logging.getLogger().handlers)
    folder = decoder("llama", size="tiny")
    for number in range(2):
        out = tmp_path / str(number)
        out.mkdir()
        build(folder, out, Build(Precision.INT4, "cpu", 32, "rtn", False, True, None, False), read_config(folder))
    assert sys.modules["builders"] is theirs
    assert not [name for name in sys.modules if name.partition(".")[0] in {"builder_config", "quantization"}]
    assert sys.path == path
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_what_it_refuses_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_builder.Build, "extra", lambda self, tied: ["block_size=48", "hf_token=false"])
    asked = Build(Precision.INT4, "cpu", 48, "default", False, True, None, False)
    folder = decoder("llama", size="tiny")
    with pytest.raises(BadInput, match=r"the builder of onnxruntime-genai does not take .* in int4"):
        build(folder, tmp_path, asked, read_config(folder))
    assert not [*tmp_path.iterdir()]
