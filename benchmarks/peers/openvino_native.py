"""OpenVINO without ONNX Runtime around it, in fp32, in bf16, and in int8 as NNCF quantizes it."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Job, Made, calibration, prepare
from optimizer.benching.worker import main
from optimizer.runtime import Candidate
from optimizer.types import JSON, TensorSpec


class NativeSession:
    """A model compiled for the processor, as Intel's guides do it for latency."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import openvino

        started = time.perf_counter()
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision:
            settings["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        self._model = core.compile_model(core.read_model(path), "CPU", settings)
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)
        self.facts: dict[str, JSON] = {
            "provider": "openvino-native",
            "precision": str(self._model.get_property("INFERENCE_PRECISION_HINT")),
            "threads": threads,
            "load_seconds": time.perf_counter() - started,
            "openvino": openvino.__version__,
        }

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run once."""
        request = self._model.create_infer_request()
        answers = request.infer(dict(feeds))
        return {spec.name: answers[place].copy() for place, spec in enumerate(self.outputs)}

    def bind(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """Inputs set once; outputs stay where OpenVINO puts them."""
        import openvino

        request = self._model.create_infer_request()
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=False))

        def call() -> None:
            request.infer(share_outputs=True)

        return call

    def close(self) -> None:
        """Drop the model."""
        self._model = None


def _spec(port: Any) -> TensorSpec:
    shape = port.get_partial_shape()
    dims = tuple(f"dim_{place}" if dim.is_dynamic else dim.get_length() for place, dim in enumerate(shape))
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, dims)


def _open(candidate: Candidate, threads: int) -> NativeSession:
    return NativeSession(candidate.path, candidate.provider.precision, threads)


def _float(job: Job, folder: Path, *, precision: str, name: str) -> Made:
    return Made(name, job.onnx, precision)


def _int8(job: Job, folder: Path) -> Made:
    import nncf
    import openvino

    rows = list(calibration(job))
    model = openvino.Core().read_model(job.onnx)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(rows),
        # Its scheme for transformers; a model of another sort is left to its defaults.
        model_type=nncf.ModelType.TRANSFORMER if job.source else None,
        subset_size=len(rows),
    )
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return Made("NNCF int8", str(folder / "model.xml"))


MAKERS = {
    "fp32": functools.partial(_float, precision="f32", name="fp32"),
    "bf16": functools.partial(_float, precision="bf16", name="bf16"),
    "NNCF int8": _int8,
}

if __name__ == "__main__":
    prepare(MAKERS) if sys.argv[1:] else main(_open)
