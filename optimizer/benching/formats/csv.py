"""One line a candidate and shape, for spreadsheets and scripts; numbers as they are, not rounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from optimizer.benching.comparison import Comparison
from optimizer.benching.facts import machine_facts
from optimizer.benching.gates import worst_of
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.writing import Format

__all__ = ["COLUMNS", "COMPARED", "FORMAT", "comparison_to_csv", "to_csv"]

#: The columns, in their order. New ones are added at the end, and none is ever renamed or removed.
COLUMNS = (
    "created", "scenario", "baseline", "candidate", "provider", "key", "shape", "batch", "batching",
    "samples", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "min_ms", "spread", "rows_per_s",
    "speedup", "speedup_low", "speedup_high", "first_s", "load_s", "bytes", "peak_rss", "peak_vram",
    "agreement_rows", "cosine_worst", "cosine_mean", "top1",
    "metric", "accuracy", "accuracy_rows", "drop", "drop_low", "drop_high",
    "flops", "gflops", "peak_gflops", "peak_share", "bound", "roof_share", "noise_floor",
    "outcome", "gates", "error",
    "threads", "rounds", "cpu", "cores", "cpu_features", "governor", "memory", "gpu", "gpu_driver", "platform",
    "python", "versions",
    "qps", "scheduled_qps", "achieved_qps", "load", "queue_max", "lag_p99_ms", "valid",
    "copy_ms", "prepare_ms",
)  # fmt: skip

#: The columns of a comparison, likewise.
COMPARED = (
    "base_created", "created", "label", "shape", "base_ms", "head_ms", "value", "low", "high", "through", "drift",
    "tolerance", "outcome", "threads", "cpu", "cores", "cpu_features", "governor", "memory", "gpu", "gpu_driver",
    "platform", "python", "versions",
)  # fmt: skip


def to_csv(report: BenchReport) -> str:
    """A head and one line for each candidate at each shape; what failed has a line with its error and no times."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        for line in _lines(row, report):
            writer.writerow({name: "" if value is None else value for name, value in line.items()})
    return text.getvalue()


def _lines(row: Row, report: BenchReport) -> Iterator[dict[str, object]]:
    shared = {**_run(report), **_candidate(row)}
    for cell in (*row.cells, *row.beside):
        yield {
            **shared,
            **_time(cell),
            **_arrivals(cell),
            **_roof(cell),
            **_floor(cell.shape, report),
            **_gates(row, cell.shape, report),
        }
    measured = {cell.shape for cell in row.cells}
    for shape in report.shapes:
        if row.error and shape not in measured:
            yield {**shared, "shape": shape, **_gates(row, shape, report)}


def _run(report: BenchReport) -> dict[str, object]:
    settings = {name: report.settings.get(name) for name in ("threads", "rounds")}
    heading = {"created": report.created, "scenario": report.scenario, "baseline": report.baseline}
    return {**heading, **settings, **machine_facts(report.environment)}


def _candidate(row: Row) -> dict[str, object]:
    agreement, accuracy = row.agreement, row.accuracy
    found: dict[str, object] = {
        "candidate": row.label,
        "provider": row.provider,
        "key": row.key,
        "load_s": row.load_s,
        "bytes": row.bytes,
        "peak_rss": row.peak_rss,
        "peak_vram": row.peak_vram,
        "error": row.why,
    }
    if agreement is not None:
        found |= {
            "agreement_rows": agreement.rows,
            "cosine_worst": agreement.cosine_worst,
            "cosine_mean": agreement.cosine_mean,
            "top1": agreement.top1,
        }
    if accuracy is not None:
        found |= {
            "metric": accuracy.metric,
            "accuracy": accuracy.value,
            "accuracy_rows": accuracy.rows,
            "drop": accuracy.drop,
            "drop_low": accuracy.low,
            "drop_high": accuracy.high,
        }
    return found


def _time(cell: Cell) -> dict[str, object]:
    summary, ratio = cell.summary, cell.speedup
    return {
        "shape": cell.shape,
        "batch": cell.batch,
        "batching": cell.batching,
        "samples": summary.samples,
        "mean_ms": summary.mean_ms,
        "p50_ms": summary.p50_ms,
        **{f"{name}_ms": value for name, value in summary.percentiles_ms.items()},
        "min_ms": summary.min_ms,
        "spread": summary.spread,
        "rows_per_s": cell.rows_per_s,
        "first_s": cell.first_s,
        "copy_ms": cell.copy_ms,
        "prepare_ms": (cell.workload or {}).get("prepare_ms"),
        **({"speedup": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high} if ratio else {}),
    }


def _arrivals(cell: Cell) -> dict[str, object]:
    """Of an open loop: what was asked, and whether its times are valid."""
    if (loop := cell.open_loop) is None:
        return {}
    names = ("qps", "scheduled_qps", "achieved_qps", "load", "queue_max", "valid")
    return {**{name: getattr(loop, name) for name in names}, "lag_p99_ms": loop.lag_ms["p99"]}


def _roof(cell: Cell) -> dict[str, object]:
    names = ("flops", "gflops", "peak_gflops", "peak_share", "bound", "roof_share")
    return {name: getattr(cell.position, name) for name in names} if cell.position is not None else {}


def _floor(shape: str, report: BenchReport) -> dict[str, object]:
    return {"noise_floor": next((floor.share for floor in report.floors if floor.shape == shape), None)}


def _gates(row: Row, shape: str, report: BenchReport) -> dict[str, object]:
    """The outcome over the gates of this line (those of the shape and those of none), and each by itself."""
    about = [gate for gate in report.gates if gate.about == row.label and gate.shape in ("", shape)]
    worst = worst_of(about)
    return {
        "outcome": worst.value if worst else "",
        "gates": "; ".join(f"{gate.name}={gate.outcome.value}" for gate in about),
    }


def comparison_to_csv(report: Comparison) -> str:
    """A head and one line for each candidate at each shape that both reports hold."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COMPARED, restval="", lineterminator="\n")
    writer.writeheader()
    shared = {
        "base_created": report.base.created,
        "created": report.head.created,
        "tolerance": "" if report.tolerance is None else report.tolerance,
        "threads": report.head.settings.get("threads"),
        **machine_facts(report.head.environment),
    }
    for change in report.changes:
        line = {name: "" if value is None else value for name, value in vars(change).items()}
        outcome = report.outcomes.get((change.label, change.shape), "")
        writer.writerow({**shared, **line, "outcome": outcome, "drift": report.drift.get(change.shape, "")})
    return text.getvalue()


FORMAT = Format(".csv", "one line a candidate and shape", to_csv, comparison_to_csv)
