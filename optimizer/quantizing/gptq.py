"""GPTQ: each weight is rounded in view of what those before it were off by.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022
(arXiv:2210.17323). A product's answers are off by ``E H Eᵀ`` where its weights are by ``E``, with ``H`` the second
moments of what it reads. Columns are rounded one after the other, and what each is off by is made up for in those that
are still to come, as far as ``H`` says that they can stand in for it (equations 2 and 3, by the Cholesky factor of the
inverse: section 3.3, step 3). Scales and zero points stay those that the quantizer chose (``static_groups`` of the
authors' code), so that columns can be taken in the order of their weight in ``H`` (``act_order`` there).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optimizer.quantizing.blocks import Blocks, may_change, products_of, read_blocks, write_levels
from optimizer.quantizing.prepare import not_finite, quiet_options
from optimizer.quantizing.record import watched
from optimizer.stage import Progress
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["Moments", "Original", "compensated", "mean_noise", "moments", "refine"]

#: Bytes of second moments that are held at once: 8 for each pair of a product's inputs.
_ROOM = 2**30
#: Added to the diagonal, as a share of its mean (``percdamp`` of the authors' code): inputs that always move together
#: have no inverse.
_DAMPING = 0.01
#: Rows that are multiplied with each other at once.
_ROWS = 1024
#: Columns whose errors are handed on together (section 3.3, step 2).
_AT_ONCE = 128
#: What ONNX Runtime's quantizer puts behind the name of a product in 4 bits, and behind that of a Gemm before.
_SUFFIX, _OF_GEMM = "_Q4", "_MatMul"
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Original:
    """The float graph that a quantized one was made from.

    Attributes:
        path: of its file.
        feeds: its inputs, run by run, from the beginning whenever it is called; without padding.
        runs: how many there are.
    """

    path: Path
    feeds: Callable[[], Iterable[Mapping[str, Any]]]
    runs: int


@dataclass(frozen=True)
class Moments:
    """Second moments of what a product reads, and what GPTQ makes of them once for all products that read it.

    Attributes:
        matrix: sums of ``x xᵀ``, float32, ``[K, K]``.
        order: columns by how much is read there, most first.
        factor: upper triangle ``U`` with ``Uᵀ U`` the inverse of the damped moments in that order, float32.
    """

    matrix: NDArray[Any]
    order: NDArray[Any]
    factor: NDArray[Any]

    @classmethod
    def of(cls, sums: NDArray[Any]) -> Moments:
        """From sums of ``x xᵀ``, ``[K, K]``; changed in place.

        ``H = R Rᵀ`` with ``R`` upper, which is Cholesky's lower factor of ``H`` read from its other end; ``U = R⁻¹``.
        """
        import numpy as np

        matrix = sums.astype(np.float32)
        order = np.argsort(-np.diag(sums), kind="stable")
        mean = float(np.diag(sums).mean())
        sums[np.diag_indices_from(sums)] += _DAMPING * mean if mean > 0 else 1.0
        lower = np.linalg.cholesky(sums[np.ix_(order[::-1], order[::-1])])
        return cls(matrix, order, np.linalg.inv(lower[::-1, ::-1]).astype(np.float32))

    def noises(self, weight: NDArray[Any], *rounded: NDArray[Any]) -> list[float]:
        """Power of the error of a product's answers over the power of its answers, of each way to round its weight."""
        whole = self._power(weight)
        return [self._power(weight - each) / whole if whole > 0 else 0.0 for each in rounded]

    def _power(self, weight: NDArray[Any]) -> float:
        import numpy as np

        return float(np.einsum("nk,nk->", weight @ self.matrix, weight, dtype=np.float64))


@dataclass(frozen=True)
class _Product:
    """One product in both graphs: its rounded node, what it reads in the float graph, and its weight, ``[N, K]``."""

    node: onnx_ir.Node
    value: str
    weight: NDArray[Any]


def refine(model: onnx_ir.Model, original: Original, progress: Progress) -> dict[str, JSON]:
    """Choose the levels of every product in 4 bits anew, by what the products read on real data.

    Products are judged by their own inputs in the float graph. One whose answers would be further off than before is
    left as it was.

    Args:
        model: the quantized graph; changed in place.
        original: the float graph, with data.
        progress: told what is done.

    Returns:
        ``products`` (how many were chosen anew), ``left`` (names of those in 4 bits that were not), and ``noise``
        before and after: the power of the error of a product's answers over the power of its answers, the mean over
        products.

    Raises:
        BadInput: what a product reads is not finite.
    """
    found, left = _matched(model, original.path)
    readers: dict[str, list[_Product]] = defaultdict(list)
    for each in found:
        readers[each.value].append(each)
    before: list[float] = []
    after: list[float] = []
    spoiled: list[str] = []
    widths = {value: products[0].weight.shape[1] for value, products in readers.items()}
    for value, moment in moments(original, widths, progress):
        for each in readers[value]:
            progress("rounding products by what they read", len(before), len(found))
            blocks = read_blocks(each.node)
            chosen = compensated(each.weight, moment, blocks)
            was, becomes = moment.noises(each.weight, blocks.weight(), blocks.weight(chosen))
            if becomes < was:
                write_levels(each.node, chosen)
            else:
                spoiled.append(str(each.node.name))
            before.append(was)
            after.append(min(was, becomes))
    return {
        "products": len(found) - len(spoiled),
        "left": [*left, *spoiled],
        "noise": mean_noise(before, after),
    }


def mean_noise(before: Sequence[float], after: Sequence[float]) -> dict[str, JSON]:
    """What a manifest says of noises before and after: their means, to three digits."""
    return {
        name: float(f"{fmean(noises) if noises else 0:.3g}") for name, noises in (("before", before), ("after", after))
    }


def compensated(weight: NDArray[Any], moment: Moments, blocks: Blocks) -> NDArray[Any]:
    """Levels of a weight, each chosen in view of the errors before it.

    Args:
        weight: ``[N, K]``.
        moment: of what it multiplies.
        blocks: the scales and zero points that levels are counted in.

    Returns:
        uint8, ``[N, K]``.
    """
    import numpy as np

    order, factor = moment.order, moment.factor
    # Turned, so that a column is one piece of memory.
    left = np.ascontiguousarray(weight.T[order], np.float32)
    levels = np.empty(weight.shape, np.uint8)
    for start in range(0, len(order), _AT_ONCE):
        end = min(start + _AT_ONCE, len(order))
        errors = np.empty((end - start, len(weight)), np.float32)
        for row in range(start, end):
            place = order[row]
            levels[:, place] = blocks.rounded(left[row], place)
            errors[row - start] = (left[row] - blocks.weight(levels[:, place], place)) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return levels


def moments(original: Original, values: Mapping[str, int], progress: Progress) -> Iterator[tuple[str, Moments]]:
    """Second moments of some values over all their rows (tokens, patches), one value after the other.

    The data is run as often as memory makes it necessary: what is held at once has a gigabyte of room.

    Args:
        original: the float graph, with data.
        values: their names in it, and ``K`` of each.
        progress: told how many runs are done.

    Raises:
        BadInput: a value is not finite.
    """
    groups = list(_groups(values))
    for number, group in enumerate(groups):
        sums = _summed(original, group, progress, number * original.runs, len(groups) * original.runs)
        for name in group:
            yield name, Moments.of(sums.pop(name))


def _groups(values: Mapping[str, int]) -> Iterator[dict[str, int]]:
    group: dict[str, int] = {}
    for name, width in values.items():
        if group and 8 * sum(each**2 for each in (*group.values(), width)) > _ROOM:
            yield group
            group = {}
        group[name] = width
    if group:
        yield group


def _summed(
    original: Original, values: Mapping[str, int], progress: Progress, done: int, total: int
) -> dict[str, NDArray[Any]]:
    import numpy as np
    import onnxruntime

    graph = watched(original.path, values, alone=True)
    session = onnxruntime.InferenceSession(str(graph), quiet_options(), providers=["CPUExecutionProvider"])
    graph.unlink()
    asked = {each.name for each in session.get_inputs()}
    sums = {name: np.zeros((width, width)) for name, width in values.items()}
    waiting: dict[str, list[NDArray[Any]]] = {name: [] for name in values}

    def add(name: str) -> None:
        if waiting[name]:
            rows = np.concatenate(waiting[name]).astype(np.float32, copy=False)  # sums of fp16 have no room
            sums[name] += rows.T @ rows
            waiting[name].clear()

    for number, feeds in enumerate(original.feeds(), start=done + 1):
        given = {name: array for name, array in feeds.items() if name in asked}
        for name, array in zip(values, session.run(list(values), given), strict=True):
            waiting[name].append(array.reshape(-1, array.shape[-1]))
            if sum(map(len, waiting[name])) >= _ROWS:
                add(name)
        progress("learning what products read", number, total)
    for name, found in sums.items():
        add(name)
        if not np.isfinite(found).all():
            raise not_finite(name)
    return sums


def _matched(model: onnx_ir.Model, path: Path) -> tuple[list[_Product], list[str]]:
    """Products in 4 bits with those that they were made from, and the names of those that have none."""
    import numpy as np

    from optimizer.graph.io import load

    floats = {node.name: node for node in load(path).graph if node.op_type in _PRODUCTS}
    found: list[_Product] = []
    left: list[str] = []
    for node in products_of(model):
        name = str(node.name)
        plain = name.removesuffix(_SUFFIX)
        made_from = floats.get(plain) or floats.get(plain.removesuffix(_OF_GEMM)) if may_change(node) else None
        weight = _weight(made_from) if made_from is not None else None
        shape = (node.attributes["N"].as_int(), node.attributes["K"].as_int())
        if made_from is None or weight is None or weight.shape != shape or made_from.inputs[0] is None:
            left.append(name)
        else:
            found.append(_Product(node, str(made_from.inputs[0].name), np.asarray(weight)))
    return found, left


def _weight(node: onnx_ir.Node) -> NDArray[Any] | None:
    """The weight of a float product, ``[N, K]``; a view of the file's own where that can be."""
    value = node.inputs[1]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    array: NDArray[Any] = value.const_value.numpy()
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    return array if turned else array.T
