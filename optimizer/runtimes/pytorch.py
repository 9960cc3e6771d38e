"""PyTorch itself, running a Hugging Face model folder eagerly: what every other runtime is compared with."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_threads, has_module, version_of
from optimizer.errors import BadInput, MissingPiece, missing_package
from optimizer.runtime import Availability, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.task import get_task
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RUNTIME", "TorchSession"]

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TorchSession:
    """A ``transformers`` model in evaluation mode, with numpy at its edges."""

    def __init__(
        self,
        module: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        limits: Limits,
        facts: dict[str, JSON],
    ) -> None:
        self._module = module
        self._limits = limits
        self.inputs = inputs
        self.outputs = outputs
        self.facts = facts

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once; floating-point answers come back as float32 whatever the model computes in."""
        import torch

        tensors = self._tensors(feeds)
        with _torch_errors(), torch.inference_mode():
            answer = _leaves(self._module(**tensors))
        names = [spec.name for spec in self.outputs] or list(answer)
        if lost := [name for name in names if name not in answer]:
            raise BadInput(f"{type(self._module).__name__} has no output {lost[0]!r}; it has {', '.join(answer)}")
        return {
            name: (answer[name].float() if answer[name].is_floating_point() else answer[name]).numpy() for name in names
        }

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """Tensors made once; the call is the module's own, inside ``torch.inference_mode``."""
        import torch

        tensors = self._tensors(feeds)
        module = self._module

        @torch.inference_mode()  # type: ignore[untyped-decorator]
        def call() -> None:
            module(**tensors)

        return call

    def close(self) -> None:
        """Drop the weights."""
        self._module = None

    def _tensors(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
        import torch

        check_feeds(self.inputs, feeds, self._limits)
        dtype = next(self._module.parameters()).dtype
        tensors = {name: torch.from_numpy(array.copy()) for name, array in feeds.items()}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def _leaves(answer: Any, path: str = "") -> dict[str, Any]:
    """Every tensor in a model's answer, named by its path (``past_key_values.0.1``)."""
    import torch

    if isinstance(answer, torch.Tensor):
        return {path: answer}
    if isinstance(answer, Mapping):
        parts = list(answer.items())
    elif isinstance(answer, (list, tuple)):
        parts = list(enumerate(answer))
    else:
        return {}
    found = {}
    for key, value in parts:
        found.update(_leaves(value, f"{path}.{key}" if path else str(key)))
    return found


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> TorchSession:
    """Open a model folder with the class that ``model`` names, or that its task has.

    Raises:
        BadInput: not a model folder, weights that are damaged or do not fill the model, an unknown class.
        MissingPiece: torch or transformers is not installed, or there is not enough memory.
    """
    for name in ("torch", "transformers"):
        if not has_module(name):
            raise missing_package(name, "running PyTorch models")
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} is not a model folder: it has no config.json")
    import torch

    precision = options.provider.precision or "fp32"
    threads = options.threads or cpu_threads()
    torch.set_num_threads(threads)
    started = time.perf_counter()
    with _torch_errors(path):
        module = _loaded(path, model, getattr(torch, _PRECISIONS[precision]))
    specs = tuple(TensorSpec.from_json(s) for s in model.get("inputs") or _usual_inputs(module))
    return TorchSession(
        module,
        specs,
        tuple(TensorSpec.from_json(s) for s in model.get("outputs") or ()),
        model.get("limits") or {},
        {
            "provider": "torch",
            "precision": precision,
            "threads": threads,
            "class": type(module).__name__,
            "attention": getattr(module.config, "_attn_implementation", None),
            "load_seconds": time.perf_counter() - started,
            "torch": torch.__version__,
            "transformers": version_of("transformers"),
        },
    )


def _loaded(path: Path, model: Mapping[str, JSON], dtype: Any) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    module, info = _class(path, model).from_pretrained(
        str(path),
        dtype=dtype,
        trust_remote_code=bool(model.get("trust_remote_code", False)),
        local_files_only=True,
        output_loading_info=True,
    )
    # Encoders are commonly published without the pooler of their class; any other gap means random weights.
    if missing := [key for key in sorted(info["missing_keys"]) if "pooler" not in key.split(".")]:
        raise BadInput(
            f"{path} does not hold the weights of {type(module).__name__}: {missing[0]} is missing"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            "it was made with another class: give the right --task when exporting",
        )
    return module.eval()


def _class(path: Path, model: Mapping[str, JSON]) -> Any:
    """The model's class: the one it names, else its task's, else the first one that its configuration names."""
    import transformers

    name = str(model.get("class") or "")
    if not name and model.get("task"):
        name = get_task(str(model["task"])).auto_class
    if not name:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name = next(iter(config.get("architectures") or ["AutoModel"]))
    if not hasattr(transformers, name):
        raise BadInput(f"{path}: this transformers has no class {name}")
    return getattr(transformers, name)


def _usual_inputs(module: Any) -> list[dict[str, JSON]]:
    """Inputs of a folder that no export has described, from the one input that its class names as the main one."""
    main, config = module.main_input_name, module.config
    if main == "input_ids":
        return [{"name": n, "dtype": "int64", "shape": ["batch", "sequence"]} for n in (main, "attention_mask")]
    if main == "pixel_values" and isinstance(size := getattr(config, "image_size", 224), int):
        shape = ["batch", getattr(config, "num_channels", 3), size, size]
        return [{"name": main, "dtype": "float32", "shape": shape}]
    if main == "input_values":
        return [{"name": main, "dtype": "float32", "shape": ["batch", "time"]}]
    raise BadInput(
        f"what {type(module).__name__} takes as {main} is not known",
        "export the model first, and name the artifact as the first reference",
    )


@contextlib.contextmanager
def _torch_errors(path: Path | None = None) -> Iterator[None]:
    """What PyTorch, transformers and safetensors raise, as errors that name the folder or the input."""
    try:
        yield
    except (BadInput, MissingPiece):
        raise
    except MemoryError as error:
        raise MissingPiece("not enough memory for the PyTorch model", "use a smaller batch") from error
    except Exception as error:
        text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if "allocate memory" in text:
            raise MissingPiece(f"not enough memory for the PyTorch model: {text}", "use a smaller batch") from error
        if path is not None:
            raise BadInput(f"PyTorch cannot open {path}: {text}") from error
        if isinstance(error, (RuntimeError, IndexError, ValueError)):
            raise BadInput(f"PyTorch cannot run these inputs: {text}") from error
        raise


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
    help="PyTorch, eagerly, on a Hugging Face model folder.",
    providers={"torch": tuple(_PRECISIONS)},
    open=_open,
    available=_available,
)
