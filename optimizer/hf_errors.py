"""What transformers, torch and safetensors raise for a bad model folder, in words that name the folder and the cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.errors import BadInput, MlOptError, missing_package
from optimizer.types import JSON

__all__ = ["config_error", "first_lines", "weights_error"]


def config_error(error: Exception, folder: Path, raw: Mapping[str, JSON]) -> MlOptError:
    """For a ``config.json`` that cannot be turned into a configuration."""
    text = str(error)
    if isinstance(error, ImportError):
        return missing_package(error.name or text.split()[0], f"loading {folder}")
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return BadInput(
            f"transformers does not know the architecture {raw['model_type']!r} of {folder}",
            "a newer transformers may; or export it to .onnx with its own library and give that file",
        )
    return BadInput(f"{folder / 'config.json'} cannot be used: {first_lines(error)}")


def weights_error(error: Exception, folder: Path, raw: Mapping[str, JSON], task: str, saved_for: str) -> MlOptError:
    """For a folder whose configuration is sound and whose model cannot be built or filled.

    Args:
        error: what was raised.
        folder: the folder.
        raw: its ``config.json``.
        task: what was asked of it.
        saved_for: the task that it was saved for.
    """
    text = str(error)
    if "Unrecognized configuration class" in text or "for this kind of AutoModel" in text:
        return BadInput(f"a {raw['model_type']} model cannot do {task}", f"this one was saved for: --task {saved_for}")
    if isinstance(error, ImportError):
        return missing_package(error.name or text.split()[0], f"loading {folder}")
    pickled = not any(folder.glob("*.safetensors"))
    if "Weights only load failed" in text:
        return BadInput(
            f"the weights of {folder} are a pickle that holds more than tensors, or no pickle at all",
            "save it as safetensors (model.save_pretrained) where it can be loaded",
        )
    # A damaged pickle surfaces as whatever its parser stumbled on: struct.error, IndexError, EOFError, …
    if type(error).__name__ == "SafetensorError" or (pickled and not isinstance(error, (OSError, ValueError))):
        return BadInput(
            f"the weights of {folder} are damaged or cut short: {first_lines(error)}", "download or save them again"
        )
    return BadInput(f"{folder} cannot be loaded for {task}: {first_lines(error)}")


def first_lines(error: Exception) -> str:
    """The beginning of an exception's text, on one line; its type where the text says nothing by itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])[:400]
    if isinstance(error, (OSError, ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
