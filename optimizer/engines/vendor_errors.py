"""What TensorRT says when it cannot, as errors that name the node, the reason and what to type next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.engines.flavors import ELSEWHERE
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, MlOptError
from optimizer.vendor_rules import Rule, matched

__all__ = ["Problem", "build_failed", "cannot_open", "latest", "parse_failed"]


@dataclass(frozen=True)
class Problem:
    """What the parser says of one node.

    Attributes:
        code: the vendor's word (``UNSUPPORTED_NODE``).
        text: its sentence.
        node: the node's name.
        operator: its type.
    """

    code: str
    text: str
    node: str
    operator: str


_FROM_EXPORT = "build from the export (`ml-opt ls` lists it): fused graphs run on ONNX Runtime alone"

_PARSING = (
    Rule(
        r"input type of UINT8|UINT8|[Aa]symmetric|zero.?point.*(?:all zeros|must be zero|non-?zero)",
        BadInput,
        "{title} {version} takes int8 around zero only, and {node} ({operator}) is not: {reason}",
        "quantize again, symmetric: ml-opt quantize static REF --calib FILE --symmetric",
    ),
    Rule(
        r"MultiHeadAttention|SkipLayerNorm|FusedMatMul|BiasGelu|FastGelu|QAttention|EmbedLayerNorm|com\.microsoft",
        BadInput,
        "{node} is a {operator}, an operator of ONNX Runtime's own that {title} {version} does not take: {reason}",
        _FROM_EXPORT,
    ),
    Rule(
        r"MatMulNBits|GatherBlockQuantized|MatMulInteger|DynamicQuantizeLinear|ConvInteger|DynamicQuantizeMatMul",
        BadInput,
        "{node} is a {operator}, a form of quantization that {title} {version} does not take",
        "int8 engines come from static quantization: ml-opt quantize static REF --calib FILE --symmetric",
    ),
    Rule(
        r"\bAttention\b.*|decompos",
        BadInput,
        "{node} ({operator}) is an attention in one operator, which {title} {version} does not take: {reason}",
        "export with opset 20, where attention is spelled out: ml-opt export-onnx MODEL --opset 20",
    ),
    Rule(
        r"INVALID_GRAPH|opset|[Uu]nsupported ONNX data type|external data|ModelProto",
        BadInput,
        "{path}: {title} {version} cannot read the graph{at}: {reason}",
    ),
    Rule(
        r"UNSUPPORTED_NODE|[Nn]o importer registered|[Pp]lugin not found|not supported",
        BadInput,
        "{title} {version} does not take {node} ({operator}): {reason}",
        "run this model with ONNX Runtime (its cuda provider), which leaves no operator out",
    ),
    Rule(r"", BadInput, "{path}: {title} {version} cannot read the graph{at}: {reason}"),
)

_NO_DRIVER = r"cudaError 35|cudaError 100|driver version is insufficient|no CUDA-capable|CUDA initialization failure"
_NO_MEMORY = r"[Oo]ut ?[Oo]f ?[Mm]emory|OUT_OF_MEMORY|bad_alloc|MEM_ALLOC_FAILED|cudaError 2\b"

_BUILDING = (
    Rule(
        r"Unable to load library: (?P<library>[^\s:]+)",
        MissingPiece,
        "{title} {version} is installed without {library}, which what was asked for needs",
        "leave out --version-compatible, or install a package that has it",
    ),
    Rule(
        r"CHECK\(status == CUDA_SUCCESS\)",
        MissingPiece,
        "{title} {version} wants a GPU for what was asked, and finds none: {reason}",
        "engines without weights (--strip-weights) and with exchangeable ones (--refit) are built on a GPU",
    ),
    Rule(
        r"dynamic or shape inputs, but no optimization profile|optimization profile.*(?:missing|is not set)",
        BadInput,
        "{title} {version} wants a profile for every open dimension: {reason}",
        "say the shapes: --profile INPUT:MIN:BEST:MAX",
    ),
    Rule(
        r"[Oo]ptimization profile|kMIN|kMAX|kOPT|[Pp]rofile",
        BadInput,
        "{title} {version} does not take the profile: {reason}",
        "give other shapes: --profile INPUT:MIN:BEST:MAX",
    ),
    Rule(
        _NO_MEMORY,
        MissingPiece,
        "there is not enough memory to build the engine: {reason}",
        "give it less room (--workspace 1GiB), smaller shapes (--profile), or a machine with more",
    ),
    Rule(
        _NO_DRIVER,
        MissingPiece,
        "{title} {version} finds no NVIDIA driver here, and needs one for what was asked: {reason}",
        "build on the GPU that will run it, or with --flavor rtx, which needs none",
    ),
    Rule(
        r"(?:FP32|FP8|FP4|BF16|INT4|Half|precision|data ?type).*not supported|not supported.*(?:SM|GPU)",
        BadInput,
        "{title} {version} has no such arithmetic for these GPUs: {reason}",
        "leave out the older ones of --compute-capability, or choose another precision",
    ),
    Rule(
        r"[Cc]ould not find any implementation|[Nn]o implementation",
        GateFailed,
        "{title} {version} has no kernel for a part of the graph: {reason}",
        "more scratch memory (--workspace) or a smaller profile may let it find one",
    ),
    Rule(
        r"",
        GateFailed,
        "{title} {version} did not build the engine: {reason}",
        "other shapes (--profile) may pass; ONNX Runtime's cuda provider runs what no engine can be built of",
    ),
)

_OPENING = (
    Rule(
        _NO_DRIVER,
        MissingPiece,
        "{path}: an engine runs on an NVIDIA GPU, and there is no usable driver here",
        "run it where there is one; `ml-opt doctor` says what is here",
    ),
    Rule(_NO_MEMORY, MissingPiece, "{path}: the GPU has no memory for the engine: {reason}"),
    Rule(
        r"does not support this compute capability",
        MissingPiece,
        "{path}: {title} does not run on this GPU: {reason}",
        ELSEWHERE,
    ),
    Rule(
        r"compute capability|[Ii]ncompatible.*(?:device|GPU)|different (?:device|GPU)|SM ?\d",
        MissingPiece,
        "{path} was built for another GPU: {reason}",
        "build it for this one: ml-opt build-trt-engine REF --rebuild",
    ),
    Rule(
        r"version tag|[Vv]ersion.*(?:mismatch|incompatib|expect)|not compatible with this version|lean runtime",
        MissingPiece,
        "{path} was built by another version than {title} {version}: {reason}",
        "build it again with this one: ml-opt build-trt-engine REF --rebuild",
    ),
    Rule(
        r"[Mm]agic|corrupt|[Dd]eserializ|[Ss]erializ|assertion|size",
        Damaged,
        "{path} is no engine of {title}, or it is damaged: {reason}",
        "build it again: ml-opt build-trt-engine REF --rebuild",
    ),
    Rule(r"", Damaged, "{title} {version} cannot open {path}: {reason}"),
)


def parse_failed(problems: Sequence[Problem], title: str, version: str, path: Path) -> MlOptError:
    """Why a graph was not read; of several nodes, the first is named and the others are counted."""
    if not problems:
        return BadInput(f"{path}: {title} {version} cannot read it, and does not say why")
    first = problems[0]
    reason = _plain(first.text) + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
    return matched(
        f"{first.code} {first.operator}: {first.text}",
        _PARSING,
        title=title,
        version=version,
        path=path,
        node=first.node or "a node without a name",
        operator=first.operator,
        at=f" at {first.node} ({first.operator})" if first.node else "",
        reason=reason,
    )


def build_failed(lines: Sequence[str], title: str, version: str) -> MlOptError:
    """Why no engine came out, by the errors of the vendor's log."""
    text = "\n".join(lines)
    reason = _plain(lines[0]) if lines else "it does not say why"
    return matched(text, _BUILDING, title=title, version=version, reason=reason)


def cannot_open(lines: Sequence[str], title: str, version: str, path: Path) -> MlOptError:
    """Why an engine was not opened, by the errors of the vendor's log."""
    reason = _plain(lines[0]) if lines else "it does not say why"
    return matched("\n".join(lines), _OPENING, title=title, version=version, path=path, reason=reason)


def _plain(text: str) -> str:
    """The vendor's sentence without its places in a source that nobody has."""
    text = re.sub(r"^(?:INTERNAL_)?ERROR ", "", text.strip())
    text = re.sub(r"^In node \d+ with name: .*? and operator: \w+ \(\w+\): \w+: ", "", text, flags=re.DOTALL)
    text = re.sub(r"^.*?Error Code \d+: ", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*In \w+(?:::\w+)* at \S+:\d+\)?", "", text)
    text = re.sub(r"Assertion failed: (?:[\w:.()\[\]]+(?: [=!<>&|]+ \S+)*: )?", "", text)
    text = " ".join(text.split()).strip("() ")
    return text if len(text) <= 300 else text[:297] + "…"


def latest(lines: Sequence[str]) -> str:
    """The last of the errors of the vendor's log, as a sentence; empty where there is none."""
    # ``API Usage Error (the sentence In f at a.cpp:1)``, of which the end is gone already.
    return re.sub(r"^[A-Z][\w ]* \((?=[^)]*$)", "", _plain(lines[-1])) if lines else ""
