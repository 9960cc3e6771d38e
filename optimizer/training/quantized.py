"""A model that answers as its quantized graph will: what of it is rounded, with which ranges, and in which phase.

How a forward pass is rounded is said in :mod:`optimizer.training.intercept`.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from optimizer.errors import BadInput
from optimizer.training.intercept import WEIGHTED, Calls, Phase
from optimizer.training.quantizers import ActivationQuantizer, clip_weight, weight_scale
from optimizer.training.scheme import Scheme
from optimizer.training.smooth import KeptRows, find_multiplier

__all__ = ["QuantizedModel"]

#: An activation that reaches this is a mask of attention: among its levels there would be room for nothing else.
_MASK = 1e4


class QuantizedModel(torch.nn.Module):
    """A model that answers as its quantized graph will.

    Args:
        module: a ``transformers`` model, which is changed only by training. It stays in evaluation mode: rounding is
            noise enough, and dropout would be learned around.
        scheme: what is rounded, and how.
        sample: any inputs, of several rows with padding: places that are not met with them are not in the graph that is
            traced with them either, and nothing is rounded there. (Models leave their masks out where nothing is
            padded.)

    Raises:
        BadInput: nothing of the model can be rounded.

    Attributes:
        module: the model.
        phase: what a forward pass does at each place.
        quantizers: of activations, in the order in which a forward pass meets them.
        sites: what each of them rounds: the function that reads it first, and the weight there.
        rounded: names of the weights that are rounded, and the axis along which their scales differ.
        tables: names of those that rows are looked up in.
        read_by: of each weight, the functions of torch that read it.
        off: numbers of quantizers that round nothing, as masks of attention pass there.
        beside: numbers of quantizers whose values meet in one operation.
        readers: of each weight, where the scheme smooths, the quantizers whose values it is multiplied with, each with
            the axis of the weight's input channels.
        sums: the quantizers, where the scheme smooths, of what is normalized or was added up to that.
    """

    def __init__(self, module: torch.nn.Module, scheme: Scheme, sample: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.module = module.eval()
        self.scheme = scheme
        self.quantizers = torch.nn.ModuleList()
        self.sites: dict[str, int] = {}
        self.rounded: dict[str, int | None] = {}
        self.tables: set[str] = set()
        self.read_by: dict[str, list[str]] = {}
        self._head = _head_of(module)
        self.off: set[int] = set()
        self.beside: list[list[int]] = []
        self.readers: dict[str, list[tuple[int, int]]] = {}
        self.sums: set[int] = set()
        self._rows: dict[int, KeptRows] = {}
        # Rounded weights of passes that nothing is learned from: rounding them costs more than a small batch.
        self._kept: dict[str, tuple[int, torch.Tensor]] = {}
        self._scales: dict[str, tuple[int, torch.Tensor]] = {}
        self.phase = Phase.FIND
        with torch.no_grad():
            self(**sample)
        for number in self.sums:
            self.quantizer(number).divides = True
        self.phase = Phase.OBSERVE
        if not self.rounded:
            raise BadInput(
                f"nothing of {type(self.module).__name__} can be quantized: it has no "
                + ("linear layer" if scheme.weight_bits == 4 else "linear layer, convolution or embedding")
                + " outside of its head",
                "quantize the head too (--quantize-head), or quantize the exported graph: ml-opt quantize static REF",
            )

    @property
    def config(self) -> Any:
        """The model's own configuration, which the Trainer asks for."""
        return self.module.config

    def train(self, mode: bool = True) -> QuantizedModel:
        """Keep to evaluation mode, whatever a training loop asks for."""
        super().train(False)
        return self

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The model's own answer to its own inputs, rounded on the way."""
        if torch.is_grad_enabled():
            self._kept.clear()
        with Calls(self):
            return self.module(**inputs)

    @torch.no_grad()
    def calibrate(self, batches: Sequence[dict[str, torch.Tensor]], progress: Callable[[int], None]) -> None:
        """Find the range of every activation on real inputs, and round from then on.

        Args:
            batches: inputs by name.
            progress: told how many batches are done; twice of each, where activations are smoothed.

        Raises:
            BadInput: an activation is not finite.
        """
        if self.scheme.smooth:
            self._smooth(batches, progress)
        for number, batch in enumerate(batches, 1):
            self(**batch)
            progress(number)
        for site, number in self.sites.items():
            quantizer = self.quantizer(number)
            if quantizer.widest == float("inf") and site.startswith(tuple(WEIGHTED)) and " behind " not in site:
                raise BadInput(f"what {site} reads is not finite on the training data")
            # What was met with the sample alone is a mask that these rows do not need.
            if quantizer.widest > _MASK or quantizer.widest == 0:
                self.off |= {number, *(each for group in self.beside if number in group for each in group)}
            quantizer.settle()
        for number in self.off:
            self.quantizer(number).multiplier = None
        self.phase = Phase.ROUND

    def _smooth(self, batches: Sequence[dict[str, torch.Tensor]], progress: Callable[[int], None]) -> None:
        """Find what the channels of activations are multiplied with before they are rounded."""
        weights = dict(self.module.named_parameters())
        products: dict[int, list[torch.Tensor]] = defaultdict(list)
        for name, places in self.readers.items():
            for number, inputs in places:
                products[number].append(weights[name].movedim(inputs, -1))
        for name, places in self.readers.items():
            # A weight that is read at several places, or looked up as well, is one for all of them.
            if len(places) > 1 or name in self.tables or weights[name].ndim != 2:
                for number, _ in places:
                    products.pop(number, None)
        self._rows = {number: KeptRows() for number in {**products, **dict.fromkeys(self.sums)}}
        self.phase = Phase.KEEP
        for number, batch in enumerate(batches, 1):
            self(**batch)
            progress(number)
        for number, rows in self._rows.items():
            self.quantizer(number).multiplier = find_multiplier(rows, products.get(number, []), self.scheme)
        self._rows = {}
        self.phase = Phase.OBSERVE

    def keep(self, number: int, tensor: torch.Tensor) -> None:
        """Keep some rows of an activation that may be smoothed."""
        if number in self._rows:
            self._rows[number].add(tensor)

    def smoothed(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight as it is rounded: its input channels divided by what those of its activation are multiplied with."""
        multiplier = self._multiplier(name)
        return weight if multiplier is None else weight / multiplier

    def _multiplier(self, name: str) -> torch.Tensor | None:
        """What a weight is divided by, to be broadcast; None where it stays what it is."""
        for number, inputs in self.readers.get(name, ()):
            if (multiplier := self.quantizer(number).multiplier) is not None:
                return multiplier.reshape([-1 if axis == inputs else 1 for axis in range(2)])
        return None

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Cut off the largest weights where 8 bits are worth more to the others; tables stay as they are."""
        if self.scheme.weight_bits == 8:
            weights = dict(self.module.named_parameters())
            for name in self.rounded.keys() - self.tables:
                weight, multiplier = weights[name], self._multiplier(name)
                cut = clip_weight(self.smoothed(name, weight), self.rounded[name], self.scheme.most)
                weight.copy_(cut if multiplier is None else cut * multiplier)

    @contextlib.contextmanager
    def marking(self) -> Iterator[torch.nn.Module]:
        """The model itself, leaving markers wherever it is traced."""
        inner = self.module.forward
        phase, self.phase = self.phase, Phase.MARK

        @functools.wraps(inner)
        def marked(*args: Any, **kwargs: Any) -> Any:
            with Calls(self):
                return inner(*args, **kwargs)

        self.module.forward = marked
        try:
            yield self.module
        finally:
            del self.module.forward
            self.phase = phase

    def float_weights(self) -> dict[str, int]:
        """Weights of two dimensions or more that stay in float: name → how many numbers."""
        return {
            name: weight.numel()
            for name, weight in self.module.named_parameters()
            if weight.ndim > 1 and name not in self.rounded
        }

    def smoothed_sites(self) -> list[str]:
        """The activations that are multiplied, channel by channel, before they are rounded."""
        return [site for site, number in self.sites.items() if self.quantizer(number).multiplier is not None]

    def takes(self, name: str) -> bool:
        """Whether a weight of that name is to be rounded."""
        return self.scheme.head or self.scheme.every or not name.startswith(self._head)

    def quantizer(self, number: int) -> ActivationQuantizer:
        """One of the quantizers."""
        found = self.quantizers[number]
        assert isinstance(found, ActivationQuantizer)
        return found

    def kept(self, name: str, weight: torch.Tensor, rounded: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A rounded weight, kept until the weight changes where nothing is learned from the pass."""
        if torch.is_grad_enabled():
            return rounded()
        version, made = self._kept.get(name, (-1, weight))
        if version != weight._version:
            made = rounded()
            self._kept[name] = (weight._version, made)
        return made

    def table_scale(self, name: str, table: torch.Tensor) -> torch.Tensor:
        """The step between two levels of a table with one scale, found anew where the table has changed: to look at all
        of it in every step costs more than the rows that are looked up.
        """
        version, scale = self._scales.get(name, (-1, table))
        if version != table._version or scale.device != table.device:
            scale = weight_scale(table, None)
            self._scales[name] = (table._version, scale)
        return scale

    def site(self, name: str, *, of_softmax: bool = False) -> int | None:
        """The number of a place in a forward pass; None for one that was not met with the sample."""
        if self.phase is Phase.FIND and name not in self.sites:
            low, high = self.scheme.levels
            self.sites[name] = len(self.quantizers)
            made = ActivationQuantizer(low, high, symmetric=self.scheme.symmetric, of_softmax=of_softmax)
            self.quantizers.append(made)
        return self.sites.get(name)


def _head_of(module: torch.nn.Module) -> tuple[str, ...]:
    """How the names of weights of the task's own head begin; none for a model that is all base."""
    base = getattr(module, "base_model_prefix", "")
    if not base or not hasattr(module, base):
        return ()
    return tuple(f"{name}." for name, _ in module.named_children() if name != base)
