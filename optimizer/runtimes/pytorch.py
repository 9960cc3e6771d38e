"""PyTorch itself, running a Hugging Face model folder: what every other runtime is compared with.

Eagerly in ``fp32``, ``bf16`` or ``fp16``, or through ``torch.compile`` (``compiled`` in fp32, ``compiled-bf16``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_threads, has_module, version_of
from optimizer.errors import BadInput, MissingPiece, missing_package
from optimizer.hf import LoadedModel, flat_outputs, infer_task, load_model, read_config
from optimizer.runtime import Availability, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RUNTIME", "CompiledSession", "TorchSession"]

#: How a folder can be run: the number format, and whether it is compiled.
_FORMS: Mapping[str, tuple[str, bool]] = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "fp16": ("fp16", False),
    "compiled": ("fp32", True),
    "compiled-bf16": ("bf16", True),
}
#: The same on an NVIDIA GPU.
_CUDA_FORMS: Mapping[str, tuple[str, bool]] = {
    "cuda": ("fp32", False),
    **{f"cuda-{name}": form for name, form in _FORMS.items() if name != "fp32"},
    "cuda-compiled-fp16": ("fp16", True),
}
#: How it can be asked for: the number format, whether it is compiled, and on what.
_WAYS: Mapping[str, tuple[str, bool, str]] = {
    **{name: (*form, "cpu") for name, form in _FORMS.items()},
    **{name: (*form, "cuda") for name, form in _CUDA_FORMS.items()},
}
#: Shapes that are compiled for when they are run, each for seconds; bench times three by default.
_EXACT_SHAPES = 4


class TorchSession:
    """A ``transformers`` model in evaluation mode, with numpy at its edges."""

    def __init__(
        self,
        module: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limits: Limits,
        facts: dict[str, JSON],
        device: str = "cpu",
    ) -> None:
        self._module = module
        self._device = device
        self._limits = limits
        self.inputs = inputs
        self.outputs = outputs
        self.facts = facts

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once; floating-point answers come back as float32 whatever the model computes in."""
        import torch

        tensors = self._tensors(feeds)
        with _torch_errors(), torch.inference_mode():
            answer = flat_outputs(self._module_for(feeds)(**tensors))
        names = [spec.name for spec in self.outputs] or list(answer)
        if lost := [name for name in names if name not in answer]:
            raise BadInput(f"{type(self._module).__name__} has no output {lost[0]!r}; it has {', '.join(answer)}")
        whole = {name: answer[name].float() if answer[name].is_floating_point() else answer[name] for name in names}
        return {name: tensor.cpu().numpy() for name, tensor in whole.items()}

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """Tensors made once; the call is the module's own, inside ``torch.inference_mode``."""
        import torch

        tensors = self._tensors(feeds)
        module, wait = self._module, _waiting(self._device)

        def call() -> None:
            with torch.inference_mode():
                module(**tensors)
            wait()

        return call

    def _module_for(self, feeds: Mapping[str, NDArray[np.generic]]) -> Any:
        """What is called for inputs of these shapes."""
        del feeds
        return self._module

    def runs(self) -> None:
        """PyTorch does not say what its products were computed in."""

    def close(self) -> None:
        """Drop the weights."""
        self._module = None

    def _tensors(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
        import torch

        check_feeds(self.inputs, feeds, self._limits)
        dtype = next(self._module.parameters()).dtype
        tensors = {name: torch.from_numpy(array.copy()).to(self._device) for name, array in feeds.items()}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


class CompiledSession(TorchSession):
    """A module behind ``torch.compile``: with code for exactly the shape where that pays, else with code for any shape.

    What :meth:`bind` is given, and the first few shapes that :meth:`run` is, are compiled for each by itself, which
    makes the fastest code; it happens in the first call of a shape. Rows of ever other lengths would compile for
    ever, so that the shapes after these share code that takes any.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """A call with code for these shapes alone, which is compiled now and not while it is timed."""
        import torch

        self._shapes.add(_shapes(feeds))
        tensors, module, wait = self._tensors(feeds), self._exact, _waiting(self._device)

        def call() -> None:
            with torch.inference_mode():
                module(**tensors)
            wait()

        with _torch_errors():
            call()
        return call

    def close(self) -> None:
        """Drop the weights and the code."""
        super().close()
        self.__dict__.pop("_exact", None)
        self.__dict__.pop("_general", None)

    def _module_for(self, feeds: Mapping[str, NDArray[np.generic]]) -> Any:
        shapes = _shapes(feeds)
        if len(self._shapes) < _EXACT_SHAPES:
            self._shapes.add(shapes)
        return self._exact if shapes in self._shapes else self._general

    # PyTorch tells the two apart by ``dynamic``. Beyond its limit of recompilations it would go on eagerly without a
    # word, hence a limit that no one reaches.
    @functools.cached_property
    def _exact(self) -> Any:
        import torch

        # On a GPU its launches are recorded as a CUDA graph: the fastest form that it has.
        mode = "reduce-overhead" if self._device == "cuda" else "default"
        return torch.compile(self._module, dynamic=False, recompile_limit=1 << 16, mode=mode)

    @functools.cached_property
    def _general(self) -> Any:
        import torch

        return torch.compile(self._module, dynamic=True)


def _waiting(device: str) -> Callable[[], None]:
    """What ends a call: a GPU is asked and goes on by itself, and a call is over when it is done."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else _nothing


def _nothing() -> None:
    """A processor is done when it returns."""


def _shapes(feeds: Mapping[str, NDArray[np.generic]]) -> tuple[tuple[int, ...], ...]:
    return tuple(feeds[name].shape for name in sorted(feeds))


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> TorchSession:
    """Open a model folder as the export did, but for attention, which is left to the library (sdpa where it has it).

    Raises:
        BadInput: not a model folder, weights that are damaged or lacking, an unknown architecture or task.
        MissingPiece: torch or transformers is not installed; it is to be compiled, and there is no C++ compiler; it is
            to run on a GPU, and PyTorch finds none.
    """
    if not has_module("torch"):
        raise missing_package("torch", "running PyTorch models")
    precision, compiled, device = _WAYS[options.provider.precision or "fp32"]
    if device == "cuda":
        _need_gpu()
    elif compiled:
        _need_compiler()
    import torch

    if device == "cuda":
        torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    threads = options.threads or cpu_threads()
    torch.set_num_threads(threads)
    started = time.perf_counter()
    loaded = load_model(
        path,
        str(model.get("task") or infer_task(read_config(path))),
        class_name=str(model.get("class") or ""),
        dtype=precision,
        trust_remote_code=bool(model.get("trust_remote_code")),
    )
    specs = tuple(TensorSpec.from_json(s) for s in model.get("inputs") or _usual_inputs(loaded))
    return (CompiledSession if compiled else TorchSession)(
        loaded.module.to(device),
        specs,
        tuple(TensorSpec.from_json(s) for s in model.get("outputs") or ()),
        model.get("limits") or {},
        {
            "provider": "torch",
            "precision": precision,
            "compiled": compiled,
            "threads": threads,
            "class": loaded.class_name,
            "attention": getattr(loaded.config, "_attn_implementation", None),
            "load_seconds": time.perf_counter() - started,
            "torch": torch.__version__,
            "transformers": version_of("transformers"),
            "device": device,
        },
        device,
    )


def _need_gpu() -> None:
    """Refuse a GPU that PyTorch does not have."""
    import torch

    if torch.version.cuda is None:
        raise MissingPiece(
            f"PyTorch {torch.__version__} was built for processors",
            "install the build for CUDA: https://pytorch.org/get-started has the line",
        )
    if not torch.cuda.is_available():
        raise MissingPiece("PyTorch finds no NVIDIA GPU", "`ml-opt doctor` says what this machine has")


def _need_compiler() -> None:
    """Refuse to compile without the compiler that PyTorch would call (``cpp.cxx`` of ``torch._inductor.config``)."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MissingPiece(
            f"torch.compile needs a C++ compiler, and {compiler} is not here",
            "run: apt-get install g++  (or name another compiler in the environment variable CXX)",
        )


def _usual_inputs(loaded: LoadedModel) -> list[dict[str, JSON]]:
    """Inputs of a folder that no export has described, from the one input that its class names as the main one."""
    main, config = loaded.module.main_input_name, loaded.config
    if main == "input_ids":
        return [{"name": n, "dtype": "int64", "shape": ["batch", "sequence"]} for n in (main, "attention_mask")]
    if main == "pixel_values" and isinstance(size := getattr(config, "image_size", 224), int):
        shape = ["batch", getattr(config, "num_channels", 3), size, size]
        return [{"name": main, "dtype": "float32", "shape": shape}]
    if main == "input_values":
        return [{"name": main, "dtype": "float32", "shape": ["batch", "time"]}]
    raise BadInput(
        f"what {loaded.class_name} takes as {main} is not known",
        "export the model first, and name the artifact as the first reference",
    )


@contextlib.contextmanager
def _torch_errors() -> Iterator[None]:
    """What PyTorch raises for inputs that do not fit, as errors that say so."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, MemoryError) as error:
        text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise MissingPiece(
                f"torch.compile cannot compile this model here: {text}", "leave `compiled` out to run it eagerly"
            ) from error
        if isinstance(error, MemoryError) or "allocate memory" in text:
            raise MissingPiece("not enough memory for the PyTorch model", "use a smaller batch") from error
        raise BadInput(
            f"PyTorch cannot run these inputs: {text}",
            "a token id is beyond the vocabulary, or a row is longer than the model's longest sequence",
        ) from error


def _available(provider: str) -> Availability:
    """Whether torch and transformers import."""
    try:
        import torch
        import transformers
    except ImportError as error:
        lacking = missing_package(error.name or "torch", "running PyTorch models")
        return Availability(provider, False, lacking.message, lacking.hint)
    return Availability(provider, True, facts={"torch": torch.__version__, "transformers": transformers.__version__})


RUNTIME = Runtime(
    name="torch",
    help="PyTorch on a Hugging Face model folder, eagerly or through torch.compile.",
    providers={"torch": tuple(_WAYS)},
    open=_open,
    available=_available,
)
