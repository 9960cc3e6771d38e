"""The extra ``serve`` is enough: a server that can import nothing else answers for every sort of model."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import served_texts
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from serving import artifacts
from serving.conftest import ROOT

import optimizer
from optimizer.store import Store

#: What stands in the list is not there, as in an environment where it was never installed.
_WITHOUT = """
import json, sys
missing = frozenset(json.loads(sys.argv.pop(1)))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r} (not in the extra serve)", name=name)
sys.meta_path.insert(0, Blocker())
from optimizer.cli.main import main
main()
"""

#: A PNG file that says it has 8000 × 7000 pixels, and has none.
LARGE = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">IIBBBBB", 8000, 7000, 8, 2, 0, 0, 0)
LARGE += struct.pack(">I", zlib.crc32(LARGE[12:])) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def closure(extra: str) -> set[str]:
    """Distributions that ``ml-opt[extra]`` installs on this machine: its own, what those require, and so on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]
    found: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for part in {"", *wanted.extras}:
            key = (canonicalize_name(wanted.name), part)
            if key in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            found.add(key)
            if key[0] == "ml-opt":  # another of our extras: as it is written now, and not as it was installed
                waiting += map(Requirement, project["optional-dependencies"].get(part, ()))
                continue
            for line in importlib.metadata.requires(wanted.name) or ():
                required = Requirement(line)
                if required.marker is None or required.marker.evaluate({"extra": part}):
                    waiting.append(Requirement(line.partition(";")[0]))
    return {name for name, _ in found}


def modules_beside(distributions: set[str]) -> list[str]:
    """Top-level modules that are installed here and that none of these distributions brings."""
    return [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not any(canonicalize_name(owner) in {*distributions, "ml-opt"} for owner in owners)
    ]


def test_the_extra_brings_neither_torch_nor_transformers() -> None:
    """Nor anything of their weight: whoever adds a requirement to it meets this list."""
    found = closure("serve")
    assert {"onnxruntime", "tokenizers", "starlette", "uvicorn", "limits"} <= found
    heavy = {"torch", "transformers", "onnx", "onnxscript", "onnx-ir", "pyarrow", "scipy", "sympy", "openvino"}
    assert not found & heavy


@pytest.fixture(scope="module")
def four(minilm_store: Store, tmp_path_factory: pytest.TempPathFactory, llama_generator: Path) -> Store:
    """MiniLM, a classifier, a ViT and a decoder."""
    import torch
    import transformers

    store = Store(tmp_path_factory.mktemp("four") / "models")
    shutil.copytree(minilm_store.root, store.root)
    artifacts.put(store, "classes")
    served_texts.put_text(store, llama_generator, "writer", served_texts.TEMPLATE)
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = {"id2label": {0: "dark", 1: "bright"}, "label2id": {"dark": 0, "bright": 1}}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes, **names)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    optimizer.export_onnx(str(folder), name="vit", store=store)
    return store


def asked(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.slow
def test_four_sorts_of_models_are_served_with_nothing_but_the_extra(four: Store) -> None:
    """Every module that the extra does not bring is missing, installed as it may be here."""
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture, "png")
    missing = modules_beside(closure("serve"))
    assert {"torch", "transformers", "onnx", "llguidance"} <= set(missing)
    refs = ["minilm:fp32", "classes", "vit", "writer"]
    words = ["serve", *refs, "--store", str(four.root), "--port", "0", "--json", "--threads", "1", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", _WITHOUT, json.dumps(missing), *words], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith('{"event":"ready"'), line + process.stdout.read()
        url = json.loads(line)["url"]
        vector = asked(url, "/v1/embeddings", {"model": "minilm", "input": "a film"})["data"][0]["embedding"]
        assert len(vector) == 384
        word = asked(url, "/v1/classify", {"model": "classes", "input": "a bad cab"})["data"][0]
        assert word["label"] in artifacts.LABELS
        image = {"image": base64.b64encode(picture.getvalue()).decode()}
        assert asked(url, "/v1/classify", {"model": "vit", "input": image})["data"][0]["label"] in ("dark", "bright")
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(url, "/v1/classify", {"model": "vit", "input": {"image": base64.b64encode(LARGE).decode()}})
        assert refused.value.code == 413
        why = json.load(refused.value)["error"]["message"]
        assert "8000 × 7000 pixels; 50 megapixels are the most (--max-megapixels)" in why
        text = asked(url, "/v1/completions", {"model": "writer", "prompt": "def ", "max_tokens": 4})
        assert text["usage"]["completion_tokens"] >= 1
        messages = [{"role": "user", "content": "a loop"}]  # goes through the model's chat template
        said = asked(url, "/v1/chat/completions", {"model": "writer", "messages": messages, "max_tokens": 4})
        assert said["usage"]["completion_tokens"] >= 1
    finally:
        code = served_texts.ended(process)
    assert code == 0
