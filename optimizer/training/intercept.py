"""Fake quantization where a model calls torch: products, lookups and convolutions meet rounded numbers.

Nothing of the model is replaced: its modules, and the names of its weights, stay what they are. A torch function mode
sees each call of a forward pass and rounds what goes into it. The same calls, seen while the model is exported, leave
markers in the graph instead (:mod:`optimizer.quantizing.marked`), so that the graph rounds what training rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from optimizer.quantizing.marked import ACTIVATION, DOMAIN, WEIGHT
from optimizer.training.quantizers import round_blocks, round_rows, round_weight

if TYPE_CHECKING:
    from optimizer.training.quantized import QuantizedModel

__all__ = ["WEIGHTED", "Calls", "Phase"]

#: Function → places of its input and its weight, and the axis of the weight's output channels. A function is known by
#: name, as one operation is reached in many ways (``torch.add``, ``Tensor.__add__``).
WEIGHTED = {
    "linear": (0, 1, 0),
    "conv1d": (0, 1, 0),
    "conv2d": (0, 1, 0),
    "conv3d": (0, 1, 0),
    "addmm": (1, 2, 1),
    "matmul": (0, 1, 1),
    "__matmul__": (0, 1, 1),
}
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_LOOKUP = "embedding"
#: What may stand between a convolution and the rounding of its answer: int8 kernels do both.
_FUSED_WITH_CONVOLUTION = ("relu", "relu_")
_SOFTMAX = "softmax"
#: What asks a tensor about itself, and computes nothing with it.
_LOOKS = ("size", "dim", "numel", "is_floating_point", "__len__")
_SUMS, _NORM = ("add", "__add__", "__radd__", "add_", "__iadd__"), "layer_norm"
#: What is also rounded where every operator is to take 8 bits.
_EVERY = (
    *(*_SUMS, "mul", "__mul__", "__rmul__", "matmul", "__matmul__", "bmm"),
    *(_SOFTMAX, "layer_norm", "group_norm", "gelu", "relu", "silu", "tanh", "sigmoid", "mean"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
)


class Phase(Enum):
    """What is done where something is to be rounded."""

    FIND = "note it"
    KEEP = "keep some rows"
    OBSERVE = "look at the values"
    ROUND = "round them"
    MARK = "leave a marker in the graph"


class Calls(TorchFunctionMode):
    """One forward pass of a quantized model.

    What is rounded twice is rounded once: a tensor that three projections read has one range, as it has in the graph.
    """

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__()
        self._model = model
        # A place is named by what is called there, the last weight before it, and how often that was met since: not by
        # its number in the pass, as models leave out calls that change nothing (masks, where nothing is padded).
        self._last = ""
        self._times: Counter[str] = Counter()
        self._met: Counter[str] = Counter()
        # In each pass anew: while a model is traced, other tensors stand in for its weights.
        self._names = {id(weight): name for name, weight in model.module.named_parameters()}
        # By identity; the tensors are held, so that no other one takes their place in memory.
        # A tensor that was changed in place since then is another one.
        self._done: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        # The same of what products read, and the number of the place, where that is smoothed: a sum that reads the same
        # tensor gets it as it is.
        self._factors: dict[int, tuple[torch.Tensor, int, torch.Tensor, int | None]] = {}
        # Sums, and the numbers of the places of what was added.
        self._sums: dict[int, tuple[torch.Tensor, list[int]]] = {}
        # What came out of rounding, and goes on through the model.
        self._out: dict[int, torch.Tensor] = {}
        # What softmax answered.
        self._shares: dict[int, torch.Tensor] = {}
        # What convolutions made, and what its place is called.
        self._answers: dict[int, tuple[torch.Tensor, str]] = {}
        self._numbers: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name == "__get__":  # a shape, say: there are many, and nothing is computed
            return func(*args, **kwargs)
        scheme = self._model.scheme
        if self._model.phase is Phase.FIND:
            self._find_readers(name, (*args, *kwargs.values()))
        if self._answers and name not in _FUSED_WITH_CONVOLUTION:
            args = tuple(self._answered(arg) for arg in args)
            kwargs = {key: self._answered(value) for key, value in kwargs.items()}
        if name == _LOOKUP:
            return self._looked_up(func, *args, **kwargs)
        if name in WEIGHTED:
            args, kwargs, weight = self._weighted(name, args, kwargs)
            if weight:
                answer = func(*args, **kwargs)
                if name in _CONVOLUTIONS and scheme.activation_bits:
                    self._answers[id(answer)] = (answer, f"answer of {self._last}")
                return answer
        operands: list[int] = []
        if scheme.every and scheme.activation_bits and name in _EVERY:
            args, operands = self._operands(args, name)
        answer = func(*args, **kwargs)
        if name == _SOFTMAX and scheme.every and self._model.phase is Phase.FIND:
            self._shares[id(answer)] = answer
        if scheme.smooth and self._model.phase is Phase.FIND and operands:
            self._find_sums(name, answer, args, operands)
        if name in _FUSED_WITH_CONVOLUTION and args and id(args[0]) in self._answers:
            self._answers[id(answer)] = (answer, self._answers.pop(id(args[0]))[1])
        return answer

    def _weighted(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any, str]:
        """Arguments of a product with a weight, both rounded; and the weight's name, empty where it is none."""
        at, of, axis = WEIGHTED[name]
        args = list(args)
        while len(args) <= of and (key := _KEYWORDS.get((name, len(args)))) in kwargs:
            kwargs = dict(kwargs)
            args.append(kwargs.pop(key))
        if len(args) <= of or not (weight := self._taken(args[of])):
            return args, kwargs, ""
        args[of] = self._weight(args[of], weight, axis, blocks=name == "linear")
        self._last = weight
        self._times.clear()
        self._met[weight] += 1
        again = f" ({self._met[weight]})" if self._met[weight] > 1 else ""
        args[at] = self._factor(args[at], f"{name} of {weight}{again}", weight, 1 - axis)
        return args, kwargs, weight

    def _weight(self, tensor: torch.Tensor, name: str, axis: int, *, blocks: bool) -> torch.Tensor:
        scheme = self._model.scheme
        if scheme.weight_bits == 4 and (not blocks or name in self._model.tables):
            return tensor
        channels = axis if scheme.per_channel and tensor.ndim > axis else None
        known = self._model.rounded.setdefault(name, channels)
        return self._once(tensor, lambda: self._rounded_weight(tensor, name, known))

    def _rounded_weight(self, tensor: torch.Tensor, name: str, axis: int | None) -> torch.Tensor:
        match self._model.phase:
            case Phase.FIND | Phase.KEEP | Phase.OBSERVE:
                return tensor
            case Phase.MARK:
                return _mark(WEIGHT, tensor, {"name": name})
        return self._model.kept(name, tensor, lambda: self._through_bits(tensor, name, axis))

    def _through_bits(self, tensor: torch.Tensor, name: str, axis: int | None) -> torch.Tensor:
        if self._model.scheme.weight_bits == 4:
            return round_blocks(tensor, self._model.scheme.block)
        return round_weight(self._model.smoothed(name, tensor), axis, most=self._model.scheme.most)

    def _looked_up(self, func: Any, ids: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        """Rows of a table: rounding them is rounding the table, and looks at fewer numbers."""
        name = self._taken(weight)
        by_row = self._model.scheme.weight_bits == 4
        # In blocks of 4 bits a weight is a product's alone: as a table it would need another form.
        if not name or (by_row and name in self._model.rounded and name not in self._model.tables):
            return func(ids, weight, *args, **kwargs)
        self._model.rounded.setdefault(name, 0 if by_row else None)
        self._model.tables.add(name)
        if self._model.phase is Phase.MARK:
            table = weight
            weight = self._once(table, lambda: _mark(WEIGHT, table, {"name": name}))
        rows = func(ids, weight, *args, **kwargs)
        if self._model.phase is Phase.ROUND:
            rows = round_rows(rows) if by_row else round_weight(rows, None, self._model.table_scale(name, weight))
        self._done[id(rows)] = (rows, _version(rows), rows)
        self._out[id(rows)] = rows
        return rows

    def _taken(self, weight: Any) -> str:
        """The name of a weight that is to be rounded; empty for one that is not, and for what is no weight."""
        name = self._names.get(id(weight), "")
        return name if name and self._model.takes(name) else ""

    def _is_activation(self, value: Any) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.ndim > 1
            and id(value) not in self._names
        )

    def _answered(self, value: Any) -> Any:
        """What convolutions answered, rounded for each that reads it; also where several are read as one list."""
        if isinstance(value, (list, tuple)) and any(id(each) in self._answers for each in value):
            return type(value)([self._answered(each) for each in value])
        if id(value) in self._answers and self._answers[id(value)][0] is value:
            made = self._activation(*self._answers[id(value)])
            self._out[id(made)] = made
            return made
        return value

    def _activation(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        if self._model.scheme.activation_bits is None:
            return tensor
        return self._once(tensor, lambda: self._rounded_activation(tensor, site))

    def _factor(self, tensor: torch.Tensor, site: str, weight: str, inputs: int) -> torch.Tensor:
        """What a product reads, rounded; where that is smoothed, apart from what others make of the same tensor.

        Args:
            tensor: what is read.
            site: the name of the place.
            weight: the name of the weight.
            inputs: the axis of its input channels.
        """
        if not self._model.scheme.smooth or id(tensor) in self._out:
            return self._activation(tensor, site)
        known = self._factors.get(id(tensor))
        if known is None or known[1] != _version(tensor):
            number = self._model.site(site)
            made = tensor if number is None else self._at(number, tensor)
            known = self._factors[id(tensor)] = (tensor, _version(tensor), made, number)
            if made is not tensor:
                self._done[id(made)] = (made, _version(made), made)
        if self._model.phase is Phase.FIND and known[3] is not None:
            self._model.readers.setdefault(weight, []).append((known[3], inputs))
        return known[2]

    def _find_readers(self, name: str, args: Sequence[Any]) -> None:
        """Note which function reads which weight, so that of those that stay in float it can be said why."""
        if name in _LOOKS:
            return
        for arg in args:
            for each in arg if isinstance(arg, (list, tuple)) else (arg,):
                if weight := self._names.get(id(each), ""):
                    self._model.read_by.setdefault(weight, []).append(name)

    def _find_sums(self, name: str, answer: Any, args: Any, operands: list[int]) -> None:
        """Note what may be smoothed although no weight is multiplied with it: what a normalization of channels reads,
        and what was added up to that. Its last axis is of the model's own size, which that of a mask is not.
        """
        if name in _SUMS:
            self._sums[id(answer)] = (answer, operands)
        elif name == _NORM:
            _, summed = self._sums.get(id(args[0]), (None, []))
            self._model.sums |= {*operands, *summed}

    def _operands(self, args: Any, name: str) -> tuple[Any, list[int]]:
        """The arguments of an operation without weights, each rounded, and the numbers of their places; of one that a
        mask takes part in, none is rounded.
        """
        self._times[name] += 1
        where = f"{name} {self._times[name]} behind {self._last or 'the inputs'}"
        made: list[Any] = []
        for place, arg in enumerate(args):
            made.append(self._activation(arg, f"{where}, operand {place}") if self._is_activation(arg) else arg)
        numbers = [self._numbers[id(arg)] for arg in args if id(arg) in self._numbers]
        if self._model.phase is Phase.FIND:
            self._model.beside.append(numbers)
        return tuple(made), numbers

    def _rounded_activation(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        number = self._model.site(site, of_softmax=id(tensor) in self._shares)
        if number is None:
            return tensor
        self._numbers[id(tensor)] = number
        return self._at(number, tensor)

    def _at(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        """An activation at a place that is known."""
        quantizer = self._model.quantizer(number)
        match self._model.phase:
            case Phase.FIND:
                return tensor
            case Phase.KEEP:
                self._model.keep(number, tensor)
                return tensor
            case Phase.OBSERVE:
                quantizer.observe(tensor)
                return tensor
            case _ if number in self._model.off:
                return tensor
            case Phase.MARK:
                return quantizer.restored(_mark(ACTIVATION, quantizer.smoothed(tensor), {"number": number}))
        rounded: torch.Tensor = quantizer(tensor)
        return rounded

    def _once(self, tensor: torch.Tensor, rounded: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a tensor was rounded to before in this pass; what came out of rounding stays as it is."""
        known = self._done.get(id(tensor))
        if known is not None and known[1] == _version(tensor):
            return known[2]
        made = rounded()
        self._done[id(tensor)] = (tensor, _version(tensor), made)
        self._done[id(made)] = (made, _version(made), made)
        return made


#: Names of arguments that are given by name at times.
_KEYWORDS = {
    ("linear", 0): "input",
    ("linear", 1): "weight",
    ("conv1d", 1): "weight",
    ("conv2d", 1): "weight",
    ("conv3d", 1): "weight",
}


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; those of inference mode do not count it."""
    return -1 if tensor.is_inference() else tensor._version


def _mark(operator: str, tensor: torch.Tensor, about: dict[str, Any]) -> torch.Tensor:
    marked: torch.Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator}", (tensor,), about, dtype=tensor.dtype, shape=tensor.shape, version=1
    )
    return marked
