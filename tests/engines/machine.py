"""A machine with a GPU that is made of numpy, and engines in artifacts, for tests of what runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.fake_cuda import FakeCuda
from engines.fake_trt import FakeTrt

from optimizer.artifact import ENGINE_NAME, Artifact
from optimizer.digest import digest_file
from optimizer.engines.flavors import FLAVORS, Flavor
from optimizer.engines.vendor import Vendor
from optimizer.manifest import Manifest
from optimizer.runtime import TENSORRT_NATIVE, Provider, SessionOptions, get_runtime
from optimizer.runtimes import tensorrt
from optimizer.store import file_entries
from optimizer.types import Kind

PROVIDER = Provider(TENSORRT_NATIVE)
NAMES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "BF16": "bfloat16"}
#: Names of dimensions that are open, by their place.
OPEN = ("batch", "steps", "more")


@dataclass
class Machine:
    """What a process on a machine with a GPU sees."""

    folder: Path
    patch: Any
    gpu: FakeCuda = field(default_factory=FakeCuda)
    flavor: Flavor = FLAVORS["rtx"]

    def __post_init__(self) -> None:
        self.patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
        self.patch.setattr(tensorrt, "cuda", lambda: self.gpu)
        self.patch.setattr(tensorrt, "choose", lambda name, wanted_for: FLAVORS[name])
        self.patch.setattr(tensorrt, "load", lambda flavor: self.vendor)
        self.start()

    def start(self, version: str = "1.7.1.116") -> None:
        """A new process: the vendor's package is imported afresh."""
        self.trt = FakeTrt(self.gpu, version)
        self.vendor = Vendor(self.flavor, self.trt)

    def put(self, plan: bytes, told: dict[str, Any], name: str = "fp32-rtx", **more: Any) -> Artifact:
        """An artifact with an engine in it.

        Args:
            plan: the engine.
            told: ``inputs`` and ``outputs`` of the plan.
            name: the variant.
            more: ``options``, ``source``, ``limits``, and facts of the engine.
        """
        path = self.folder / "models" / "toy" / "1" / name
        path.mkdir(parents=True)
        (path / ENGINE_NAME).write_bytes(plan)
        engine = {
            "flavor": self.flavor.name,
            "version": "1.7.1.116",
            "precision": "fp32",
            "compute_capabilities": ["8.0", "8.6", "8.9", "12.0"],
            **more.pop("engine", {}),
        }
        facts = {
            "inputs": [_spec(each) for each in told["inputs"]],
            "outputs": [_spec(each) for each in told["outputs"]],
            "engine": engine,
            "layers": {"products": {"float32": 3}},
        }
        return self.write(path, Kind.ENGINE, facts, **more)

    def write(self, path: Path, kind: Kind, facts: dict[str, Any], **more: Any) -> Artifact:
        Manifest(
            kind=kind,
            key="0123456789abcdef" * 4,
            stage={"name": "build-trt-engine", "version": 1},
            source=more.get("source", {"type": "artifact", "ref": "toy@1:fp32", "digest": "d"}),
            model={"limits": more.get("limits", {}), "prefers": TENSORRT_NATIVE},
            options=more.get("options", {}),
            facts=facts,
            files=file_entries(path, digest_file),
            environment={},
            command="ml-opt build-trt-engine toy:fp32",
            seconds=0.0,
            created="2026-11-24T00:00:00+00:00",
        ).write(path)
        return Artifact.open(path)

    def open(self, artifact: Artifact) -> Any:
        options = SessionOptions(PROVIDER)
        return get_runtime(PROVIDER).open(artifact.runnable, options, model=artifact.manifest.model)


def _spec(each: dict[str, Any]) -> dict[str, Any]:
    shape = [size if size >= 0 else OPEN[place] for place, size in enumerate(each["shape"])]
    return {"name": each["name"], "dtype": NAMES[each["dtype"]], "shape": shape}
