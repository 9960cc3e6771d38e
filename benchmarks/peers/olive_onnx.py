"""Olive: its conversion, its transformer optimization, and its dynamic and static int8 passes.

Its files are plain ONNX, run by the onnxruntime of its own environment with buffers bound as ours are.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Job, Made, calibration, prepare
from optimizer.benching.worker import main
from optimizer.runtime import Candidate, Provider, Session

#: As for optimum: the milder static model leaves all but the large products in float.
_PRODUCTS = ["MatMul", "Gemm"]


def _passed(name: str, model: Any, folder: Path, **settings: Any) -> Any:
    """What one of its passes makes of a model, in a folder that it may make itself."""
    from olive.package_config import OlivePackageConfig
    from olive.passes.olive_pass import create_pass_from_dict

    known = OlivePackageConfig.load_default_config().import_pass_module(name)
    return create_pass_from_dict(known, settings, disable_search=True).run(model, str(folder))


@functools.cache
def _converted(job: Job) -> Any:
    """The fp32 model that everything else is made from; made once."""
    from olive.model import HfModelHandler, ONNXModelHandler

    if not job.source:
        return ONNXModelHandler(job.onnx)
    model = HfModelHandler(job.source, task=job.task, io_config=_io_config(job))
    return _passed("OnnxConversion", model, Path(job.out) / "converted", target_opset=20, use_dynamo_exporter=False)


def _io_config(job: Job) -> dict[str, Any]:
    """The inputs that the calibration rows have, with rows and steps left open; its own guess fixes the rows."""
    row = next(calibration(job))
    steps = {1: "sequence"} if "input_ids" in row else {}
    return {
        "input_names": list(row),
        "input_shapes": [list(array.shape) for array in row.values()],
        "input_types": [array.dtype.name for array in row.values()],
        "output_names": _OUTPUTS[job.task],
        "dynamic_axes": {name: {0: "batch", **steps} for name in row},
    }


_OUTPUTS = {
    "feature-extraction": ["last_hidden_state"],
    "text-classification": ["logits"],
    "image-classification": ["logits"],
}


def _fp32(job: Job, folder: Path) -> Made | None:
    return Made("fp32", str(_converted(job).model_path)) if job.source else None


@functools.cache
def _fused(job: Job) -> Any:
    """With its transformer optimization, which knows models by their Hugging Face type; made once."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.source)
    return _passed(
        "OrtTransformersOptimization", _converted(job), Path(job.out) / "fused",
        model_type=config.model_type, num_heads=config.num_attention_heads, hidden_size=config.hidden_size,
    )  # fmt: skip


def _optimized(job: Job, folder: Path) -> Made | None:
    return Made("transformer optimization", str(_fused(job).model_path)) if job.source else None


def _dynamic(job: Job, folder: Path) -> Made:
    model = _fused(job) if job.source else _converted(job)
    return Made("int8 dynamic", str(_passed("OnnxDynamicQuantization", model, folder, per_channel=True).model_path))


def _static(job: Job, folder: Path, *, operators: list[str] | None, name: str) -> Made:
    from olive.data.registry import Registry

    @Registry.register_dataloader(name="rows")
    def rows(dataset: Any, **given: Any) -> Any:
        import torch

        return [
            ({name: torch.from_numpy(array) for name, array in feeds.items()}, torch.zeros(1))
            for feeds in calibration(job)
        ]

    made = _passed(
        "OnnxStaticQuantization", _converted(job), folder,
        data_config={"name": "calib", "dataloader_config": {"type": "rows"}},
        # By channel it fails on magika's file, which is no Hugging Face model.
        per_channel=bool(job.source), precision="int8", activation_type="uint8", quant_format="QDQ",
        op_types_to_quantize=operators, prepare_qdq_config=operators is None,
    )  # fmt: skip
    return Made(name, str(made.model_path))


MAKERS = {
    "fp32": _fp32,
    "transformer optimization": _optimized,
    "int8 dynamic": _dynamic,
    "int8 static": functools.partial(_static, operators=None, name="int8 static"),
    "int8 static, products": functools.partial(_static, operators=_PRODUCTS, name="int8 static, products"),
}


def _open(candidate: Candidate, threads: int) -> Session:
    return replace(candidate, provider=Provider("cpu")).open(threads)


if __name__ == "__main__":
    prepare(MAKERS) if sys.argv[1:] else main(_open)
