"""What ONNX Runtime's exceptions mean, in one table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import BadInput, MissingPiece
from optimizer.vendor_rules import Rule, translated

__all__ = ["ort_errors"]


#: Looked through from the top; the first match wins. The texts are those of ONNX Runtime 1.32.
_TABLE = (
    Rule(r"^InvalidProtobuf|^NoModel|No graph was found", BadInput, "{path} is not an ONNX model, or it is cut short"),
    Rule(r"^NoSuchFile", BadInput, "no such file: {path}"),
    Rule(
        r"External data path does not exist: \"?(?P<file>[^\"\n]+)",
        BadInput,
        "{path}: its weights file is missing: {file}",
        "an ONNX file with external data must be moved together with it",
    ),
    Rule(
        r"[Ee]xternal (?:initializer|data).*(?:out of bounds|cannot be read|can not be read|validation failed)",
        BadInput,
        "{path}: its weights file is cut short or lies outside its folder",
    ),
    Rule(
        r"Failed to allocate memory.*?size (?P<size>\d+)|bad_alloc|[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY",
        MissingPiece,
        "not enough memory to run {path}",
        "use a smaller batch or a shorter sequence",
    ),
    Rule(
        r"Opset (?P<opset>\d+) is under development",
        BadInput,
        "{path} has opset {opset}, which this ONNX Runtime does not know",
        "export it with a lower --opset",
    ),
    Rule(
        r"Unsupported model IR version: (?P<ir>\d+), max supported IR version: (?P<max>\d+)",
        BadInput,
        "{path} has IR version {ir}; this ONNX Runtime reads up to {max}",
        'run: pip install --upgrade "ml-opt[cpu]"',
    ),
    Rule(
        r"Could not find an implementation for (?P<op>[\w.]+)\((?P<since>\d+)\)",
        BadInput,
        "{path}: {provider} has no kernel for {op} (of opset {since}) with the types that it has here",
        "try another provider, or `ml-opt cast` to another type",
    ),
    Rule(
        r"No Op registered for (?P<op>\S+)|Fatal error: (?P<custom>[\w.:-]+)\(-?\d+\) is not a registered",
        BadInput,
        "{path} uses the operator {op}{custom}, which ONNX Runtime does not have",
    ),
    Rule(
        r"Invalid rank for input: (?P<input>\S+) Got: (?P<got>\d+) Expected: (?P<want>\d+)",
        BadInput,
        "input {input!r} has {got} dimensions, not {want}",
    ),
    Rule(
        r"indices element out of data bounds, idx=(?P<index>-?\d+)[^\[]*\[(?P<low>-?\d+),(?P<high>-?\d+)\]",
        BadInput,
        "an input looks up row {index} of a table that has rows {low} to {high}",
        "a token id is beyond the vocabulary, or a row is longer than the model's longest sequence",
    ),
    Rule(
        r"Attempting to broadcast|must be equal|invalid index found|input_shape\[|shapes? .*(?:mismatch|incompatible)",
        BadInput,
        "{path} cannot take inputs of these shapes: {text}",
        "inputs of different lengths, or a row longer than the model's longest sequence",
    ),
    Rule(
        r"(?P<library>lib[\w.+-]+\.so[\d.]*): cannot open shared object|CUDA driver version is insufficient"
        r"|no CUDA-capable device",
        MissingPiece,
        "{provider} cannot load: {text}",
    ),
    Rule(r"^InvalidGraph", BadInput, "{path} is not a valid graph: {text}"),
    Rule(r"", BadInput, "ONNX Runtime cannot run {path}: {text}"),
)


@contextlib.contextmanager
def ort_errors(path: Path, provider: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises inside into an :class:`MlOptError` that names the file or the input."""
    try:
        yield
    except Exception as error:
        if not _is_ort(error):
            raise
        raise translated(error, _TABLE, path, provider, _plain) from error


def _is_ort(error: Exception) -> bool:
    """Whether an exception comes from the library: its classes live in a private module and share no base."""
    return type(error).__module__.startswith("onnxruntime") or (
        type(error) in (RuntimeError, MemoryError) and "onnxruntime" in str(error).lower()
    )


def _plain(text: str) -> str:
    """The sentence in a vendor's message: without its code, its C++ signature and its colours."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/?\S*onnxruntime_src\S*:\d+ ", "", text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Exception from ")]
    return (lines[0] if lines else text).strip()[:300]
