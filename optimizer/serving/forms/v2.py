"""What the Open Inference Protocol V2 and its extensions take and say."""

from __future__ import annotations

from optimizer.serving.form import (
    AS_JSON,
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    WHOLE,
    Form,
    Schema,
    listed,
    object_of,
    one_of,
    spoken,
)
from optimizer.serving.tensors import DATATYPES

__all__ = ["CONFIG", "INFER", "LIVE", "MODEL", "MODEL_READY", "READY", "SERVER", "STATISTICS"]

_BYTES = "application/octet-stream"
_DATATYPE = one_of(*DATATYPES)
#: JSON, and behind it the bytes of tensors that say ``binary_data_size``: what both directions can be.
_BINARY: Schema = {
    "type": "string",
    "format": "binary",
    "description": "The JSON of the other form, as many bytes as Inference-Header-Content-Length says, and behind it "
    "the data of each tensor that has the parameter binary_data_size, in order.",
}
_INPUT = object_of(
    "InferInput",
    {"name": TEXT, "shape": {**listed(COUNT), "maxItems": 32}, "datatype": _DATATYPE},
    {"data": {"type": "array"}, "parameters": OBJECT},
)
_ASKED = object_of(
    "InferRequest",
    {"inputs": listed(_INPUT, 1)},
    {"id": TEXT, "outputs": listed(object_of("", {"name": TEXT}, {"parameters": OBJECT})), "parameters": OBJECT},
)
_OUTPUT = object_of(
    "InferOutput",
    {"name": TEXT, "shape": listed(COUNT), "datatype": _DATATYPE},
    {
        "data": {"type": "array", "description": "Flat, in row-major order; what is not finite is null."},
        "parameters": object_of("", {"binary_data_size": COUNT}),
    },
)
_ANSWER = object_of(
    "InferResponse", {"model_name": TEXT, "model_version": TEXT, "outputs": listed(_OUTPUT)}, {"id": TEXT}
)

INFER = Form(
    {AS_JSON: _ANSWER, _BYTES: _BINARY},
    {AS_JSON: _ASKED, _BYTES: _BINARY},
    headers={
        "Inference-Header-Content-Length": {
            **COUNT,
            "description": "Bytes of a binary body that are JSON; 0 where all of it is the one input's data.",
        }
    },
)

SERVER = spoken(object_of("ServerMetadata", {"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}))
LIVE = spoken(object_of("ServerLive", {"live": TRUTH}))
_READY = object_of("ServerReady", {"ready": TRUTH, "live": TRUTH})
READY = Form({AS_JSON: _READY}, also={503: _READY})

_MODEL_READY = object_of("ModelReady", {"name": TEXT, "ready": TRUTH}, {"error": TEXT})
MODEL_READY = Form({AS_JSON: _MODEL_READY}, also={503: _MODEL_READY})

#: A dimension that is not fixed is -1.
_SHAPE = listed({"type": "integer", "minimum": -1})
_TENSOR = object_of("TensorMetadata", {"name": TEXT, "datatype": _DATATYPE, "shape": _SHAPE})
_BATCHING = one_of("padded", "same-shape", "none")
_PARAMETERS = {"ref": TEXT, "task": TEXT, "provider": TEXT, "batching": _BATCHING, "proof": TEXT}
MODEL = spoken(
    object_of(
        "ModelMetadata",
        {
            "name": TEXT,
            "versions": listed(TEXT),
            "platform": TEXT,
            "inputs": listed(_TENSOR),
            "outputs": listed(_TENSOR),
            "parameters": object_of("", _PARAMETERS, {"why": TEXT}),
        },
    )
)

_CONFIGURED = object_of("TensorConfig", {"name": TEXT, "data_type": TEXT, "dims": _SHAPE})
CONFIG = spoken(
    object_of(
        "ModelConfig",
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "version_policy": object_of("", {"specific": object_of("", {"versions": listed(WHOLE)})}),
            "max_batch_size": COUNT,
            "input": listed(_CONFIGURED),
            "output": listed(_CONFIGURED),
            "dynamic_batching": object_of("", {"max_queue_delay_microseconds": COUNT}),
            "parameters": object_of("", {"limits_from": object_of("", {"string_value": TEXT})}),
            "instance_group": listed(object_of("", {"name": TEXT, "kind": TEXT, "count": COUNT})),
        },
    )
)

_TIMES = object_of("Duration", {"count": COUNT, "ns": COUNT})
_PARTS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_BATCH = {"batch_size": COUNT, "compute_input": _TIMES, "compute_infer": _TIMES, "compute_output": _TIMES}
_MODEL_STATISTICS = object_of(
    "ModelStatistics",
    {
        "name": TEXT,
        "version": TEXT,
        "last_inference": {**NUMBER, "description": "Milliseconds since 1970; 0 before the first."},
        "inference_count": COUNT,
        "execution_count": COUNT,
        "inference_stats": object_of("", dict.fromkeys(_PARTS, _TIMES)),
        "batch_stats": listed(object_of("", _BATCH)),
        "response_stats": OBJECT,
        "memory_usage": {"type": "array"},
    },
)
STATISTICS = spoken(object_of("Statistics", {"model_stats": listed(_MODEL_STATISTICS)}))
