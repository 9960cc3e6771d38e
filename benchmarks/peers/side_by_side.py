"""One model in every toolchain: accuracy of each on all rows, times of all in the same rounds, ours against each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.cases import CASES, Case, head
from benchmarks.peers.arrange import ROOT, Peer, calibrating, made_by, torch_entrants
from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant, default_baseline, parse, with_model_of_first
from optimizer.benching.inputs import save
from optimizer.benching.measure import Plan
from optimizer.benching.process import CandidateFailed
from optimizer.benching.report import BenchReport
from optimizer.benching.run import bench
from optimizer.benching.shape import Shape, shape_text
from optimizer.benching.stats import Ratio, speedup
from optimizer.data.preprocess import Preprocessor
from optimizer.errors import MlOptError
from optimizer.evalset import EvalSet
from optimizer.search.accuracy import Answers, Batches, Scores, answer, score
from optimizer.stage import Progress
from optimizer.store import Store
from optimizer.task import get_task

#: Rows that the first models are judged on with --quick, and for how long they are timed.
_QUICK_ROWS = 128
_QUICK = {"duration": 0.05, "rounds": 3}


@dataclass(frozen=True)
class Judged:
    """How right one toolchain's model is, beside PyTorch in fp32 on the same rows.

    Attributes:
        accuracy: share of rows; None where rows have no labels.
        cosine_worst: of the row that differs most from PyTorch's answer.
        cosine_mean: over rows.
        top1: share of rows with PyTorch's decision; None where there is none.
        error: why it is not known.
    """

    accuracy: float | None = None
    cosine_worst: float | None = None
    cosine_mean: float | None = None
    top1: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SideBySide:
    """What came of one model.

    Attributes:
        model: its name among the cases.
        ours: the label of ml-opt's winner.
        verdict: what ``optimize`` said of it.
        rows: that answers were judged on.
        judged: by label.
        against: by label and shape: the other's time over ours; above 1, ours is faster.
        bench: every sample.
        failed: by label, what a peer could not make.
        toolchains: by peer, the versions of what its requirements name.
    """

    model: str
    ours: str
    verdict: str
    rows: int
    judged: Mapping[str, Judged]
    against: Mapping[str, Mapping[str, Ratio]]
    bench: BenchReport
    failed: Mapping[str, str] = field(default_factory=dict)
    toolchains: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "judged": {label: asdict(each) for label, each in self.judged.items()},
            "against": {
                label: {shape: ratio.to_json() for shape, ratio in shapes.items()}
                for label, shapes in self.against.items()
            },
            "bench": self.bench.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SideBySide:
        """What :meth:`to_json` wrote."""
        return cls(
            **{
                **data,
                "judged": {label: Judged(**each) for label, each in data["judged"].items()},
                "against": {
                    label: {shape: Ratio(**ratio) for shape, ratio in shapes.items()}
                    for label, shapes in data["against"].items()
                },
                "bench": BenchReport.from_json(data["bench"]),
            }
        )


def side_by_side(
    name: str, case: Case, peers: Sequence[Peer], cache: Path, threads: int, progress: Progress, *, quick: bool
) -> SideBySide:
    """Measure one model.

    Args:
        name: of the case.
        case: the model, its rows, its budget and its shapes.
        peers: who takes part beside PyTorch; their environments are there.
        cache: where the store and what peers made are kept.
        threads: of everyone.
        progress: told of every step.
        quick: few rows and short times: to see that all works, and nothing else.
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        scratch = Path(folder)
        source, (rows, calib) = case.model(), case.rows()
        if quick:
            rows = head(rows, _QUICK_ROWS, scratch)
        store = Store(cache / "store")
        progress(f"{name}: ml-opt's own search")
        settings: dict[str, Any] = {"eval": rows, "calib": calib, "threads": threads, "name": name, "store": store.root}
        if quick:
            settings |= {**_QUICK, "precision": ("fp32,bf16",)}
        report = optimizer.optimize(str(source), shape=case.shapes[-1], **case.budget, **settings)
        artifact = store.get(f"{name}:fp32")
        winner = report.best or artifact.ref
        ours = parse(f"{winner}+{report.provider}" if report.best and report.provider != "cpu" else winner, store)
        base = default_baseline([ours], store)
        entrants, failed = _entrants(artifact, source, calib, peers, cache / "peers" / name, scratch, threads, progress)
        taking_part = list(with_model_of_first([base, ours, *entrants]))
        judged = _judge(taking_part, rows, artifact, scratch, threads, progress)
        plan = Plan(tuple(map(Shape.parse, case.shapes)), threads, rounds=12, seconds=3.0, samples=60)
        if quick:
            plan = replace(plan, shapes=plan.shapes[:1], rounds=3, seconds=0.1, samples=6, warm_limit_s=0.5)
        timed = bench(taking_part, base.label, plan, progress)
    return SideBySide(
        name, ours.label, str(report.verdict), len(judged[1]), judged[0], _against(timed, ours.label), timed, failed,
        {peer.name: peer.versions for peer in peers},
    )  # fmt: skip


def _entrants(
    artifact: Artifact,
    source: Path,
    calib: Path,
    peers: Sequence[Peer],
    cache: Path,
    scratch: Path,
    threads: int,
    progress: Progress,
) -> tuple[list[Entrant], dict[str, str]]:
    """Everyone but ours and the baseline, and what could not be made."""
    found = torch_entrants(source, artifact)
    failed: dict[str, str] = {}
    rows = calibrating(artifact, calib, scratch)
    for peer in peers:
        progress(f"{peer.name}: making its models")
        made, lacking = made_by(peer, artifact, source, rows, cache / peer.name, threads)
        found += made
        failed |= {f"{peer.name}: {name}": why for name, why in lacking.items()}
    return found, failed


def _judge(
    entrants: Sequence[Entrant], rows: Path, artifact: Artifact, scratch: Path, threads: int, progress: Progress
) -> tuple[dict[str, Judged], tuple[int, ...]]:
    """Everyone's answers to all rows, held against the first one's, which is the baseline."""
    model = artifact.model_info
    task = get_task(str(model.get("task") or "generic"))
    known = "label" in _first(rows) and "accuracy" in {metric.name for metric in task.metrics}
    labelled = task.metric("accuracy", model) if known else None
    every = EvalSet.open(rows, Preprocessor.open(artifact.path, model), labelled, model)
    made = list(every.batches(model.get("max_batch")))
    batches = Batches(
        tuple(save(scratch, "rows", [batch.feeds for batch in made])), tuple(batch.rows for batch in made)
    )
    original: Answers | None = None
    judged: dict[str, Judged] = {}
    for number, entrant in enumerate(entrants):
        try:
            answers = answer(
                entrant.candidate, batches, scratch / f"answers-{number}", threads=threads, timeout=600.0,
                progress=progress,
            )  # fmt: skip
            original = original or answers
            judged[entrant.label] = _summary(score(original, answers, batches, model, labelled, every.truths))
        except (CandidateFailed, MlOptError) as failed:
            if original is None:
                raise
            judged[entrant.label] = Judged(error=failed.message)
    return judged, tuple(range(len(every.rows)))


def _first(rows: Path) -> Mapping[str, Any]:
    from optimizer.data.readers import read_rows

    return read_rows(rows, limit=1)[0].values


def _summary(scores: Scores) -> Judged:
    def mean(values: Sequence[float] | None) -> float | None:
        return sum(values) / len(values) if values else None

    return Judged(mean(scores.right), min(scores.cosine), mean(scores.cosine), mean(scores.top1))


def _against(report: BenchReport, ours: str) -> dict[str, dict[str, Ratio]]:
    """The other's time over ours, from the rounds that both were measured in."""
    cells = {row.label: {cell.shape: cell.rounds_ns for cell in row.cells} for row in report.rows}
    return {
        label: {shape: speedup(rounds, cells[ours][shape]) for shape, rounds in shapes.items()}
        for label, shapes in cells.items()
        if label != ours and shapes and cells[ours]
    }


def to_markdown(found: SideBySide) -> str:
    """One line a toolchain: how right it is, its median at every shape, how much faster ours is; where it is not."""
    shapes = found.bench.shapes
    head = ["", "accuracy", "cosine worst / mean", "top-1"]
    for shape in shapes:
        head += [f"{shape_text(shape)}: ms", "ours is faster by"]
    rows = [_cells(row.label, found, shapes) for row in found.bench.rows]
    # A column that nobody has a number for (accuracy without labels) is left out.
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    failed = [[label, f"not made: {why}", *[""] * (len(kept) - 2)] for label, why in found.failed.items()]
    table = [[row[place] for place in kept] for row in (head, ["---"] * len(head), *rows)]
    lines = [
        f"### {found.model}",
        "",
        f"{_where(found)}. Ours is `{found.ours}` (`optimize` said {found.verdict}); {found.rows} rows judged, "
        f"likeness to `{found.bench.baseline}`.",
        "",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (*table, *failed)),
    ]
    lost = [f"- {line}" for line in losses(found)]
    lines += ["", *(["Behind:", "", *lost] if lost else ["Ahead or equal in every cell."])]
    return "\n".join(lines) + "\n"


def _where(found: SideBySide) -> str:
    """The machine, the day, and what ran there."""
    environment, settings = found.bench.environment, found.bench.settings
    cpu, ours = environment["cpu"], environment["versions"]
    features = ", ".join(cpu["features"]) or "no int8 or bf16 units"
    versions = {name: ours[name] for name in ("torch", "onnxruntime", "openvino") if name in ours}
    beside = [f"{name}: {_listed(packages)}" for name, packages in found.toolchains.items()]
    return (
        f"{cpu['model']}, {cpu['cores']} cores ({features}), {settings['threads']} threads, {settings['rounds']} rounds"
        f", {found.bench.created[:10]}; {'; '.join([_listed(versions), *beside])}"
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cells(label: str, found: SideBySide, shapes: Sequence[str]) -> list[str]:
    judged = found.judged[label]
    row = next(row for row in found.bench.rows if row.label == label)
    cells = [
        f"**{label}**" if label == found.ours else label,
        "" if judged.accuracy is None else f"{judged.accuracy:.2%}",
        "" if judged.cosine_worst is None else f"{judged.cosine_worst:.5f} / {judged.cosine_mean:.5f}",
        "" if judged.top1 is None else f"{judged.top1:.2%}",
    ]
    times = {cell.shape: cell.summary.p50_ms for cell in row.cells}
    for shape in shapes:
        ratio = found.against.get(label, {}).get(shape)
        cells.append(f"{times[shape]:.3g}" if shape in times else f"failed: {row.error or judged.error}")
        cells.append(f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "")
    return cells


def losses(found: SideBySide) -> list[str]:
    """Every cell where another toolchain is faster beyond the noise, and what it gives up for that.

    What ``optimize`` was allowed to give up stands in the case: a peer beyond it is faster for being less exact.
    """
    ours = found.judged[found.ours]
    source = found.judged[found.bench.baseline]
    lines = []
    for label, shapes in found.against.items():
        for shape, ratio in shapes.items():
            if ratio.high < 1:
                lines.append(
                    f"{found.model} at {shape_text(shape)}: {label} takes {ratio.value:.2f} of our time"
                    f" ({_rightness(found.judged[label])}; ours {_rightness(ours)}): "
                    f"{_allowed(found.judged[label], source, CASES[found.model].budget)}"
                )
    return lines


def _allowed(judged: Judged, source: Judged, budget: Mapping[str, float]) -> str:
    """Whether a peer keeps to what ``optimize`` was held to."""
    beyond = []
    if (least := budget.get("min_cosine")) is not None and (judged.cosine_worst or 0.0) < least:
        beyond.append(f"a cosine of {least:g}")
    if (least := budget.get("min_agreement")) is not None and (judged.top1 or 0.0) < least:
        beyond.append(f"{least:.0%} of equal decisions")
    known = judged.accuracy is not None and source.accuracy is not None
    if (most := budget.get("max_drop")) is not None and known and source.accuracy - judged.accuracy > most:
        beyond.append(f"a drop of {most:.0%}")
    return f"not within the budget ({' and '.join(beyond)})" if beyond else "within the budget"


def _rightness(judged: Judged) -> str:
    if judged.accuracy is not None:
        return f"accuracy {judged.accuracy:.2%}"
    return judged.error or f"worst cosine {judged.cosine_worst:.5f}"


def read(path: Path) -> list[SideBySide]:
    """What :func:`written` wrote; nothing when there is no such file."""
    if not path.is_file():
        return []
    return [SideBySide.from_json(each) for each in json.loads(path.read_text(encoding="utf-8"))["models"]]


#: Samples of a round that are kept: a call of 150 µs makes thousands, which say no more.
_KEPT = 64


def _thinned(value: Any) -> Any:
    """Long lists of numbers with evenly spaced ones of them, everything else as it is."""
    if isinstance(value, dict):
        return {name: _thinned(each) for name, each in value.items()}
    if isinstance(value, list):
        if len(value) > _KEPT and all(isinstance(each, (int, float)) for each in value):
            return value[:: -(-len(value) // _KEPT)]
        return [_thinned(each) for each in value]
    return value


def written(found: Sequence[SideBySide], path: Path) -> None:
    """Everything as one JSON document; paths begin at the checkout, wherever that lies."""
    document = {"report": "peers", "schema": 1, "models": [_thinned(each.to_json()) for each in found]}
    text = json.dumps(document, indent=1, default=str).replace(f"{ROOT}/", "")
    path.write_text(text + "\n", encoding="utf-8")
