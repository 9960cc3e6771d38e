"""Finding the model that somebody named: a folder, an ``.onnx`` file, or a model of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from optimizer.artifact import SourceModel
from optimizer.digest import digest_file, digest_json, digest_tree
from optimizer.errors import BadInput, MissingPiece, missing_package

__all__ = ["resolve_source"]

#: What decides how a model behaves. README files, images and other formats of the same weights do not.
_DECIDING = (
    "*.json",
    "*.txt",
    "*.model",
    "*.py",
    "*.jinja",
    "1_Pooling/*.json",
)
_SAFE_WEIGHTS = ("*.safetensors",)
_PICKLE_WEIGHTS = ("pytorch_model*.bin",)
#: Weights that transformers does not load from a folder; named in the error when there is nothing else.
_FOREIGN_WEIGHTS = ("*.pt", "*.pth", "*.ckpt", "*.bin", "*.h5", "*.msgpack", "*.gguf", "*.onnx")

#: ``recall(question, answer)``: the answer, from memory when the question was asked before.
Recall = Callable[[str, Callable[[], str]], str]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")


def resolve_source(
    spec: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    digest: Callable[[Path], str] = digest_file,
    recall: Recall = lambda question, answer: answer(),
) -> SourceModel:
    """Turn what was typed into files on this machine.

    Args:
        spec: a folder, an ``.onnx`` file, or a hub id such as ``sentence-transformers/all-MiniLM-L6-v2``.
        revision: a branch, tag or commit of the hub.
        allow_pickle: take weights stored as Python pickles, which can run code when they are loaded.
        digest: how to hash one file.
        recall: remembers answers that follow from content alone (:meth:`DigestCache.recall`).

    Raises:
        BadInput: nothing of that name, or it is not a model.
        MissingPiece: the hub cannot be reached, or its client is not installed.
    """
    path, is_file, is_dir = _look(spec)
    if is_file:
        return _file(spec, path, digest, recall)
    if is_dir:
        if revision is not None:
            raise BadInput(f"--revision is for hub ids; {spec} is a folder")
        return _folder(spec, path, "folder", "", allow_pickle, digest)
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix == ".onnx" or not _HUB_ID.match(spec):
        raise BadInput(
            f"no such file or folder: {spec}",
            "give a model folder (with config.json), an .onnx file, or a hub id like org/name",
        )
    folder, commit = _download(spec, revision, allow_pickle)
    return _folder(spec, folder, "hub", commit, allow_pickle, digest)


def _look(spec: str) -> tuple[Path, bool, bool]:
    """The path that was typed, and whether it is a file or a folder."""
    if not spec.strip():
        raise BadInput("the model's name is empty", "give a model folder, an .onnx file, or a hub id like org/name")
    try:
        path = Path(spec).expanduser()
        return path, path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # too long a name, no permission, no such home folder
        raise BadInput(f"{spec[:200]} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _file(spec: str, path: Path, digest: Callable[[Path], str], recall: Recall) -> SourceModel:
    if path.suffix != ".onnx":
        raise BadInput(
            f"{spec} is a file, but not an .onnx file",
            "give the model's folder (with config.json and safetensors), or an .onnx file",
        )
    if path.stat().st_size == 0:
        raise BadInput(f"{spec} is empty")
    own = digest(path)
    # Reading the graph takes onnx_ir; a file that was read before is known by its digest, and its answer with it.
    weights: list[str] = json.loads(recall(f"external files of {own}", lambda: _external_files(path)))
    for name in weights:
        if not (path.parent / name).is_file():
            raise BadInput(f"{spec}: the weights file {name} is missing")
    # The file's own name is not content: the same bytes under another name are the same version.
    content = digest_json({"": own, **{name: digest(path.parent / name) for name in weights}}) if weights else own
    # Not resolved: behind a link, the weights files lie beside the link.
    return SourceModel(spec, path.absolute(), content, "file", "", (path.name, *weights))


def _external_files(path: Path) -> str:
    from optimizer.graph.io import external_files, load

    return json.dumps(external_files(load(path)))


def _folder(
    spec: str, path: Path, type_: str, commit: str, allow_pickle: bool, digest: Callable[[Path], str]
) -> SourceModel:
    if not (path / "config.json").is_file():
        raise BadInput(f"{spec} is not a model folder: it has no config.json", _what_it_is(path))
    weights = _matching(path, _SAFE_WEIGHTS)
    if not weights:
        pickles = _matching(path, _PICKLE_WEIGHTS)
        if not pickles:
            foreign = _matching(path, _FOREIGN_WEIGHTS)
            raise BadInput(
                f"{spec} has no weights: no *.safetensors in it",
                f"{foreign[0].name} cannot be read from a model folder; save it with save_pretrained"
                if foreign and foreign[0].suffix != ".onnx"
                else f"did you mean {foreign[0]}?"
                if foreign
                else "",
            )
        if not allow_pickle:
            raise BadInput(
                f"{spec} has its weights as a Python pickle ({pickles[0].name}), which can run code when loaded",
                "save it as safetensors (model.save_pretrained), or add --allow-pickle if you trust where it came from",
            )
        weights = pickles
    files = [*weights, *_matching(path, _DECIDING)]
    return SourceModel(
        spec,
        path.resolve(),
        digest_tree(path, files, digest),
        type_,
        commit,
        tuple(str(f.relative_to(path)) for f in files),
    )


def _what_it_is(path: Path) -> str:
    """What to do with a folder that has no ``config.json``."""
    if (path / "adapter_config.json").is_file():
        return (
            "it holds an adapter: merge that into its base model first (peft's merge_and_unload), and save the result"
        )
    for pattern in ("*.onnx", "*/config.json", "*/*.onnx"):
        for found in sorted(path.glob(pattern)):
            return f"did you mean {found.parent if found.name == 'config.json' else found}?"
    return "a model folder holds config.json beside its weights"


def _matching(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({f for pattern in patterns for f in path.glob(pattern) if f.is_file()})


def _download(spec: str, revision: str | None, allow_pickle: bool) -> tuple[Path, str]:
    """The folder of a hub snapshot and its commit; from the local cache when the hub cannot be reached."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise missing_package(error.name or "huggingface_hub", f"downloading {spec}") from None
    wanted = [*_DECIDING, *_SAFE_WEIGHTS, *(_PICKLE_WEIGHTS if allow_pickle else ())]
    at = f" at revision {revision}" if revision else ""
    try:
        folder = Path(snapshot_download(spec, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        raise BadInput(f"{spec} is gated on the hub", "ask for access there, then run: hf auth login") from error
    except RevisionNotFoundError as error:
        raise BadInput(f"{spec} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise BadInput(f"no folder and no hub model is called {spec}", "check the spelling, or give a path") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingPiece(
            f"{spec} is no folder here, and the hub could not be reached to look for a model{at} of that name",
            "give a local folder, or connect to the internet (HF_HUB_OFFLINE must not be 1)",
        ) from error
    return folder, folder.name
