"""From a model folder to a verdict that is kept, on a tiny BERT; and every way in which there can be none."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys as toybox
from processor import EXACT
from stores import leftovers
from tiny import tiny_bert, write

import optimizer
from optimizer.cli.main import run
from optimizer.errors import BadInput, MissingPiece, MlOptError, UnknownName
from optimizer.recipe import run_recipe
from optimizer.search.asked import data_notes
from optimizer.search.gates import Outcome, paired_drop
from optimizer.search.keep import _stale
from optimizer.search.options import Optimize
from optimizer.store import Store
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._similarity import SPEARMAN

#: Candidates that every machine has: OpenVINO's and TensorRT's depend on it.
QUICK = {"duration": 0.05, "rounds": 3, "threads": 1, "roofline": False, "target": ("ort",)}
ROWS = 150


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes with random weights."""
    return tiny_bert(
        tmp_path_factory.mktemp("classifier") / "tiny",
        "BertForSequenceClassification",
        id2label={0: "low", 1: "mid", 2: "high"},
    )


def texts(count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 20))) for _ in range(count)]


@pytest.fixture(scope="module")
def home(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, labelled by PyTorch's own answers but for every tenth row, and a store beside it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("home")
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    names = ["low", "mid", "high"]
    rows = []
    with torch.inference_mode():
        for place, text in enumerate(texts(ROWS, 1)):
            label = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
            # Both spellings of a label in one file: a name and a number.
            wrong = (label + 1) % 3
            rows.append({"text": text, "label": wrong if place % 10 == 0 else names[label]})
    assert len({json.dumps(row["label"]) for row in rows}) >= 3
    write(folder / "eval.jsonl", rows)
    write(folder / "calib.jsonl", [{"text": text} for text in texts(40, 2)])
    return folder


@pytest.fixture(scope="module")
def judged(classifier: Path, home: Path) -> Any:
    """The whole of it, once."""
    return optimizer.optimize(
        str(classifier),
        eval=home / "eval.jsonl",
        calib=home / "calib.jsonl",
        max_drop=0.05,
        precision=("fp32,int8",),
        name="tiny",
        report=(home / "out" / "report.html", home / "out" / "report.json"),
        store=home / "models",
        **{**QUICK, "roofline": True},
    )


def test_a_verdict_is_reached_and_kept(judged: Any, home: Path) -> None:
    store = Store(home / "models")
    assert judged.verdict == "PASS"
    assert judged.exit_code == 0
    assert judged.original.accuracy.value == pytest.approx(0.9)
    by_name = {c.name: c for c in judged.candidates}
    assert set(by_name) == {
        "fp32",
        "fp32-fused",
        "int8-dynamic",
        "int8-static",
        "int8-static-percentile",
        "int8-static-smooth",
        "int8-weights",
    }
    # What ran is what the files say, and was read from the sessions.
    for name, candidate in by_name.items():
        quantized = store.get(candidate.ref).manifest.facts["quantized"]
        low = quantized["total"] - quantized.get("stored", 0)
        assert candidate.runs.get("int8-weights" if name == "int8-weights" else "int8", 0) == low
        assert bool(low) is name.startswith("int8")
        assert candidate.runs["fell_back"] == []
    # fp32 answers as PyTorch does, on as many rows as it took to know whether it can win.
    fp32 = by_name["fp32"]
    assert fp32.gates[0].value == 0.0
    assert len(fp32.rows["right"]) == fp32.seen in (64, ROWS)
    assert min(fp32.rows["cosine"]) == pytest.approx(1.0, abs=1e-4)
    # The winner's bound is over every row, and its error is its share of that of the verdict.
    winner = judged.winner
    assert winner.seen == ROWS
    pairs = list(zip(judged.original.rows["right"], winner.rows["right"], strict=True))
    lost, won = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    assert winner.gates[0].high == paired_drop(lost, won, ROWS, 1 - 0.05 / judged.rivals).high
    for candidate in judged.candidates:
        assert candidate.seen == ROWS or candidate.reason.startswith(("after 64 of 150 rows", "not judged on all rows"))
    assert 0 < judged.winner_s <= judged.seconds["total"]
    assert store.aliases("tiny")["best"] == f"1:{winner.ref.partition(':')[2]}"
    assert store.get("tiny@best").ref == judged.best
    passing = [c.speed.ratio.value for c in judged.candidates if c.outcome == "PASS"]
    # Where nothing is known to be faster than the plain export, that is kept whatever the estimates say.
    assert winner.name == "fp32" or winner.speed.ratio.value == max(passing)
    assert {left["name"] for left in judged.left_out} >= {"bf16-openvino"}
    assert judged.seconds["total"] > judged.seconds["make"] > 0


def test_the_kept_verdict_is_the_whole_report(judged: Any, home: Path) -> None:
    kept = json.loads((home / "models" / "tiny" / "1" / "verdict.json").read_text())
    assert kept == judged.to_json() == json.loads((home / "out" / "report.json").read_text()) | {"path": judged.path}
    assert (kept["report"], kept["schema"], kept["verdict"], kept["best"]) == ("optimize", 1, "PASS", judged.best)
    assert set(kept["speedup"]) == {"value", "low", "high", "shape"}
    assert kept["accuracy"]["drop"]["high"] <= 0.05
    assert 0 < kept["agreement"]["low"] <= kept["agreement"]["value"] <= 1
    assert re.fullmatch("[0-9a-f]{64}", kept["data"]["eval"]["sha256"])
    assert kept["data"]["eval"]["rows"] == ROWS == sum(kept["data"]["eval"]["histogram"]["counts"])
    assert kept["data"]["eval"]["labels"].keys() <= {"low", "mid", "high"}
    assert kept["environment"]["cpu"]["model"]
    assert kept["bench"]["rows"][0]["cells"][0]["rounds_ns"]
    assert kept["command"].startswith("ml-opt optimize ")


def test_the_timing_that_counts_is_under_this_machines_roofs(judged: Any, home: Path) -> None:
    timed = {row["label"]: row["cells"][0]["position"] for row in judged.bench["rows"]}
    assert judged.winner.speed.peak_share == timed[judged.winner.ref]["peak_share"] > 0
    assert judged.winner.speed.gflops == timed[judged.winner.ref]["gflops"]
    assert judged.original.speed.gflops > 0, "PyTorch's operations are those of its export"
    assert len({position["flops"] for position in timed.values()}) == 1, "however it is written, it is the same work"
    assert judged.quick["roofline"] is None, "the timing that only sorts needs none"
    assert f"{judged.winner.speed.peak_share:.0%}" in (home / "out" / "report.html").read_text()


def test_the_recipe_makes_the_winner_again(judged: Any, home: Path, tmp_path: Path) -> None:
    cached = run_recipe(Path(judged.recipe), store=home / "models")
    assert all(step["cached"] for step in cached.steps)
    assert cached.steps[-1]["ref"] == judged.best
    anew = run_recipe(Path(judged.recipe), store=tmp_path / "other")
    assert anew.steps[-1]["key"] == cached.steps[-1]["key"]


def test_the_page_loads_nothing_and_says_everything(judged: Any, home: Path) -> None:
    page = (home / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script", page)
    for candidate in judged.candidates:
        assert f">{candidate.name}</th>" in page
        assert candidate.commands[-1].split()[1] in page
    assert page.count('role="img"') == 2
    # One that missed a budget before it had answered every row is not drawn.
    drawn = [c for c in judged.candidates if c.speed and c.gates and (c.outcome != "FAIL" or c.seen == ROWS)]
    assert page.count("<circle") == 1 + len(drawn)
    assert "PASS" in page
    assert "prefers-color-scheme" in page
    assert "@media print" in page


def test_json_alone_says_what_a_script_needs(judged: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document on stdout, every number with its bounds, every candidate with its reason, talk elsewhere."""
    words = ["optimize", "tiny:fp32", "--eval", str(home / "eval.jsonl"), "--max-drop", "0.05", "--precision", "fp32"]
    words += ["--duration", "0.05", "--rounds", "3", "--threads", "1", "--store", str(home / "models"), "--json"]
    words += ["--target", "ort", "--no-roofline"]
    assert run(words) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert found["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert Store(home / "models").get(found["best"]).ref == found["best"]
    speedup = found["speedup"]
    assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]
    assert found["shape"] == speedup["shape"] == found["bench"]["settings"]["shapes"][0]
    assert found["original"]["name"] == "PyTorch eager fp32"
    winner = next(c for c in found["candidates"] if c["ref"] == found["best"])
    assert speedup == {**winner["speed"]["ratio"], "shape": found["shape"]}
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert found["accuracy"]["drop"]["low"] <= found["accuracy"]["drop"]["value"] <= found["accuracy"]["drop"]["high"]
    assert found["agreement"]["low"] <= found["agreement"]["value"] <= found["agreement"]["high"]
    assert found["candidates"]
    assert all(each["reason"] for each in found["candidates"])
    assert all(each["reason"] for each in found["left_out"])
    assert "exporting" not in out.out
    # What is kept is what was printed.
    kept = optimizer.report("tiny", store=home / "models")
    assert kept.to_json() == found


def test_again_from_a_reference_at_the_command_line(
    judged: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimize", "tiny:fp32", "--eval", str(home / "eval.jsonl"), "--max-drop", "0.001", "--precision", "fp32"]
    words += ["--duration", "0.05", "--rounds", "3", "--threads", "1", "--no-roofline", "--store", str(home / "models")]
    words += ["--target", "ort"]
    before = Store(home / "models").get("tiny@best").ref  # which is fastest is for the machine to say
    assert run([*words, "--report", str(tmp_path / "r.json")]) == 3
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["verdict"], report["exit_code"]) == ("INCONCLUSIVE", 3)
    assert report["best"] is None
    # Two rivals, fp32 and fp32-fused, share the confidence: z is that of 97.5 %.
    assert report["rows_needed"] == math.ceil(1.959964**2 * 0.999 / 0.001)
    assert Store(home / "models").get("tiny@best").ref == before, "the alias stays where a verdict put it"
    out = capsys.readouterr()
    assert "INCONCLUSIVE" in out.out
    assert "about 3,838 rows would settle it" in out.out
    assert "too few rows for a verdict" in out.err
    assert re.search(r"\d+ s: export 0 s, making \d+ s, judging \d+ s, timing \d+ s", out.out)


def test_a_best_that_fails_is_the_best_no_more(judged: Any, home: Path, tmp_path: Path) -> None:
    """The same store, other labels: what won before misses the budget now, and nothing takes its place."""
    store = Store(tmp_path / "models")
    shutil.copytree(home / "models", store.root)
    before = store.get("tiny@best")
    report = optimizer.optimize(
        "tiny:fp32", eval=home / "eval.jsonl", calib=home / "calib.jsonl", min_cosine=1.0, precision=("int8",),
        store=store.root, **QUICK,
    )  # fmt: skip
    assert report.verdict == "FAIL"
    if before.manifest.facts["quantized"]["total"]:  # which of them was fastest is for the machine to say
        assert "best" not in store.aliases("tiny")
        assert any("the alias best is removed" in note for note in report.notes)
        assert not (store.root / "tiny" / "1" / "best.toml").exists()
    else:
        assert store.get("tiny@best").ref == before.ref, "nothing was learnt of it"
    mixed = [c for c in report.candidates if "-mixed-" in c.name]
    assert [c.name for c in mixed], "mixed precision is tried where the plain candidates fail"
    assert all(c.outcome == "FAIL" for c in mixed)
    assert report.sensitivity[0]["noise"] >= report.sensitivity[-1]["noise"] > 0
    assert json.loads((store.root / "tiny" / "1" / "verdict.json").read_text())["sensitivity"]


def test_the_alias_goes_only_when_what_it_names_fails(home: Path, judged: Any) -> None:
    """Planted outcomes for the rule itself."""
    store = Store(home / "models")
    named = f"tiny@{store.aliases('tiny')['best']}"

    def stale(verdict: Outcome, outcome: Outcome | None) -> str:
        candidates = tuple(replace(c, outcome=outcome if c.ref == named else Outcome.FAIL) for c in judged.candidates)
        return _stale(replace(judged, verdict=verdict, candidates=candidates), store, "tiny")

    assert stale(Outcome.FAIL, Outcome.FAIL) == named
    assert stale(Outcome.INCONCLUSIVE, Outcome.FAIL) == named
    assert stale(Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE) == ""
    assert stale(Outcome.FAIL, None) == "", "one that could not be measured is not known to fail"
    assert stale(Outcome.PASS, Outcome.FAIL) == ""


def test_a_dry_run_makes_nothing(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimize", str(classifier), "--precision", "fp32,int8", "--dry-run", "--store", str(tmp_path / "m")]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "int8-dynamic" in out
    assert "static quantization needs calibration data" in out
    assert not (tmp_path / "m" / "tiny").exists()


def failing(home: Path, model: str = "tiny:fp32", **options: Any) -> BadInput:
    before = (home / "models" / "tiny" / "1" / "verdict.json").read_bytes()
    with pytest.raises(BadInput) as found:
        optimizer.optimize(model, store=home / "models", **{"max_drop": 0.05, **options})
    assert (home / "models" / "tiny" / "1" / "verdict.json").read_bytes() == before
    return found.value


def test_leaked_calibration_rows_are_caught(judged: Any, home: Path, tmp_path: Path) -> None:
    rows = (home / "eval.jsonl").read_text().splitlines()
    leaked = [{"text": json.loads(rows[5])["text"]}, {"text": "new"}, {"text": json.loads(rows[7])["text"]}]
    calib = write(tmp_path / "calib.jsonl", leaked)
    error = failing(home, eval=home / "eval.jsonl", calib=calib)
    assert "2 rows of the calibration data are in the evaluation data too" in error.message
    assert "row 1" in error.message
    assert "--allow-overlap" in error.hint


def test_a_calibration_set_is_taken_and_its_leaks_are_caught(judged: Any, home: Path, tmp_path: Path) -> None:
    store = Store(home / "models")
    rows = (home / "eval.jsonl").read_text().splitlines()
    leaky = write(tmp_path / "leaky.jsonl", [{"text": json.loads(rows[5])["text"]}, {"text": "new"}])
    leaked = optimizer.calibration_set("tiny:fp32", data=leaky, samples=2, variant="leaky", store=store).artifact
    error = failing(home, eval=home / "eval.jsonl", calib=leaked.ref)
    assert "1 rows of the calibration data are in the evaluation data too" in error.message
    made = optimizer.calibration_set("tiny:fp32", data=home / "calib.jsonl", store=store).artifact
    report = optimizer.optimize(
        "tiny:fp32", eval=home / "eval.jsonl", calib="tiny:calib-200", min_cosine=-1.0, precision=("int8",),
        objective="size", store=store, **QUICK,
    )  # fmt: skip
    assert report.data["calib"] == {"file": made.ref, "sha256": made.digest}
    assert f"--calib {made.ref}" in report.command
    # The same 40 rows as the file's, so that what was made of them is what is judged again.
    before = {c.name: c.ref for c in judged.candidates}
    static = {c.name: c.ref for c in report.candidates if c.name.startswith("int8-static")}
    assert static == {name: before[name] for name in static}
    assert len(static) == 3


def test_insisting_on_overlap_and_fidelity_are_both_said_aloud(judged: Any, home: Path) -> None:
    rows = home / "eval.jsonl"
    report = optimizer.optimize(
        "tiny:fp32", eval=rows, calib=rows, allow_overlap=True, min_agreement=0.9, precision=("fp32",),
        objective="size", store=home / "models", **QUICK,
    )  # fmt: skip
    assert report.metric == "fidelity"
    assert report.original.accuracy is None
    assert report.verdict == "PASS"
    assert any("--allow-overlap" in note for note in report.notes)
    assert any("not accuracy" in note for note in report.notes)


def test_what_is_doubtful_about_the_data_is_said_aloud(home: Path) -> None:
    calibrated = data_notes(Optimize(calib=home / "calib.jsonl", min_cosine=0.9), None, None, None)
    assert "have seen these rows" in calibrated[1]
    labelled = Optimize(eval=home / "eval.jsonl", max_drop=0.1)
    assert data_notes(labelled, ACCURACY, [1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1]) == []
    (rarely,) = data_notes(labelled, ACCURACY, [1.0, 0.0, 0.0, 0.0], [0, 0, 0, 1])
    assert "less than always giving the commonest label (75.0%)" in rarely
    (backwards,) = data_notes(labelled, SPEARMAN, [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], None)
    assert backwards == "The original's spearman is -1.00: are the labels those of this model?"
    assert data_notes(labelled, SPEARMAN, [[1.0, 1.0], [2.0, 2.0], [3.0, 1.5]], None) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([None, None], "has no label"),
        (["low", ""], "row 2 has no label"),
        (["low", "huge"], "row 2: the model knows no label 'huge'; it knows 0 (low), 1 (mid), 2 (high)"),
        ([0, 3], "the model knows no label 3"),
        ([0, -1], "the model knows no label -1"),
        ([True, 0], "the model knows no label True"),
        ([0, 1.0], "the model knows no label 1.0"),
        (["mid", 1], "every row has the label 'mid'"),
    ],
)
def test_labels_that_cannot_be_used(judged: Any, home: Path, tmp_path: Path, labels: list[Any], message: str) -> None:
    rows = [{"text": f"a {place}", **({} if label is None else {"label": label})} for place, label in enumerate(labels)]
    error = failing(home, eval=write(tmp_path / "rows.jsonl", rows))
    assert message in error.message


def test_what_contradicts_itself_is_refused(judged: Any, home: Path, tmp_path: Path) -> None:
    rows = home / "eval.jsonl"
    assert "--max-drop is about accuracy" in failing(home).message
    assert "--metric fidelity" in failing(home, eval=rows, metric="fidelity").message
    assert "no budget is given" in failing(home, eval=rows, max_drop=None).message
    assert "nothing is left to try" in failing(home, eval=rows, precision=("bf16",), target=("ort",)).message
    assert "unknown value of --precision: 'int7'" in failing(home, eval=rows, precision=("int8,int7",)).message
    assert "too small for one candidate" in failing(home, eval=rows, time_budget="1s").message
    assert "is no time" in failing(home, eval=rows, time_budget="soon").message
    assert "own name" in failing(home, eval=rows, name="other").message
    assert "no such file" in failing(home, eval=tmp_path / "none.jsonl").message
    made = f"tiny:int8-dynamic{'-7bit' * bool(EXACT)}"
    assert "not in fp32 any more" in failing(home, made, eval=rows).message
    with pytest.raises(MissingPiece, match="needs an NVIDIA GPU"):
        optimizer.optimize("tiny:fp32", eval=rows, max_drop=0.1, device="cuda", store=home / "models")
    with pytest.raises(UnknownName, match="report format"):
        Optimize(report=(Path("report.pdf"),))
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        Optimize(report=(tmp_path / "folder.html",))


@pytest.mark.parametrize("report", ["/proc/none/report.html", "/proc/report.html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    judged: Any, home: Path, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.search.run._exported", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(MlOptError) as found:
        optimizer.optimize(
            "tiny:fp32", eval=home / "eval.jsonl", max_drop=0.1, report=(Path(report),), store=home / "models"
        )
    assert "--report DIR/report.html" in found.value.hint


def test_twenty_rows_are_too_few(judged: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, and as many rows as it takes to pass, not those by which the worst candidate could be ruled out."""
    rows = (home / "eval.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[1:10] + rows[11:20] + rows[21:23]))
    words = ["optimize", "tiny:fp32", "--eval", str(tmp_path / "few.jsonl"), "--max-drop", "0.001", "--threads", "1"]
    words += [
        "--precision",
        "fp32,int8",
        "--duration",
        "0.05",
        "--rounds",
        "3",
        "--store",
        str(home / "models"),
        "--target",
        "ort",
        "--objective",
        "size",
        "--json",
    ]
    assert run(words) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["best"], found["speedup"]) == ("INCONCLUSIVE", None, None)
    assert found["rows_needed"] > 2700
    assert any(f"about {found['rows_needed']:,} would settle it" in note for note in found["notes"])


def test_ctrl_c_leaves_nothing_half_done(classifier: Path, home: Path, tmp_path: Path) -> None:
    """While a process of its own exports: the code of an interruption, no child, no scratch, no verdict, no report."""
    words = [sys.executable, "-m", "optimizer", "optimize", str(classifier), "--eval", str(home / "eval.jsonl")]
    words += ["--max-drop", "0.1", "--store", str(tmp_path / "models"), "--report", str(tmp_path / "r.html")]
    process = subprocess.Popen(words, env=toybox.environment(), stderr=subprocess.PIPE, text=True)
    scratch = tmp_path / "models" / ".ml-opt" / "scratch"
    while not list(scratch.glob("*/artifact")):
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the store is as it was" in err
    assert Store(tmp_path / "models").refs() == []
    assert leftovers(Store(tmp_path / "models")) == []
    assert not (tmp_path / "r.html").exists()


def test_a_model_that_cannot_be_exported_leaves_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(BadInput):
        optimizer.optimize(
            str(tmp_path / "broken"), eval=home / "eval.jsonl", max_drop=0.1, store=tmp_path / "models", **QUICK
        )
    assert Store(tmp_path / "models").refs() == []
