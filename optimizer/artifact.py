"""What stages take: an artifact of the store, or a model that somebody brought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.digest import digest_file
from optimizer.errors import BadInput, Damaged
from optimizer.manifest import MANIFEST_NAME, Manifest
from optimizer.types import JSON, Kind, Precision

__all__ = [
    "ENGINE_NAME",
    "PROBE_NAME",
    "RANGES_NAME",
    "RANKING_NAME",
    "ROWS_NAMES",
    "Artifact",
    "Source",
    "SourceModel",
    "variant_words",
]

#: The file of a TensorRT engine.
ENGINE_NAME = "model.engine"
#: The file of a trained model's ranges, beside its weights.
RANGES_NAME = "ranges.json"
#: Rows that a trained model was asked, and what it answered, by which its graph is judged.
PROBE_NAME = "probe.npz"
#: The file of a ranking of nodes.
RANKING_NAME = "ranking.json"
#: What the rows of a calibration set lie in, one of them: values that JSON can say, or arrays.
ROWS_NAMES = ("rows.jsonl", "rows.npz")


@dataclass(frozen=True)
class Artifact:
    """A folder that knows its history.

    Attributes:
        path: the folder; it holds ``manifest.json`` and every file that the manifest names.
        manifest: its record.
        ref: its full name in the store, ``name@version:variant``; empty outside a store.
    """

    path: Path
    manifest: Manifest
    ref: str = ""

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def variant(self) -> str:
        return self.ref.rpartition(":")[2] or self.path.name

    @property
    def compiled(self) -> bool:
        """It is an ONNX file that holds what a provider compiled (EPContext nodes), and no graph to work on."""
        return self.kind is Kind.ONNX and bool(self.manifest.facts.get("ops", {}).get("com.microsoft.EPContext"))

    @property
    def model_file(self) -> Path:
        """``model.onnx``; raises :class:`BadInput` for an artifact that is no ONNX model."""
        self.expect(Kind.ONNX)
        return self.path / "model.onnx"

    @property
    def runnable(self) -> Path:
        """The file that a runtime opens: ``model.onnx``, or ``model.engine``; raises :class:`BadInput` for others."""
        return self.path / ENGINE_NAME if self.kind is Kind.ENGINE else self.model_file

    @property
    def precision(self) -> Precision:
        """The coarsest number format on the way to an answer: the engine's, or what most weights are stored in."""
        facts = self.manifest.facts
        if "engine" in facts:
            return Precision(facts["engine"]["precision"])
        if 4 in facts.get("blocks", {}).get("bits", ()):
            return Precision.INT4
        weights = facts.get("weights", {})
        if any(name.startswith("float8") for name in weights):
            return Precision.FP8
        if facts.get("quantized", {}).get("total"):
            return Precision.INT8
        total = sum(weights.values()) or 1
        for name, precision in (("bfloat16", Precision.BF16), ("float16", Precision.FP16)):
            if weights.get(name, 0) * 2 > total:
                return precision
        return Precision.FP32

    def expect(self, kind: Kind) -> None:
        """Raise :class:`BadInput`, naming both kinds, when this artifact is of another one."""
        if self.kind is not kind:
            hint = "`ml-opt ls` lists what there is, and of which kind"
            if self.kind is Kind.GENERATOR:
                hint = "other precisions of it are exported anew: ml-opt export-genai MODEL --precision int4"
            raise BadInput(f"{self.ref or self.path} is {self.kind.phrase}, and {kind.phrase} is wanted", hint)

    @property
    def model_info(self) -> dict[str, JSON]:
        """What the manifest says of the model; inputs and outputs as the export named them, else as the file does."""
        facts = self.manifest.facts
        return {name: facts.get(name, []) for name in ("inputs", "outputs")} | self.manifest.model

    @classmethod
    def open(cls, path: Path, ref: str = "") -> Artifact:
        """Open the artifact in a folder; raises :class:`Damaged` when its manifest cannot be read."""
        return cls(path, Manifest.read(path), ref)

    @classmethod
    def found_in(cls, path: Path) -> Artifact | None:
        """The artifact in a folder that somebody named by its path; None where there is something else, or nothing.

        Raises:
            Damaged: there are an artifact's files, beside a manifest that cannot be read.
        """
        if not (path / MANIFEST_NAME).is_file():
            return None
        try:
            return cls.open(path)
        except Damaged:
            if any((path / name).is_file() for name in ("model.onnx", ENGINE_NAME, RANKING_NAME, *ROWS_NAMES)):
                raise
            return None  # a folder of pictures may hold a manifest.json of somebody else's

    def check(self, digest: Callable[[Path], str] = digest_file) -> None:
        """Compare every file with the manifest.

        Args:
            digest: how to hash one file; give a cache to skip files that have not changed since they were hashed.

        Raises:
            Damaged: a file is missing, is one too many, or has other bytes.
        """
        found = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_symlink() or not p.is_dir()}
        found.discard(MANIFEST_NAME)
        expected = set(self.manifest.files)
        name = self.ref or str(self.path)
        hint = f"it cannot be trusted; make it again with: {self.manifest.command}"
        if self.ref:
            hint = f"it cannot be trusted; remove it (ml-opt rm {self.ref}) and make it again: {self.manifest.command}"
        if missing := sorted(expected - found):
            raise Damaged(f"{name} is damaged: {missing[0]} is missing", hint)
        if extra := sorted(found - expected):
            raise Damaged(f"{name} is damaged: {extra[0]} is not in its manifest", hint)
        for file in sorted(expected):
            entry = self.manifest.files[file]
            path = self.path / file
            if path.is_symlink():
                raise Damaged(f"{name} is damaged: {file} is a link out of the artifact", hint)
            try:
                size = path.stat().st_size
                same = size == entry["bytes"] and digest(path) == entry["sha256"]
            except OSError as error:
                raise Damaged(f"{name} is damaged: {file} cannot be read: {error.strerror}", hint) from error
            if size != entry["bytes"]:
                raise Damaged(f"{name} is damaged: {file} has {size} bytes, its manifest says {entry['bytes']}", hint)
            if not same:
                raise Damaged(f"{name} is damaged: the content of {file} is not what its manifest says", hint)


@dataclass(frozen=True)
class SourceModel:
    """A model that somebody brought, before anything was done to it.

    Attributes:
        spec: what the user typed: a hub id, a folder, or an ``.onnx`` file.
        path: the folder or file on this machine.
        digest: sha256 of what decides the result: weights, configuration, tokenizer.
        type: ``"folder"``, ``"hub"`` or ``"file"``.
        revision: the hub's commit, or empty.
        files: the files that were hashed, relative to the folder.
    """

    spec: str
    path: Path
    digest: str
    type: str
    revision: str = ""
    files: tuple[str, ...] = field(default=())

    @property
    def kind(self) -> Kind:
        return Kind.SOURCE

    def to_json(self) -> dict[str, JSON]:
        """How a manifest names it."""
        return {
            "type": self.type,
            "spec": self.spec,
            "path": str(self.path),
            "digest": self.digest,
            "revision": self.revision,
        }


#: Anything that a stage can start from.
Source = Artifact | SourceModel


def variant_words(source: Source) -> tuple[str, list[str]]:
    """A variant's precision and its modifiers: ``fp32-ort`` → ``("fp32", ["ort"])``; a source model has none."""
    if isinstance(source, SourceModel):
        return "fp32", []
    head, *rest = source.variant.split("-")
    return head, rest
