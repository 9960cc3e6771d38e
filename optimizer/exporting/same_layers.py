"""Whether all layers of a decoder compute the same, from what they do when they run.

Most decoders repeat one layer with other weights, so that a trace of a few of them says what all are. Some do not:
windows of attention that alternate, scales that depend on a layer's number. Which they are is not read from a
configuration, which has many words for it, but from the operations of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["KEPT", "Stack", "all_alike", "shortened", "stack_of"]

#: Layers of a shortened model. What all share is often made by the first that wants it, so that the first may differ;
#: two more show how one follows another.
KEPT = 3
#: Numbers of a tensor that belongs to nobody, at most, that are compared.
_FEW = 4096


@dataclass(frozen=True)
class Stack:
    """The layers of a decoder.

    Attributes:
        parent: the module that they are an attribute of.
        name: that attribute.
        path: its name from the model on: ``transformer.h``.
        layers: the ``torch.nn.ModuleList``.
    """

    parent: Any
    name: str
    path: str
    layers: Any


def stack_of(module: Any, count: int) -> Stack | None:
    """The one list of so many modules, each of its own, that a model has; None where there is none or more than one."""
    import torch

    found = [
        (path, each)
        for path, each in module.named_modules()
        if isinstance(each, torch.nn.ModuleList) and len(each) == count == len(set(map(id, each)))
    ]
    if len(found) != 1:
        return None
    ((path, layers),) = found
    parent, _, name = path.rpartition(".")
    return Stack(module.get_submodule(parent), name, path, layers)


@contextmanager
def shortened(stack: Stack) -> Iterator[None]:
    """Inside the block, the model has its first ``KEPT`` layers alone."""
    setattr(stack.parent, stack.name, stack.layers[:KEPT])
    try:
        yield
    finally:
        setattr(stack.parent, stack.name, stack.layers)


def all_alike(
    stack: Stack, module: Any, step: Callable[[int], Callable[..., Any]], asked: Callable[[int], Mapping[str, Any]]
) -> bool:
    """Whether every layer but the first does what the second does, and the model does the same around fewer of them.

    Compared are the operations of PyTorch's dispatcher in their order, with every number that they are given, and where
    their tensors come from: weights by their names within the layer, results by their place in it.

    Args:
        stack: the layers.
        module: the model.
        step: from a number of layers, what runs one step of the model with as many.
        asked: from a number of layers, what a step is given; ``past`` holds a pair a layer.

    Returns:
        False as well where the model cannot be run like that.
    """
    count = len(stack.layers)
    if count <= KEPT:
        return False
    try:
        whole = _said(stack, module, step(count), asked(count), count)
        with shortened(stack):
            short = _said(stack, module, step(KEPT), asked(KEPT), KEPT)
    except Exception:  # a model's own code may stop at anything; the whole trace will say what it is
        return False
    if whole is None or short is None:
        return False
    same = all(layer == whole[2] for layer in whole[3:-1])
    return bool(same and whole[: KEPT + 1] == short[: KEPT + 1] and whole[-1] == short[-1])


def _said(
    stack: Stack, module: Any, step: Callable[..., Any], asked: Mapping[str, Any], count: int
) -> list[list[Any]] | None:
    """The operations before the layers, of each layer, and after them; None where something lies between two layers."""
    import torch

    names = {id(each): ("input", name) for name, each in asked.items() if name != "past"}
    recorder = _recorder(stack.path, names, asked["past"], module, count)
    hooks = []
    for number in range(count):
        layer = stack.layers[number]
        hooks.append(layer.register_forward_pre_hook(lambda *_, number=number: recorder.enter(number)))
        hooks.append(layer.register_forward_hook(lambda *_, number=number: recorder.leave(number)))
    try:
        with torch.no_grad(), recorder:
            step(**asked)
    finally:
        for hook in hooks:
            hook.remove()
    return None if recorder.astray else recorder.parts


def _recorder(path: str, names: Mapping[int, Any], past: Any, module: Any, count: int) -> Any:
    """What writes down every operation, in parts: 0 before the layers, ``n + 1`` of layer n, and last after them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    weights = {id(each): name for name, each in (*module.named_buffers(), *module.named_parameters())}
    caches = {id(each): (layer, part) for layer, pair in enumerate(past) for part, each in enumerate(pair)}

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[list[Any]] = [[] for _ in range(count + 2)]
            self.astray = False
            self._part, self._between = 0, False
            self._made: dict[int, tuple[int, int, int]] = {}
            self._alive: list[Any] = []  # an id is a tensor's own only as long as the tensor is

        def enter(self, number: int) -> None:
            self.astray |= self._part != number
            self._part, self._between = number + 1, False

        def leave(self, number: int) -> None:
            self._between = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if self._between and self._part == count:
                self._part, self._between = count + 1, False
            self.astray |= self._between
            said = (str(func), self._plain(args), self._plain(kwargs or {}))
            answer = func(*args, **(kwargs or {}))
            calls = self.parts[self._part]
            for place, each in enumerate(answer if isinstance(answer, (tuple, list)) else (answer,)):
                self._made[id(each)] = (self._part, len(calls), place)
                self._alive.append(each)
            calls.append(said)
            return answer

        def _plain(self, value: Any) -> Any:
            """The same with tensors exchanged for where they come from."""
            if isinstance(value, torch.Tensor):
                return self._origin(value)
            if isinstance(value, (tuple, list)):
                return tuple(map(self._plain, value))
            if isinstance(value, dict):
                return {name: self._plain(each) for name, each in value.items()}
            return type(value), value  # 1, 1.0 and True are equal

        def _origin(self, tensor: Any) -> Any:
            sort, here = (tuple(tensor.shape), tensor.dtype), self._part
            if id(tensor) in self._made:
                part, call, place = self._made[id(tensor)]
                where = {1: "first", here - 1: "before", 0: "head", here: "own"}.get(part, part)
                return "made", where, call, place, sort
            if id(tensor) in weights:
                own = f"{path}.{here - 1}."
                name = weights[id(tensor)]
                return "weight", name.removeprefix(own) if name.startswith(own) else f"/{name}", sort
            if id(tensor) in caches:
                self.astray |= not 0 < here <= count
                layer, part = caches[id(tensor)]
                return "past", layer - (here - 1), part, sort
            if id(tensor) in names:
                return names[id(tensor)]
            self._alive.append(tensor)
            return "value", sort, tensor.tolist() if tensor.numel() <= _FEW else object()

    return Recorder()
