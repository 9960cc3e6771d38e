"""Which nodes lose most in int8: each one alone, on recorded inputs, quantized as ONNX Runtime would."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import RANKING_NAME
from optimizer.errors import BadInput, UnknownName
from optimizer.quantizing.choose import WEIGHTS, Choice
from optimizer.quantizing.prepare import load_proto, quiet_options
from optimizer.quantizing.record import Recorded, record
from optimizer.quantizing.rounding import channel_axis, rounded, weight_levels
from optimizer.stage import Progress

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from optimizer.data.preprocess import Batch

__all__ = ["RANKED", "NodeNoise", "inputs_of", "noise_of", "rank", "rank_file", "read_ranking", "worst"]

#: Operators whose noise can be measured: their activation and their weight are one input each.
RANKED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather")


@dataclass(frozen=True)
class NodeNoise:
    """One node in int8.

    Attributes:
        node: its name in the prepared graph, as ``--exclude`` takes it.
        op_type: its operator.
        noise: power of the error over power of the answer, on the recorded inputs; 0 is exact. An answer of zeros that
            stays zeros has none.
        activation: the same with the activation in int8 alone.
        weight: the same with the weight in int8 alone.
        bytes: of its float weight.
    """

    node: str
    op_type: str
    noise: float
    activation: float
    weight: float
    bytes: int


def inputs_of(model: onnx.ModelProto, chosen: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The activation of every chosen node that can be ranked, and its channels (1 where rows are not vectors).

    A node can be ranked when one of its first two inputs is a weight; products of two activations have none.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = set(chosen)
    found = {}
    for node in model.graph.node:
        if node.name not in wanted or node.op_type not in RANKED:
            continue
        place = WEIGHTS[node.op_type][0]
        if node.input[place] in shapes and node.input[1 - place] not in shapes:
            shape = shapes[node.input[place]]
            vectors = node.op_type in ("MatMul", "Gemm") and place == 1 and len(shape) == 2
            found[node.name] = (node.input[1 - place], shape[1 if channel_axis(node) == 0 else 0] if vectors else 1)
    return found


def rank(
    model: onnx.ModelProto,
    recorded: Mapping[str, Recorded],
    chosen: Iterable[str],
    *,
    symmetric: bool,
    per_channel: bool,
) -> list[NodeNoise]:
    """Every chosen node with its noise, worst first.

    Activations get one range (unsigned with a zero point, or signed around zero), weights signed scales around zero, as
    in :func:`optimizer.quantizing.calibrate.quantize`; what a node hands to the next stays in float, so that each is
    judged by itself.

    Args:
        model: the prepared graph.
        recorded: what flows into the nodes, by name of the activation.
        chosen: names of nodes; those that cannot be ranked are left out.
        symmetric: as the quantizer will be asked.
        per_channel: as the quantizer will be asked.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    places = inputs_of(model, chosen)
    found = []
    for node in model.graph.node:
        if node.name not in places:
            continue
        seen = recorded[places[node.name][0]]
        place = WEIGHTS[node.op_type][0]
        weight = numpy_helper.to_array(weights[node.input[place]])
        levels, scale = weight_levels(weight, channel_axis(node) if per_channel else None)
        coarse = (levels * scale).astype(weight.dtype)
        exact_in = seen.sample
        coarse_in = rounded(exact_in, seen.low, seen.high, symmetric=symmetric)
        run = _Alone(node, model, weights, place)
        answer = run(exact_in, weight)
        both, one, other = (
            noise_of(answer, run(x, w)) for x, w in ((coarse_in, coarse), (coarse_in, weight), (exact_in, coarse))
        )
        found.append(NodeNoise(node.name, node.op_type, both, one, other, weight.nbytes))
    return sorted(found, key=lambda each: (-each.noise, each.node))


def rank_file(
    path: Path,
    chosen: Sequence[str],
    batches: Iterable[Batch],
    rows: int,
    *,
    symmetric: bool,
    per_channel: bool,
    progress: Progress,
) -> list[NodeNoise]:
    """Record what flows into the chosen nodes of a prepared file, in one pass, and rank them; see :func:`rank`.

    Raises:
        BadInput: none of them can be ranked, or the data makes no finite activations.
    """
    model = load_proto(path)
    watched = dict(inputs_of(model, chosen).values())
    if not watched:
        raise BadInput(
            "none of the chosen nodes can be ranked: " + ", ".join(RANKED) + " with a weight of their own can",
            "`ml-opt show REF` lists the operators",
        )
    recorded = record(path, watched, batches, rows, progress)
    return rank(model, recorded, chosen, symmetric=symmetric, per_channel=per_channel)


def worst(ranking: Sequence[NodeNoise], count: int, choice: Choice) -> list[NodeNoise]:
    """The ``count`` noisiest of the chosen nodes.

    Raises:
        UnknownName: the ranking names a node that the graph does not have: it is another graph's.
        BadInput: nothing would be left to quantize, or the ranking has too few.
    """
    known = {*choice.chosen, *choice.excluded}
    for each in ranking:
        if each.node not in known:
            raise UnknownName("node in --sensitivity", each.node, known, "rank this artifact: ml-opt sensitivity REF")
    if count >= len(choice.chosen):
        raise BadInput(f"--exclude-worst {count} leaves nothing to quantize: {len(choice.chosen)} nodes were chosen")
    taken = [each for each in ranking if each.node in choice.chosen]
    if count > len(taken):
        raise BadInput(f"--exclude-worst {count} asks for more nodes than are ranked: {len(taken)}")
    return taken[:count]


def read_ranking(path: Path) -> list[NodeNoise]:
    """A ranking that ``ml-opt sensitivity`` made, worst first.

    Args:
        path: the artifact's folder, or its ``ranking.json``.

    Raises:
        BadInput: the file is none.
    """
    try:
        document = json.loads((path / RANKING_NAME if path.is_dir() else path).read_bytes())
        assert document["report"] == "sensitivity"
        found = [NodeNoise(**{name: each[name] for name in NodeNoise.__annotations__}) for each in document["nodes"]]
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise BadInput(
            f"{path} is no ranking of nodes",
            "make one: ml-opt sensitivity REF --calib FILE",
        ) from None
    return sorted(found, key=lambda each: (-each.noise, each.node))


def noise_of(answer: NDArray[Any], judged: NDArray[Any]) -> float:
    """Power of the error over power of the answer."""
    import numpy as np

    power = float(np.square(answer, dtype=np.float64).sum())
    error = float(np.square(np.subtract(judged, answer, dtype=np.float64)).sum())
    return error / power if power else float(error > 0)


class _Alone:
    """One node as a graph of its own, with activation and weight as inputs."""

    def __init__(
        self, node: onnx.NodeProto, model: onnx.ModelProto, weights: Mapping[str, onnx.TensorProto], place: int
    ) -> None:
        import onnx
        import onnxruntime

        names = ["weight", "activation"] if place == 0 else ["activation", "weight"]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:2] = names
        rest = [weights[name] for name in node.input[2:] if name]
        kind = weights[node.input[place]].data_type
        index = onnx.TensorProto.INT64 if node.op_type == "Gather" else kind
        graph = onnx.helper.make_graph(
            [copy],
            "alone",
            [
                onnx.helper.make_tensor_value_info("activation", index, None),
                onnx.helper.make_tensor_value_info("weight", kind, None),
            ],
            [onnx.helper.make_tensor_value_info(node.output[0], kind, None)],
            rest,
        )
        made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        self._session = onnxruntime.InferenceSession(
            made.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
        )
        self._index = index

    def __call__(self, activation: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.floating[Any]]:
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(self._index)
        feeds = {"activation": activation.astype(dtype, copy=False), "weight": weight}
        answer: NDArray[np.floating[Any]] = self._session.run(None, feeds)[0]
        return answer
