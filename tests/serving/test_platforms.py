"""What clients of V2 are told of what computes: it is what was really got, and not one word for everything."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")

import served_texts
from serving.test_app import call
from serving.test_why import play

from optimizer.serving.platforms import platform_of
from optimizer.serving.served import Served
from optimizer.serving.state import State
from optimizer.store import Store


def told(store: Path, name: str, **settings: Any) -> tuple[str, str, str, str]:
    """Platform of a model's metadata; platform, backend and kind of its configuration."""
    found: list[tuple[str, str, str, str]] = []

    async def scene(app: Any, state: State) -> None:
        metadata, config = [
            json.loads((await call(app, "GET", f"/v2/models/{name}{rest}"))[1]) for rest in ("", "/config")
        ]
        (group,) = config["instance_group"]
        found.append((metadata["platform"], config["platform"], config["backend"], group["kind"]))

    play(store, scene, (name,), **settings)
    return found[0]


def test_onnxruntime_on_a_processor(tiny_store: Path) -> None:
    assert told(tiny_store, "classes") == ("onnxruntime_onnx", "onnxruntime_onnx", "onnxruntime", "KIND_CPU")


def test_openvino_is_onnxruntimes_provider_or_a_backend_of_its_own(tiny_store: Path, openvino_provider: str) -> None:
    native = ("openvino", "openvino", "openvino", "KIND_CPU")
    plugin = ("onnxruntime_onnx", "onnxruntime_onnx", "onnxruntime", "KIND_CPU")
    wanted = native if openvino_provider == "openvino-native" else plugin
    assert told(tiny_store, "classes", provider=openvino_provider) == wanted
    assert told(tiny_store, "classes", provider=f"{openvino_provider}:fp32") == wanted


def test_a_generator_and_its_runtime(tmp_path: Path, llama_generator: Path) -> None:
    served_texts.put_text(Store(tmp_path / "models"), llama_generator, "writer")
    wanted = ("ml-opt_generator", "ml-opt_generator", "onnxruntime", "KIND_CPU")
    assert told(tmp_path / "models", "writer") == wanted


@pytest.mark.parametrize(
    ("provider", "platform", "backend", "kind"),
    [
        ("cuda", "onnxruntime_onnx", "onnxruntime", "KIND_GPU"),
        ("tensorrt", "onnxruntime_onnx", "onnxruntime", "KIND_GPU"),
        ("rtx", "onnxruntime_onnx", "onnxruntime", "KIND_GPU"),
        ("tensorrt-native", "tensorrt_plan", "tensorrt", "KIND_GPU"),
        ("fake", "ml-opt_fake", "fake", "KIND_CPU"),
    ],
)
def test_what_no_processor_computes_and_what_is_planted(provider: str, platform: str, backend: str, kind: str) -> None:
    session: Any = SimpleNamespace(facts={"provider": provider})
    found = platform_of(Served("m", "1", "m", session=session))
    assert (found.name, found.backend, found.kind) == (platform, backend, kind)


def test_a_generator_on_a_gpu() -> None:
    generator: Any = SimpleNamespace(facts={"provider": "cuda", "runtime": "genai"})
    found = platform_of(Served("m", "1", "m", generator=generator))
    assert (found.name, found.backend, found.kind) == ("ml-opt_generator", "genai", "KIND_GPU")
