"""What can stand in a benchmark, and how it is written.

REF[+PROVIDER]       an artifact of the store: minilm:fp32, minilm:fp32+openvino:bf16
FILE.onnx[+PROVIDER] any ONNX file
source[:PRECISION]   the model that the first REF was exported from, run by PyTorch: bf16, compiled, compiled-bf16, …
torch:PATH[:PRECISION]  a Hugging Face model folder, run by PyTorch
fake:FILE.json       a planted model (see optimizer/runtimes/fake.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer import generator
from optimizer.artifact import Artifact, SourceModel
from optimizer.data.batching import IN_ORDER, SORTED, Batching
from optimizer.environment import gpu_facts, has_module, version_of
from optimizer.errors import BadInput, MissingPiece
from optimizer.runtime import Candidate, Provider, discover, get_runtime, preferred
from optimizer.source import resolve_source
from optimizer.store import Store
from optimizer.types import JSON, Device, Kind

__all__ = [
    "Entrant",
    "candidate_from_json",
    "candidate_to_json",
    "check_source",
    "default_baseline",
    "entrants",
    "file_bytes",
    "parse",
    "provider_of",
    "usually_batched",
    "with_model_of_first",
]

_CPU = Provider("cpu")
#: What begins a candidate that is no reference; a model of the store cannot be benched under these names.
_WORDS = ("source", "torch", "fake")


@dataclass(frozen=True)
class Entrant:
    """One line of the table.

    Attributes:
        candidate: what is opened, and how.
        artifact: where it comes from, when it comes from the store; ``source`` carries the artifact it was asked for.
        batchings: how it gets the rows of a data file; the first is its own, by which it is judged, and the others are
            timed beside it. Empty for the way that everyone gets them.
    """

    candidate: Candidate
    artifact: Artifact | None = None
    batchings: tuple[Batching, ...] = ()

    @property
    def label(self) -> str:
        return self.candidate.label


def provider_of(device: Device) -> Provider:
    """Where something runs that names no provider: ``auto`` is the GPU where there is one and ONNX Runtime's build
    for it is installed, the processor otherwise.
    """
    if device is Device.AUTO:
        device = Device.CUDA if gpu_facts() and version_of("onnxruntime-gpu") else Device.CPU
    return Provider(device.value)


def entrants(refs: Sequence[str], providers: Sequence[str], store: Store, default: Provider = _CPU) -> list[Entrant]:
    """Every candidate that was asked for: references without a provider of their own, once for each given one.

    Raises:
        BadInput: something is not there, or cannot run on the provider that it is given.
        UnknownName: an artifact, provider or precision that does not exist.
    """
    found: list[Entrant] = []
    for text in refs:
        first = found[0].artifact if found else None
        _, own = _split(text)
        takes_one = own is None and text.partition(":")[0] not in _WORDS
        for provider in providers if takes_one and providers else (None,):
            asked = f"{text}+{Provider.parse(provider)}" if provider else text
            found.append(parse(asked, store, first, default))
    return _unique(found)


def parse(text: str, store: Store, first: Artifact | None = None, default: Provider = _CPU) -> Entrant:
    """One candidate as it was typed.

    Args:
        text: see the grammar at the top of this file.
        store: where references are looked up.
        first: the artifact whose source is meant by ``source``.
        default: where it runs when neither the text nor the artifact says so.
    """
    head, asked = _split(text)
    word, _, rest = head.partition(":")
    if word == "source":
        if asked is not None:
            raise BadInput(f"{text}: source runs on PyTorch; leave +{asked} out")
        if first is None:
            raise BadInput("source is the model that the first reference was exported from; put that reference first")
        return _source(first, rest, store)
    if word in ("torch", "fake") and rest:
        return _folder_or_fake(text, word, rest, asked)
    if head.endswith(".onnx") or "/" in head:
        path = Path(head).expanduser()
        if not path.is_file():
            raise BadInput(f"no such file: {head}", "give a reference of the store (`ml-opt ls`) or an .onnx file")
        return Entrant(_onnx(text, path, asked or default))
    artifact = store.get(head)
    model = artifact.model_info
    prefers = model.get("prefers")
    provider = asked or (preferred(str(prefers)) if prefers else default)
    if artifact.kind is Kind.GENERATOR:
        return Entrant(Candidate(text, artifact.path, provider, artifact.manifest.key, model), artifact)
    if artifact.kind is Kind.ENGINE:
        return Entrant(_engine(text, artifact, provider, model), artifact)
    return Entrant(_onnx(text, artifact.model_file, provider, artifact.manifest.key, model), artifact)


def _split(text: str) -> tuple[str, Provider | None]:
    """What is before the last ``+``, and the provider behind it; a file's name may hold a ``+`` of its own."""
    head, plus, tail = text.rpartition("+")
    if not plus or Path(text).is_file():
        return text, None
    provider = Provider.parse(tail)
    # What writes text has providers of its own: how a cache is kept means nothing to a session.
    if not any(str(provider) in runtime.providers for runtime in generator.discover().values()):
        get_runtime(provider)
    return head, provider


def _onnx(label: str, path: Path, provider: Provider, key: str = "", model: dict[str, JSON] | None = None) -> Candidate:
    if not get_runtime(provider).onnx:
        takers = [name for runtime in discover().values() if runtime.onnx for name in runtime.providers]
        raise BadInput(f"{label}: {provider} does not run ONNX files", f"use one of: {', '.join(takers)}")
    return Candidate(label, path, provider, key, model or {})


def _engine(label: str, artifact: Artifact, provider: Provider, model: dict[str, JSON]) -> Candidate:
    if not get_runtime(provider).engines:
        takers = [name for runtime in discover().values() if runtime.engines for name in runtime.providers]
        raise BadInput(f"{label}: {provider} does not run engines", f"use {' or '.join(takers)}, or leave it out")
    return Candidate(label, artifact.runnable, provider, artifact.manifest.key, model)


def _folder_or_fake(text: str, word: str, rest: str, asked: Provider | None) -> Entrant:
    if asked is not None:
        raise BadInput(f"{text}: {word}: names its runtime; leave +{asked} out")
    precision = ""
    if word == "torch":
        path, colon, last = rest.rpartition(":")
        if colon and last in get_runtime(Provider("torch")).providers["torch"]:
            rest, precision = path, last
    place = Path(rest).expanduser()
    if not (place.is_dir() if word == "torch" else place.is_file()):
        raise BadInput(f"no such {'folder' if word == 'torch' else 'file'}: {rest}")
    return Entrant(Candidate(text, place, Provider(word, precision)))


def _source(first: Artifact, precision: str, store: Store) -> Entrant:
    source = dict(first.model_info.get("source") or {})
    path = Path(str(source.get("path", "")))
    if not source or not path.exists():
        raise BadInput(
            f"{first.ref} was exported from {source.get('path') or 'an unknown place'}, which is not there any more",
            "name another baseline: --against REF",
        )
    label = f"source:{precision}" if precision else "source"
    if path.is_file():
        if precision:
            raise BadInput(f"{label}: the source of {first.ref} is an ONNX file, which has its own precision")
        return Entrant(_onnx(label, path, _CPU, _content(path, store), first.model_info), first)
    provider = Provider("torch", precision)
    get_runtime(provider)
    return Entrant(Candidate(label, path, provider, _content(path, store), first.model_info), first)


def _content(path: Path, store: Store) -> str:
    """The digest of a source's files as they are now, by which two reports know it again; empty where they are no
    model: whoever opens them says what is missing.
    """
    try:
        return _resolved(path, store).digest
    except (BadInput, MissingPiece):
        return ""


def _resolved(path: Path, store: Store) -> SourceModel:
    return resolve_source(str(path), allow_pickle=True, digest=store.digests, recall=store.digests.recall)


def check_source(artifact: Artifact, store: Store) -> None:
    """Refuse to compare with files that took the place of the model that was exported (:class:`BadInput`)."""
    source = artifact.model_info.get("source") or {}
    path = Path(str(source.get("path", "")))
    if not source or not path.exists():
        return  # said better by whoever opens it
    if _resolved(path, store).digest != source["digest"]:
        raise BadInput(
            f"{path} is not the model any more that {artifact.ref} was exported from: its files have changed",
            "export it again (it becomes a new version); `ml-opt verify --against golden` needs no source",
        )


def default_baseline(found: Sequence[Entrant], store: Store) -> Entrant:
    """What everything is compared with when nothing is asked for: the first reference's source where it can run."""
    first = found[0]
    if any(e.label == "source" for e in found):
        return next(e for e in found if e.label == "source")
    if first.artifact is None:
        return first
    try:
        source = parse("source", store, first.artifact)
    except (BadInput, MissingPiece):
        return first
    needs = ("torch", "transformers") if source.candidate.provider.name == "torch" else ("onnxruntime",)
    return source if all(has_module(name) for name in needs) else first


def usually_batched(entrant: Entrant) -> Entrant:
    """PyTorch with batches of 32 sorted by length, which is the best that its users do, and beside them in the order of
    the data, which is what most do. Anything else as it is.
    """
    torch = entrant.candidate.provider.name == "torch"
    return replace(entrant, batchings=(SORTED, IN_ORDER)) if torch else entrant


def with_model_of_first(found: Sequence[Entrant]) -> list[Entrant]:
    """Plain files and folders take the description of the first artifact, as all answer the same inputs."""
    model = next((e.candidate.model for e in found if e.candidate.model), {})
    return [e if e.candidate.model else replace(e, candidate=replace(e.candidate, model=model)) for e in found]


def _unique(found: list[Entrant]) -> list[Entrant]:
    """The same candidate twice is measured twice (that is how noise is seen), under two labels."""
    seen: dict[str, int] = {}
    out = []
    for entrant in found:
        count = seen[entrant.label] = seen.get(entrant.label, 0) + 1
        if count > 1:
            renamed = replace(entrant.candidate, label=f"{entrant.label} #{count}")
            entrant = replace(entrant, candidate=renamed)
        out.append(entrant)
    return out


def file_bytes(entrant: Entrant) -> int:
    """Size of what must be shipped to run a candidate: the graph and its weights, or a folder's weights."""
    path = entrant.candidate.path
    if path.is_dir():
        weights = [*path.glob("*.safetensors")] or [*path.glob("pytorch_model*.bin")]
        weights = weights or [*path.glob("*.onnx"), *path.glob("*.onnx.data")]  # of a text generator
        return sum(f.stat().st_size for f in weights)
    if path.suffix == ".xml":  # OpenVINO's own format
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    if path.suffix != ".onnx":
        return path.stat().st_size
    from optimizer.graph.io import external_files, load

    try:
        beside = {path.parent / name for name in external_files(load(path))}
    except (BadInput, MissingPiece):  # a file that cannot be read says so in its own row
        beside = {p for p in path.parent.glob(f"{path.name}*") if p != path}
    return path.stat().st_size + sum(f.stat().st_size for f in beside)


def candidate_to_json(candidate: Candidate) -> dict[str, JSON]:
    """A candidate as the worker is told of it."""
    return {
        "label": candidate.label,
        "path": str(candidate.path),
        "provider": str(candidate.provider),
        "key": candidate.key,
        "model": dict(candidate.model),
    }


def candidate_from_json(data: dict[str, Any]) -> Candidate:
    """The candidate that :func:`candidate_to_json` wrote."""
    return Candidate(data["label"], Path(data["path"]), Provider.parse(data["provider"]), data["key"], data["model"])
