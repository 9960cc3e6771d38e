"""What training for int8 brings back, what it costs, and how fast its graphs are.

    python -m benchmarks.qat [--only sentiment,minilm,vit,speed,cost] [--seeds 0,1,2]

- sentiment: every operator in 8 bits with one scale a tensor, which costs the classifier its accuracy after training.
- minilm: signed 8-bit activations around zero, as TensorRT takes them; trained on sentences without labels.
- vit: 4-bit weights, and every operator in 8 bits with one scale a tensor.
- speed: graphs that were trained beside those that were quantized after training, in interleaved rounds; smoothed ones
  beside smoothed ones and plain ones.
- cost: a step and the memory of training for int8, in its default form and in the crudest one smoothed, beside those of
  plain fine-tuning, each in a process of its own.

Accuracy and likeness are those of the artifacts on ONNX Runtime: where int8 sums saturate (no VNNI), with products in
float on the levels of int8, which is what they come to elsewhere; "products" says which. Each part replaces its own in
benchmarks/results/qat.json and draws the curves of its trainings into docs/images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.sentiment import TEST, TRAIN, minilm_folder, read_rows, sentiment_classifier
from benchmarks.vit import mnist_vit, split
from optimizer.environment import describe
from optimizer.files import write_report, write_text
from optimizer.pipeline import Result
from optimizer.store import Store

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "qat.json"
IMAGES = ROOT / "docs" / "images"

#: Every operator in 8 bits, one scale a tensor: the crudest int8 there is.
CRUDE = {"all_ops": True, "per_channel": False}
SMOOTH = {**CRUDE, "smooth": True}
#: The same after training.
EVERYTHING = {"op_types": ("all",), "per_channel": False}
SENTIMENT = {"epochs": 3, "lr": 1e-5, "smooth": True}
MINILM = {"epochs": 3, "lr": 2e-5}
VIT = {"epochs": 2, "lr": 5e-5, "batch": 32}
#: Steps of a process that measures costs; the first tell of warming up.
STEPS, WARM, ROUNDS = 24, 6, 5
#: What costs are measured of.
KINDS = ("plain", "qat", "qat-smooth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="sentiment,minilm,vit,speed,cost")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_steps(options.worker)))
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    parts: dict[str, Callable[[Store], Any]] = {
        "sentiment": lambda store: _sentiment(store, seeds),
        "minilm": _minilm,
        "vit": _vit,
        "speed": _speed,
        "cost": lambda store: _cost(),
    }
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "models")
        for name in options.only.split(","):
            document[name] = parts[name](store)
            document.setdefault("environments", {})[name] = describe()
            write_report(RESULT, document)
            print(name, json.dumps(document[name], indent=1)[:2000])


def _trained(store: Store, source: Path, name: str, train: Path, judged: Path, **options: Any) -> Result:
    return optimizer.quantize_qat(str(source), name=name, store=store, train=train, eval=judged, **options)


def _told(result: Result) -> dict[str, Any]:
    """What a training came to, by its artifact; seconds are those of both stages, judging included."""
    facts = result.artifact.manifest.facts
    training = facts["training"]
    return {
        "ref": result.artifact.ref,
        "seconds": round(result.seconds, 1),
        "steps": training["steps"],
        "scores": training["scores"],
        "parity": facts["parity"],
        "curve": training["curve"],
        "bytes": result.artifact.manifest.bytes,
    }


def answers_of(result: Result, judged: Path) -> tuple[Any, list[Any]]:
    """An artifact's answers to every row, on ONNX Runtime, batch by batch in the order of the judge."""
    from optimizer.data.preprocess import Preprocessor
    from optimizer.evalset import EvalSet
    from optimizer.quantizing.prepare import check_opens

    artifact = result.artifact
    rows = EvalSet.open(judged, Preprocessor.open(artifact.path, artifact.model_info), None, artifact.model_info)
    session = check_opens(artifact.model_file, exact=_products() != "int8")
    taken, names = {each.name for each in session.get_inputs()}, [each.name for each in session.get_outputs()]

    def answers(feeds: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: array for name, array in feeds.items() if name in taken}
        return dict(zip(names, session.run(None, given), strict=True))

    return rows, [(batch, answers(batch.feeds)) for batch in rows.batches(None)]


def _products() -> str:
    """What products of int8 were computed in."""
    from optimizer.quantizing.promise import saturation

    return "float, as int8 saturates here" if saturation(reduce_range=False) else "int8"


def _accuracy(result: Result, judged: Path, labels: list[int]) -> float:
    _, answers = answers_of(result, judged)
    right = sum(
        int(logits.argmax()) == labels[place]
        for batch, outputs in answers
        for place, logits in zip(batch.rows, outputs["logits"], strict=True)
    )
    return right / len(labels)


def _sentiment(store: Store, seeds: list[int]) -> dict[str, Any]:
    source, labels = sentiment_classifier(), [row["label"] for row in read_rows(TEST)]
    fp32 = optimizer.export_onnx(str(source), name="sentiment", store=store)
    static = optimizer.quantize_static(fp32.artifact.ref, calib=TRAIN, store=store, **EVERYTHING)
    found = {
        "products": _products(),
        "fp32": _accuracy(fp32, TEST, labels),
        "static": _accuracy(static, TEST, labels),
        "trained": [],
    }
    for seed in seeds:
        made = _trained(store, source, "sentiment", TRAIN, TEST, seed=seed, **CRUDE, **SENTIMENT)
        found["trained"].append({"seed": seed, "accuracy": _accuracy(made, TEST, labels), **_told(made)})
    accuracies = [each["accuracy"] for each in found["trained"]]
    found["spread"] = [min(accuracies), max(accuracies)]
    _draw("qat-sentiment", {f"seed {each['seed']}": each["curve"] for each in found["trained"]}, "accuracy")
    return found


def _minilm(store: Store) -> dict[str, Any]:
    source = minilm_folder()
    fp32 = optimizer.export_onnx(str(source), name="minilm", store=store)
    static = optimizer.quantize_static(fp32.artifact.ref, calib=TRAIN, symmetric=True, store=store)
    made = _trained(store, source, "minilm", TRAIN, TEST, scheme="w8a8-sym", **MINILM)
    vectors = {name: vectors_of(each) for name, each in (("fp32", fp32), ("static", static), ("trained", made))}
    found: dict[str, Any] = {"products": _products(), "training": _told(made)}
    for name in ("static", "trained"):
        cosines = (vectors["fp32"] * vectors[name]).sum(1)
        found[name] = {"worst_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
    # No pairs that people scored lie at hand: a pair of one source and one label counts as more alike than others.
    for name, each in vectors.items():
        found.setdefault(name, {})["spearman"] = _spearman(each)
    _draw("qat-minilm", {"w8a8-sym": made.artifact.manifest.facts["training"]["curve"]}, "worst_cosine")
    return found


def vectors_of(result: Result) -> Any:
    """A vector of length 1 for every row, in the order of the file."""
    import numpy as np

    from optimizer.tasks._vectors import vectors

    artifact = result.artifact
    rows, answers = answers_of(result, TEST)
    table = np.zeros((len(rows.rows), 0))
    for batch, outputs in answers:
        made = np.stack(vectors(outputs, batch.feeds, artifact.model_info))
        if not table.size:
            table = np.zeros((len(rows.rows), made.shape[1]))
        table[list(batch.rows)] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return table


def _spearman(vectors: Any, pairs: int = 20000) -> float:
    """Rank correlation of cosines with how much two sentences share: their source, their label, both or neither."""
    import numpy as np
    from scipy.stats import spearmanr

    rows = read_rows(TEST)
    drawn = np.random.default_rng(0).integers(0, len(rows), (pairs, 2))
    shared = [
        (rows[a]["source"] == rows[b]["source"]) + (rows[a]["label"] == rows[b]["label"]) for a, b in drawn.tolist()
    ]
    cosines = (vectors[drawn[:, 0]] * vectors[drawn[:, 1]]).sum(1)
    return float(spearmanr(cosines, shared).statistic)


def _digits(folder: Path) -> tuple[Path, Path]:
    """The digits that the ViT was trained on, and those it was not."""
    import numpy as np

    (images, labels), _ = split()
    np.savez(folder / "train.npz", image=images, label=labels)
    return folder / "train.npz", mnist_vit() / "test.npz"


def _vit(store: Store) -> dict[str, Any]:
    import numpy as np

    source = mnist_vit()
    with tempfile.TemporaryDirectory() as name:
        train, test = _digits(Path(name))
        with np.load(test) as stored:
            labels = [int(label) for label in stored["label"]]
        fp32 = optimizer.export_onnx(str(source), name="vit", store=store)
        crude = optimizer.quantize_static(
            fp32.artifact.ref, calib=source / "calib.npz", op_types=("all",), per_channel=False, store=store
        )
        blocks = optimizer.quantize_weights(fp32.artifact.ref, symmetric=True, store=store)
        made_after = (("fp32", fp32), ("static", crude), ("int4-weights", blocks))
        found: dict[str, Any] = {
            "products": _products(),
            **{name: _accuracy(each, test, labels) for name, each in made_after},
        }
        curves = {}
        for label, options in (("w8a8 per tensor, every operator", CRUDE), ("w4a16", {"scheme": "w4a16"})):
            made = _trained(store, source, "vit", train, test, **options, **VIT)
            found[label] = {"accuracy": _accuracy(made, test, labels), **_told(made)}
            curves[label] = found[label]["curve"]
    _draw("qat-vit", curves, "accuracy")
    return found


def _speed(store: Store) -> dict[str, Any]:
    """Times of graphs, which are the same for any weights: a few steps are training enough."""
    found: dict[str, Any] = {}
    digits = mnist_vit()
    for name, source, calib, shapes, after, trained in (
        ("sentiment", sentiment_classifier(), TRAIN, ("1x16", "1x128", "8x128"), {}, {}),
        (
            "sentiment, every operator",
            sentiment_classifier(),
            TRAIN,
            ("1x16", "1x128", "8x128"),
            EVERYTHING,
            SMOOTH,
        ),
        ("vit", digits, digits / "calib.npz", ("1", "8"), {}, {}),
    ):
        short = name.partition(",")[0]
        fp32 = optimizer.export_onnx(str(source), name=short, store=store)
        beside = [optimizer.quantize_static(fp32.artifact.ref, calib=calib, store=store, **after)]
        if trained.get("smooth"):  # like beside like, as far as it goes: after training no sums are smoothed
            beside += [optimizer.quantize_static(fp32.artifact.ref, calib=calib, store=store, smooth=True, **after)]
        label = "speed-every" if trained else "speed"
        made = optimizer.quantize_qat(
            str(source), name=short, store=store, train=calib, max_steps=4, variant=label, **trained
        )
        refs = [f"{each.artifact.ref}{way}" for way in ("", "+openvino-native:fp32") for each in (*beside, made)]
        words = [sys.executable, "-m", "optimizer", "bench", *refs, "--store", str(store.root), "--json"]
        words += [word for shape in shapes for word in ("--shape", shape)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        found[name] = {row["label"]: {cell["shape"]: cell["p50_ms"] for cell in row["cells"]} for row in report["rows"]}
    return found


def _cost() -> dict[str, Any]:
    """Median step and peak memory of each kind, in rounds that take turns."""
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):
        for kind, found in rounds.items():
            words = [sys.executable, "-m", "benchmarks.qat", "--worker", kind]
            said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(said.splitlines()[-1]))  # the Trainer has lines of its own before
    return costs_of(rounds)


def costs_of(rounds: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each kind, and what training for int8 costs as a share of plain fine-tuning in the same round.

    Args:
        rounds: kind → of each round its ``step_s``, ``peak_mib`` and others; "plain" is one of them.

    Returns:
        each kind's medians; ``step_ratio``, ``step_ratios`` and ``memory_ratio`` of "qat", and the same of other kinds
        with their name in front: ``qat-smooth_step_ratio``.
    """
    found: dict[str, Any] = {
        kind: {name: statistics.median(r[name] for r in each) for name in each[0]} for kind, each in rounds.items()
    }
    for kind in [kind for kind in rounds if kind != "plain"]:
        pairs = list(zip(rounds["plain"], rounds[kind], strict=True))
        steps = [ours["step_s"] / plain["step_s"] for plain, ours in pairs]
        memory = [ours["peak_mib"] / plain["peak_mib"] for plain, ours in pairs]
        front = "" if kind == "qat" else f"{kind}_"
        found |= {
            f"{front}step_ratio": statistics.median(steps),
            f"{front}step_ratios": steps,
            f"{front}memory_ratio": statistics.median(memory),
        }
    return found


def _steps(kind: str) -> dict[str, float]:
    """Some steps of the sentiment classifier: fine-tuned plainly on its labels, or for int8 by distillation; in the
    default form (qat), or with every operator in 8 bits, one scale a tensor, smoothed (qat-smooth).

    Plainly is as people do it: every weight, dropout, the library's own attention; both see the same batches.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    from optimizer.data.preprocess import Preprocessor
    from optimizer.exporting.samples import make_sample
    from optimizer.hf import load_model
    from optimizer.training.loop import Plan, train
    from optimizer.training.quantized import QuantizedModel
    from optimizer.training.rows import TrainingRows, batch_of, open_rows
    from optimizer.training.scheme import SCHEMES

    source = sentiment_classifier()
    loaded = load_model(source, "text-classification", attention="eager")
    sample = make_sample(loaded, source, "text-classification", None)
    about = {
        "task": "text-classification",
        "labels": ["negative", "positive"],
        "max_length": 512,
        "inputs": [spec.to_json() for spec in sample.specs],
        "pooling": "",
    }
    rows, _ = open_rows(TRAIN, Preprocessor.open(source, about), about, labelled=kind == "plain")
    learned = TrainingRows(rows, about, labelled=kind == "plain")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if kind != "plain":
            crude = {"every": True, "per_channel": False, "smooth": True} if kind == "qat-smooth" else {}
            model = QuantizedModel(loaded.module, replace(SCHEMES["w8a8"], **crude), sample.tensors)
            model.calibrate([batch_of(rows.feeds(range(8)))], lambda done: None)
            plan = Plan(1, STEPS, 1e-5, 16, 0, True, "", Path(folder), 1e9, False)
            clock = _Clock(times)
            train(model, learned, plan, None, clock)
        else:

            class Clock(TrainerCallback):  # type: ignore[misc]
                def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                    times.append(time.perf_counter())

            class Plain(Trainer):  # type: ignore[misc]
                def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                    return learned.order(0, 0, 16)

            def collate(places: list[int]) -> dict[str, Any]:
                made = learned.collate(places)
                return {**made["feeds"], "labels": made["classes"]}

            del loaded
            model = AutoModelForSequenceClassification.from_pretrained(source)
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=16, max_steps=STEPS, learning_rate=1e-5, use_cpu=True,
                save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
                dataloader_pin_memory=False, logging_strategy="no",
            )  # fmt: skip
            Plain(model, arguments, data_collator=collate, train_dataset=learned, callbacks=[Clock()]).train()
    gaps = [b - a for a, b in itertools.pairwise(times)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.set_grad_enabled(False)
    return {"step_s": statistics.median(gaps), "peak_mib": peak / 1024, "before_mib": before / 1024}


class _Clock:
    """The progress of a training, as the times at which its steps ended."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def __call__(self, doing: str, done: float | None = None, total: float | None = None) -> None:
        if doing.startswith("training"):
            self._times.append(time.perf_counter())


_STYLE = (
    "svg{font:13px system-ui,sans-serif;background:#fff}.grid{stroke:#ddd}.c0{stroke:#1f77b4;fill:none}"
    ".c1{stroke:#d62728;fill:none}.c2{stroke:#2ca02c;fill:none}polyline{stroke-width:2}text{fill:#333}"
)


def _draw(name: str, curves: Mapping[str, list[dict[str, Any]]], metric: str) -> None:
    """Losses, and beneath them what the model was worth after every epoch, as an SVG file."""
    panels = [("loss", 30, 150), (metric, 230, 110)]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="390"><style>{_STYLE}</style>']
    steps = max(line["step"] for curve in curves.values() for line in curve)
    for what, top, tall in panels:
        values = [line[what] for curve in curves.values() for line in curve if what in line]
        low, high = min(values), max(values)
        room = (high - low) * 0.08 or 0.01
        low, high = low - room, high + room
        for part in range(3):
            value = low + (high - low) * part / 2
            y = top + tall - tall * part / 2
            parts.append(f'<line class="grid" x1="70" x2="620" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="64" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
        parts.append(f'<text x="70" y="{top - 10}">{what.replace("_", " ")}</text>')
        for number, curve in enumerate(curves.values()):
            points = " ".join(
                f"{70 + 550 * line['step'] / steps:.1f},{top + tall - tall * (line[what] - low) / (high - low):.1f}"
                for line in curve
                if what in line
            )
            parts.append(f'<polyline class="c{number}" points="{points}"/>')
    for number, label in enumerate(curves):
        x = 70 + 190 * number
        parts.append(f'<line class="c{number}" stroke-width="3" x1="{x}" x2="{x + 20}" y1="378" y2="378"/>')
        parts.append(f'<text x="{x + 26}" y="382">{label}</text>')
    parts.append(f'<text x="620" y="362" text-anchor="end">{steps} steps</text></svg>')
    IMAGES.mkdir(exist_ok=True)
    write_text(IMAGES / f"{name}.svg", "".join(parts) + "\n")


if __name__ == "__main__":
    main()
