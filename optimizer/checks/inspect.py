"""inspect: what an artifact is made of: layers, number formats, what was fused, memory, and the shapes it takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Artifact
from optimizer.check import Check
from optimizer.errors import MlOptError
from optimizer.options import Options, opt
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    from optimizer.engines.layers import Layer
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "SCHEMA", "Inspect", "InspectReport"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1


class Inspect(Options):
    """Options of inspect."""

    layers: bool = opt(False, "List every layer.")
    engine: bool = opt(True, "Ask the engine itself, where there is a GPU that opens it.")


@dataclass(frozen=True)
class InspectReport:
    """What an artifact is made of.

    Attributes:
        ref: the artifact.
        kind: what it is.
        precision: the coarsest number format on the way to an answer.
        bytes: of its files; ``weights`` by number format, or of an engine as a whole.
        memory: bytes at run time, where the builder names them.
        network: numbers of the graph: layers, types, products by number format.
        engine: the same of the engine after fusing; empty for a graph, or where the builder did not tell.
        profiles: shapes that an engine takes: input → min, opt, max.
        about: flavour, version, compute capabilities of an engine.
        layers: the engine's where there are any, else the graph's.
        inspector: what the vendor's inspector says of the opened engine.
        unopened: why there is none.
        listed: whether the layers are to be shown.
    """

    ref: str
    kind: str
    precision: str
    bytes: int
    weights: dict[str, int]
    memory: dict[str, int]
    network: dict[str, JSON]
    engine: dict[str, JSON]
    profiles: list[JSON]
    about: dict[str, JSON]
    layers: tuple[Layer, ...]
    inspector: JSON = None
    unopened: str = ""
    listed: bool = field(default=False, compare=False)

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "inspect",
            "schema": SCHEMA,
            "ref": self.ref,
            "kind": self.kind,
            "precision": self.precision,
            "bytes": self.bytes,
            "weights": self.weights,
            "memory": self.memory,
            "network": self.network,
            "engine": self.engine,
            "profiles": self.profiles,
            "about": self.about,
            "layers": [layer.to_json() for layer in self.layers],
            "inspector": self.inspector,
            "unopened": self.unopened,
        }


def _run(refs: tuple[str, ...], options: Inspect, store: Store, progress: Progress) -> InspectReport:
    (ref,) = refs
    artifact = store.get(ref)
    artifact.check(store.digests)
    if artifact.kind is Kind.ENGINE:
        return _engine(artifact, options, progress)
    return _graph(artifact, options)


def _engine(artifact: Artifact, options: Inspect, progress: Progress) -> InspectReport:
    from optimizer.engines.layers import Layer
    from optimizer.stages.build_trt_engine import LAYERS_NAME

    facts = artifact.manifest.facts
    record = facts["engine"]
    kept = json.loads((artifact.path / LAYERS_NAME).read_text(encoding="utf-8"))
    layers = tuple(Layer.from_json(each) for each in kept["engine"] or kept["network"])
    inspector, unopened = _ask(artifact, progress) if options.engine else (None, "it was not asked")
    about = ("flavor", "version", "compute_capabilities", "gpu", "driver", "profiles_why", "build_seconds")
    return InspectReport(
        artifact.ref,
        artifact.kind.value,
        artifact.precision.value,
        artifact.manifest.bytes,
        {"engine": int(facts["plan"]["bytes"])},
        dict(record["memory"]),
        dict(facts["network"]),
        dict(facts["layers"]) if kept["engine"] else {},
        list(record["profiles"]),
        {name: record[name] for name in about},
        layers,
        inspector,
        unopened,
        options.layers,
    )


def _ask(artifact: Artifact, progress: Progress) -> tuple[JSON, str]:
    """What the vendor's inspector says, or why it says nothing."""
    from optimizer.runtime import TENSORRT_NATIVE, Provider, SessionOptions, get_runtime

    progress("opening the engine")
    provider = Provider(TENSORRT_NATIVE)
    try:
        session: Any = get_runtime(provider).open(
            artifact.runnable, SessionOptions(provider), model=artifact.model_info
        )
    except MlOptError as error:
        return None, error.message
    try:
        return json.loads(session.inspect()), ""
    finally:
        session.close()


def _graph(artifact: Artifact, options: Inspect) -> InspectReport:
    from optimizer.engines.layers import summary
    from optimizer.graph.io import MODEL_NAME, graphs, load

    model = load(artifact.path / MODEL_NAME if artifact.kind is Kind.GENERATOR else artifact.model_file)
    layers = tuple(_layer(node) for graph in graphs(model) for node in graph)
    facts = artifact.manifest.facts
    numbers = summary(layers)
    numbers["types"] = dict(Counter(layer.type for layer in layers).most_common())
    return InspectReport(
        artifact.ref,
        artifact.kind.value,
        artifact.precision.value,
        artifact.manifest.bytes,
        dict(facts["weights"]),
        {},
        {**numbers, "attention": facts["attention"], "fused": sum(facts.get("fused", {}).values())},
        {},
        [],
        {"opset": facts["opset"], "ir_version": facts["ir_version"]},
        layers,
        listed=options.layers,
        unopened="it is a graph, which a runtime makes its own layers of",
    )


def _layer(node: Any) -> Layer:
    from optimizer.engines.layers import Layer

    domain = f"{node.domain}." if node.domain else ""
    return Layer(node.name or "", f"{domain}{node.op_type}", _formats(node.inputs), _formats(node.outputs))


def _formats(values: Sequence[Any]) -> tuple[str, ...]:
    known = (value.dtype for value in values if value is not None)
    names = (str(dtype.name).lower() for dtype in known if dtype is not None)
    return tuple({"float": "float32", "double": "float64"}.get(name, name) for name in names)


CHECK = Check(
    name="inspect",
    help="What an artifact is made of: layers, number formats, fused kernels, memory, profiles.",
    options=Inspect,
    run=_run,
    modules=("onnx_ir",),
    details="Of an engine, its own layers as the builder listed them, which needs no GPU; where one is at hand that "
    "opens it, what NVIDIA's inspector says as well (--json has all of it).",
)
