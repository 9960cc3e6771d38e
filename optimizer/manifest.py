"""The record that lies beside every artifact: what was asked, what came out, and the line that makes it again.

The format is documented in ``docs/manifest.md`` and pinned by a golden file for every schema number.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, Damaged
from optimizer.types import JSON, Kind, TensorSpec

__all__ = ["MANIFEST_NAME", "SCHEMA", "Manifest"]

MANIFEST_NAME = "manifest.json"

#: Raised by one whenever a reader of the older number would misread the file.
SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """Everything known about one artifact.

    Attributes:
        kind: what the artifact is.
        key: sha256 over what decides the content (stage, source, options, data, library versions).
        stage: ``{"name", "version"}`` of the stage that made it.
        source: what it was made from: ``{"type": "artifact", "ref", "key", "digest"}`` or
            ``{"type": "folder" | "hub" | "file", "path" or "id", "digest", "revision"}``.
        model: what the model is, handed down from the export: task, architecture, limits, where PyTorch finds it.
        options: what was asked, option by option.
        facts: what the files say when read back.
        files: file name → ``{"sha256", "bytes"}`` of every file beside the manifest.
        environment: versions and processor features of the machine that made it.
        command: the command line that makes it again.
        seconds: how long the stage ran.
        created: UTC time, ISO 8601.
        warnings: what a reader should know before trusting the artifact.
    """

    kind: Kind
    key: str
    stage: dict[str, JSON]
    source: dict[str, JSON]
    model: dict[str, JSON]
    options: dict[str, JSON]
    facts: dict[str, JSON]
    files: dict[str, dict[str, JSON]]
    environment: dict[str, JSON]
    command: str
    seconds: float
    created: str
    warnings: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, JSON]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["kind"] = self.kind.value
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_json(cls, data: JSON, where: str) -> Manifest:
        """Check and build a manifest from parsed JSON.

        Args:
            data: the parsed document.
            where: the file's name, for errors.

        Raises:
            BadInput: the manifest was written by a newer ml-opt.
            Damaged: a field is missing, unknown or of the wrong type.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or type(schema) is not int or schema < 1:
            raise Damaged(f"{where} is not a manifest: it has no schema number")
        if schema > SCHEMA:
            raise BadInput(
                f"{where} has manifest schema {schema}; this ml-opt reads up to {SCHEMA}",
                "run: pip install --upgrade ml-opt",
            )
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        missing = sorted(set(known) - set(data) - {"warnings"})
        if unknown or missing:
            raise Damaged(f"{where} is not a manifest: missing {missing}, unknown {unknown}")
        values: dict[str, Any] = dict(data)
        hints = typing.get_type_hints(cls)
        for name, value in values.items():
            want = typing.get_origin(hints[name]) or hints[name]
            if name == "kind":
                try:
                    values[name] = Kind(value)
                except ValueError:
                    raise Damaged(f"{where}: unknown kind {value!r}") from None
            elif want is float and isinstance(value, int) and not isinstance(value, bool):
                values[name] = float(value)
            elif not isinstance(value, want):
                raise Damaged(f"{where}: {name} should be {want.__name__}, not {type(value).__name__}")
        if wrong := _wrong_inside(values):
            raise Damaged(f"{where}: {wrong}")
        return cls(**values)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``folder/manifest.json``.

        Raises:
            Damaged: there is none, or it cannot be parsed.
            BadInput: it was written by a newer ml-opt.
        """
        path = folder / MANIFEST_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Damaged(f"{folder} has no {MANIFEST_NAME}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise Damaged(f"{path} cannot be read: {error}") from None
        return cls.from_json(data, str(path))

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json`` in a form made for people and diffs."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs as read back from the file."""
        return tuple(TensorSpec.from_json(spec) for spec in self.facts.get("inputs", ()))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs as read back from the file."""
        return tuple(TensorSpec.from_json(spec) for spec in self.facts.get("outputs", ()))

    @property
    def digest(self) -> str:
        """sha256 of the artifact's content: of the names and digests of its files."""
        from optimizer.digest import digest_json

        return digest_json({name: entry["sha256"] for name, entry in self.files.items()})

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def _wrong_inside(values: Mapping[str, JSON]) -> str:
    """What is wrong with the parts that readers rely on, or ``""``; so that none of them meets a KeyError later."""
    stage = values["stage"]
    if not isinstance(stage.get("name"), str) or type(stage.get("version")) is not int:
        return "stage has no name or no version"
    for name, entry in values["files"].items():
        if not isinstance(entry, Mapping) or set(entry) != {"sha256", "bytes"}:
            return f"files[{name!r}] should have sha256 and bytes, and nothing else"
        if not isinstance(entry["sha256"], str) or type(entry["bytes"]) is not int:
            return f"files[{name!r}] has a sha256 or a size of the wrong type"
    if not all(isinstance(text, str) for text in values.get("warnings", ())):
        return "warnings should be sentences"
    for part in ("inputs", "outputs"):
        specs = values["facts"].get(part, [])
        if not isinstance(specs, list) or not all(map(_is_spec, specs)):
            return f"facts.{part} should be a list of tensors with name, dtype and shape"
    return ""


def _is_spec(spec: JSON) -> bool:
    return (
        isinstance(spec, Mapping)
        and set(spec) == {"name", "dtype", "shape"}
        and isinstance(spec["name"], str)
        and isinstance(spec["dtype"], str)
        and isinstance(spec["shape"], list)
        and all(isinstance(dim, (int, str)) for dim in spec["shape"])
    )
