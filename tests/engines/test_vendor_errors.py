"""The vendor's words, as they came from TensorRT-RTX 1.7 or stand in its documentation, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.engines.vendor_errors import Problem, build_failed, cannot_open, parse_failed
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, MlOptError

PATH = Path("model.engine")
ASSERT = "In node {n} with name: {node} and operator: {op} ({where}): {code}: Assertion failed: {text}"


@pytest.mark.parametrize(
    ("problem", "says", "hint"),
    [
        (
            Problem(
                "UNSUPPORTED_NODE",
                ASSERT.format(
                    n=1,
                    node="w_DequantizeLinear",
                    op="DequantizeLinear",
                    where="checkNotInvalidType",
                    code="UNSUPPORTED_NODE",
                    text="status.is_success(): Found unsupported input type of UINT8",
                ),
                "w_DequantizeLinear",
                "DequantizeLinear",
            ),
            r"int8 around zero only, and w_DequantizeLinear \(DequantizeLinear\) is not: Found unsupported input type",
            "--symmetric",
        ),
        (
            Problem("UNSUPPORTED_NODE", "MultiHeadAttention bias input is not supported", "mha", "MultiHeadAttention"),
            "mha is a MultiHeadAttention, an operator of ONNX Runtime's own",
            "build from the export",
        ),
        (
            Problem("UNSUPPORTED_NODE", "is_decomposable: not decomposable", "att", "Attention"),
            r"att \(Attention\) is an attention in one operator",
            "--opset 20",
        ),
        (
            Problem("UNSUPPORTED_NODE", "No importer registered for op: Wobble", "w", "Wobble"),
            r"does not take w \(Wobble\): No importer registered for op: Wobble",
            "cuda provider",
        ),
        (
            Problem("UNSUPPORTED_NODE", "No importer registered", "mul", "MatMulInteger"),
            "mul is a MatMulInteger, a form of quantization",
            "quantize static",
        ),
        (Problem("INVALID_GRAPH", "the graph has a cycle", "", ""), "cannot read the graph: the graph has a cycle", ""),
    ],
)
def test_a_node_that_cannot_be_parsed_is_named_with_what_to_do(problem: Problem, says: str, hint: str) -> None:
    error = parse_failed([problem], "TensorRT-RTX", "1.7", PATH)
    assert isinstance(error, BadInput)
    with pytest.raises(BadInput, match=says):
        raise error
    assert hint in error.hint
    assert "Assertion failed" not in error.message


def test_several_nodes_are_counted() -> None:
    problems = [Problem("UNSUPPORTED_NODE", "No importer registered", f"n{i}", "Wobble") for i in range(3)]
    assert "(and 2 more)" in parse_failed(problems, "TensorRT", "11", PATH).message
    assert "does not say why" in parse_failed([], "TensorRT", "11", PATH).message


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        (
            "ERROR IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape "
            "inputs, but no optimization profile has been defined. In validate at /_src/optimizer/api/builder.cpp:1)",
            BadInput,
            "wants a profile for every open dimension",
        ),
        (
            "ERROR IOptimizationProfile: Error Code 3: kMIN <= kOPT was not so for x",
            BadInput,
            "does not take the profile",
        ),
        ("ERROR Error Code 2: OutOfMemory (Requested size was 123 bytes.)", MissingPiece, "not enough memory"),
        (
            "ERROR Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)",
            MissingPiece,
            "driver",
        ),
        ("ERROR Error Code 9: FP8 is not supported on SM 80", BadInput, "no such arithmetic"),
        ("ERROR Error Code 10: Could not find any implementation for node X", GateFailed, "no kernel for a part"),
        ("ERROR Error Code 99: something else", GateFailed, "did not build the engine: something else"),
    ],
)
def test_a_build_that_failed_says_why(line: str, error: type[MlOptError], says: str) -> None:
    found = build_failed([line], "TensorRT-RTX", "1.7")
    assert type(found) is error
    assert says in found.message
    assert "/_src/" not in found.message


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ERROR Error Code 1: Cuda Runtime (In X at y.cpp:1 (cudaError 35: too old a driver))", MissingPiece),
        ("ERROR Error Code 1: Cuda Runtime (cudaError 100: no CUDA-capable device is detected)", MissingPiece),
        ("ERROR the engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 9.0",
         MissingPiece),
        ("ERROR API Usage Error (The engine cannot run on this GPU, which has compute capability 9.0. Supported "
         "compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0. TensorRT-RTX does not support this compute capability, so "
         "the engine cannot be rebuilt for it.)", MissingPiece),
        ("ERROR Error Code 6: The engine plan file is not compatible with this version of TensorRT, expecting library "
         "version 10.1 got 10.2", MissingPiece),
        ("ERROR Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed. Magic tag "
         "does not match)", Damaged),
        ("ERROR Error Code 2: OutOfMemory", MissingPiece),
        ("", Damaged),
    ],
)  # fmt: skip
def test_an_engine_that_does_not_open_says_why(line: str, error: type[MlOptError]) -> None:
    found = cannot_open([line] if line else [], "TensorRT", "10.1", PATH)
    assert type(found) is error
    assert str(PATH) in found.message
    assert not ("cannot be rebuilt" in line and "--rebuild" in found.hint), "no way out"
