"""optimum-onnx: its export, its O3 optimization, and its int8 presets for AVX512-VNNI.

Its files are plain ONNX. They are run by the onnxruntime of its own environment, with buffers bound as ours are: that
is faster than calling its model classes, and so the most that a user of it can have.
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

#: What the presets are told to leave in float for the milder static model: everything but the large products.
_PRODUCTS = ["MatMul", "Gemm"]


def _exported(job: Job) -> Path:
    """The folder with the fp32 ``model.onnx`` that everything else is made from; made once."""
    if not job.source:
        return Path(job.onnx).parent
    folder = Path(job.out) / "export"
    if not (folder / "model.onnx").is_file():
        from optimum.exporters.onnx import main_export

        main_export(job.source, folder, task=job.task, do_validation=False, no_post_process=True)
    return folder


def _fp32(job: Job, folder: Path) -> Made | None:
    return Made("fp32", str(_exported(job) / "model.onnx")) if job.source else None


def _o3(job: Job, folder: Path) -> Made | None:
    if not job.source:
        return None  # its optimizer knows models by their Hugging Face type
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    ORTOptimizer.from_pretrained(_exported(job), file_names=["model.onnx"]).optimize(
        save_dir=folder, optimization_config=AutoOptimizationConfig.O3(), file_suffix=""
    )
    return Made("O3", str(folder / "model.onnx"))


def _dynamic(job: Job, folder: Path) -> Made:
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    ORTQuantizer.from_pretrained(_exported(job), file_name="model.onnx").quantize(
        save_dir=folder, quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False), file_suffix=""
    )
    return Made("int8 dynamic", str(folder / "model.onnx"))


def _static(job: Job, folder: Path, *, method: str, operators: list[str] | None, name: str) -> Made:
    from optimum.onnxruntime import AutoCalibrationConfig, AutoQuantizationConfig, ORTQuantizer

    quantizer = ORTQuantizer.from_pretrained(_exported(job), file_name="model.onnx")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=True, operators_to_quantize=operators)
    # Its histograms take rows of one length only; minimum and maximum need no padding.
    rows = _dataset(job, quantizer.onnx_model_path, padded=method != "minmax")
    ranges = quantizer.fit(
        rows,
        getattr(AutoCalibrationConfig, method)(rows),
        onnx_augmented_model_name=str(folder / "augmented.onnx"),
        operators_to_quantize=settings.operators_to_quantize,
    )
    quantizer.quantize(save_dir=folder, quantization_config=settings, calibration_tensors_range=ranges, file_suffix="")
    (folder / "augmented.onnx").unlink(missing_ok=True)
    return Made(name, str(folder / "model.onnx"))


def _dataset(job: Job, model: Path, *, padded: bool) -> Any:
    """The calibration rows as its reader wants them: without their batch axis, under the names of its own graph."""
    import numpy as np
    import onnx
    from datasets import Dataset

    takes = {each.name: each.type.tensor_type.elem_type for each in onnx.load(model).graph.input}
    every = list(calibration(job))
    longest = max(feeds["input_ids"].shape[1] for feeds in every) if padded and "input_ids" in every[0] else 0
    rows = []
    for feeds in every:
        given = {name: feeds[name] for name in takes if name in feeds}
        for name in takes.keys() - given.keys():
            # Segments, which one text alone has none of: ml-opt's export may have left them out.
            given[name] = np.zeros_like(feeds["input_ids"])
        if longest:
            given = {name: np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for name, array in given.items()}
        rows.append(
            {name: array[0].astype(onnx.helper.tensor_dtype_to_np_dtype(takes[name])) for name, array in given.items()}
        )
    return Dataset.from_list(rows).with_format("numpy")


MAKERS = {
    "fp32": _fp32,
    "O3": _o3,
    # Not after O3: its quantizer finds no type for what the fused operators answer, and fails.
    "int8 dynamic": _dynamic,
    "int8 static": functools.partial(_static, method="minmax", operators=None, name="int8 static"),
    "int8 static, products": functools.partial(
        _static, method="minmax", operators=_PRODUCTS, name="int8 static, products"
    ),
    "int8 static, products, percentile": functools.partial(
        _static, method="percentiles", operators=_PRODUCTS, name="int8 static, products, percentile"
    ),
}


def _open(candidate: Candidate, threads: int) -> Session:
    return replace(candidate, provider=Provider("cpu")).open(threads)


if __name__ == "__main__":
    prepare(MAKERS) if sys.argv[1:] else main(_open)
