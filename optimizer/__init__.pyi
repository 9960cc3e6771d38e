"""Made by docs/generate.py from the declarations of stages and checks."""

from collections.abc import Callable
from pathlib import Path

from optimizer.artifact import Artifact as Artifact
from optimizer.benching.scenario import Scenario
from optimizer.check import Report
from optimizer.errors import BadInput as BadInput
from optimizer.errors import Damaged as Damaged
from optimizer.errors import GateFailed as GateFailed
from optimizer.errors import Inconclusive as Inconclusive
from optimizer.errors import MissingPiece as MissingPiece
from optimizer.errors import MlOptError as MlOptError
from optimizer.errors import UnknownName as UnknownName
from optimizer.manifest import Manifest as Manifest
from optimizer.pipeline import Result
from optimizer.recipe import Recipe, RecipeReport, Step
from optimizer.ref import Ref as Ref
from optimizer.stage import Progress
from optimizer.store import Store as Store
from optimizer.types import Device, Precision

__version__: str

def bench(
    *refs: str,
    shape: tuple[str, ...] | list[str] = ...,
    shapes_from: Path | str | None = ...,
    batching: str = ...,
    scenario: Scenario | str = ...,
    qps: float = ...,
    streams: int = ...,
    against: str | None = ...,
    provider: tuple[str, ...] | list[str] = ...,
    fail_if_slower: str | None = ...,
    fail_if_worse: str | None = ...,
    fail_if_larger: str | None = ...,
    fail_if_degraded: bool = ...,
    min_agreement: float | None = ...,
    min_cosine: float | None = ...,
    self_check: bool = ...,
    metric: str | None = ...,
    device: Device | str = ...,
    threads: int = ...,
    data: Path | str | None = ...,
    column: tuple[str, ...] | list[str] = ...,
    duration: float | str = ...,
    min_samples: int = ...,
    rounds: int = ...,
    max_rounds: int = ...,
    roofline: bool = ...,
    seed: int = ...,
    timeout: float | str = ...,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    github: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def bench_compare(
    *refs: str,
    fail_if_slower: str | None = ...,
    cross_machine: bool = ...,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    github: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def bench_history(
    *refs: str,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def bench_server(
    *refs: str,
    model: str,
    qps: float,
    protocol: str = ...,
    endpoint: str = ...,
    shape: str = ...,
    data: Path | str | None = ...,
    column: tuple[str, ...] | list[str] = ...,
    ref: str | None = ...,
    max_tokens: int = ...,
    duration: float | str = ...,
    min_samples: int = ...,
    seed: int = ...,
    timeout: float | str = ...,
    fail_if_p99: str | None = ...,
    max_errors: float = ...,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    github: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def bench_show(
    *refs: str,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    github: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def build_ep_context(
    source: str,
    *,
    provider: str = ...,
    precision: Precision | str | None = ...,
    profile: str = ...,
    tf32: bool = ...,
    embed: bool = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def build_trt_engine(
    source: str,
    *,
    flavor: str = ...,
    via: str = ...,
    precision: Precision | str | None = ...,
    profile: tuple[str, ...] | list[str] = ...,
    profiles_from: Path | str | None = ...,
    column: tuple[str, ...] | list[str] = ...,
    batch: str = ...,
    compute_capability: tuple[str, ...] | list[str] = ...,
    workspace: str = ...,
    opt_level: int | None = ...,
    tf32: bool = ...,
    version_compatible: bool = ...,
    hardware_compatible: bool = ...,
    strip_weights: bool = ...,
    refit: bool = ...,
    weight_streaming: bool = ...,
    timing_cache: Path | str | None = ...,
    strict_nans: bool = ...,
    rebuild: bool = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def calibration_set(
    source: str,
    *,
    data: Path | str,
    column: tuple[str, ...] | list[str] = ...,
    samples: int = ...,
    seed: int = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def cast(
    source: str,
    *,
    to: Precision | str,
    keep: tuple[str, ...] | list[str] = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def export_onnx(
    source: str,
    *,
    task: str | None = ...,
    opset: int | None = ...,
    dtype: Precision | str = ...,
    revision: str | None = ...,
    trust_remote_code: bool = ...,
    allow_pickle: bool = ...,
    max_length: int | None = ...,
    max_batch: int | None = ...,
    name: str | None = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def inspect(
    *refs: str,
    layers: bool = ...,
    engine: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def optimize(
    *refs: str,
    eval: Path | str | None = ...,
    calib: Path | str | None = ...,
    column: tuple[str, ...] | list[str] = ...,
    max_drop: float | None = ...,
    min_agreement: float | None = ...,
    min_cosine: float | None = ...,
    metric: str | None = ...,
    confidence: float = ...,
    objective: str = ...,
    shape: str | None = ...,
    shapes_from: Path | str | None = ...,
    precision: tuple[str, ...] | list[str] = ...,
    target: tuple[str, ...] | list[str] = ...,
    device: Device | str = ...,
    time_budget: float | str | None = ...,
    allow_overlap: bool = ...,
    dry_run: bool = ...,
    name: str | None = ...,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    threads: int = ...,
    duration: float | str = ...,
    rounds: int = ...,
    roofline: bool = ...,
    seed: int = ...,
    timeout: float | str = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def ort_optimize(
    source: str,
    *,
    target: str = ...,
    allow_unfused: bool = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def quantize_dynamic(
    source: str,
    *,
    per_channel: bool = ...,
    weight_type: str = ...,
    reduce_range: bool = ...,
    include: tuple[str, ...] | list[str] = ...,
    exclude: tuple[str, ...] | list[str] = ...,
    op_types: tuple[str, ...] | list[str] = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def quantize_static(
    source: str,
    *,
    calib: Path | str,
    column: tuple[str, ...] | list[str] = ...,
    samples: int | None = ...,
    method: str = ...,
    per_channel: bool = ...,
    symmetric: bool = ...,
    reduce_range: bool = ...,
    activation_products: bool = ...,
    include: tuple[str, ...] | list[str] = ...,
    exclude: tuple[str, ...] | list[str] = ...,
    op_types: tuple[str, ...] | list[str] = ...,
    smooth: bool = ...,
    alpha: float | None = ...,
    exclude_worst: int = ...,
    sensitivity: Path | str | None = ...,
    exclude_store: str = ...,
    batch: int = ...,
    seed: int = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def quantize_weights(
    source: str,
    *,
    bits: int = ...,
    block_size: int = ...,
    symmetric: bool = ...,
    accuracy_level: int = ...,
    tables: str = ...,
    include: tuple[str, ...] | list[str] = ...,
    exclude: tuple[str, ...] | list[str] = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def report(
    *refs: str,
    report: tuple[Path | str, ...] | list[Path | str] = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def sensitivity(
    source: str,
    *,
    calib: Path | str,
    column: tuple[str, ...] | list[str] = ...,
    samples: int | None = ...,
    per_channel: bool = ...,
    symmetric: bool = ...,
    batch: int = ...,
    seed: int = ...,
    variant: str | None = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Result: ...
def verify(
    *refs: str,
    against: str = ...,
    data: Path | str | None = ...,
    column: tuple[str, ...] | list[str] = ...,
    samples: int = ...,
    batch: int = ...,
    provider: str | None = ...,
    device: Device | str = ...,
    threads: int = ...,
    max_abs: float | None = ...,
    min_cosine: float | None = ...,
    min_top1: float | None = ...,
    sweep: bool = ...,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
) -> Report: ...
def run_recipe(
    recipe: Recipe | Path | str,
    *,
    store: Store | Path | str | None = ...,
    progress: Progress = ...,
    seen: Callable[[Step, Result | Report], None] | None = ...,
) -> RecipeReport: ...
