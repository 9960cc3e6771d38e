"""From a model that writes text to a verdict that is kept, on a tiny Llama; and when there can be none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import optimizer
from benchmarks.decoders import decoder
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.search.texts import run as texts_run
from optimizer.search.texts.candidates import plan_texts
from optimizer.store import Store

#: Two exports are enough to see everything.
TRIED = ("fp32", "int4-gptq_mixed")
QUICK = {"duration": 0.05, "rounds": 3, "threads": 1, "shape": "2x16+4"}


@pytest.fixture(scope="module")
def folder() -> Path:
    return decoder("llama", size="tiny")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with held-out texts, and a store beside them."""
    home = tmp_path_factory.mktemp("home")
    texts = [json.loads(line)["text"] for line in (folder / "heldout.jsonl").read_text().splitlines()]
    parts = [text[start : start + 600] for text in texts for start in (0, 600) if len(text) > start + 300]
    (home / "text.jsonl").write_text("".join(json.dumps({"body": part}) + "\n" for part in parts))
    known = [json.loads(line)["text"] for line in (folder / "train-sample.jsonl").read_text().splitlines()[:64]]
    (home / "calib.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in known))
    return home


@pytest.fixture(scope="module")
def judged(folder: Path, home: Path) -> Any:
    """The whole of it, once."""
    pytest.importorskip("onnxruntime_genai")

    def fewer(*given: Any, **more: Any) -> Any:
        plan = plan_texts(*given, **more)
        return replace(plan, ideas=tuple(idea for idea in plan.ideas if idea.name in TRIED))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_run, "plan_texts", fewer)
        return optimizer.optimize(
            str(folder),
            eval=home / "text.jsonl",
            calib=home / "calib.jsonl",
            column=("text=body",),
            max_drop="2%",
            name="tiny",
            report=(home / "report.html", home / "report.json"),
            store=home / "models",
            **QUICK,
        )


def test_a_verdict_is_reached_and_kept(judged: Any, home: Path) -> None:
    store = Store(home / "models")
    assert (judged.verdict, judged.exit_code, judged.metric) == ("PASS", 0, "perplexity")
    assert judged.budgets == {"max_drop": 0.02}
    by_name = {c.name: c for c in judged.candidates}
    assert set(by_name) == set(TRIED)
    texts = len((home / "text.jsonl").read_text().splitlines())
    original = judged.original
    assert original.name == "PyTorch eager fp32"
    assert 1 < original.accuracy.value < 1024, "it knows more of the text than nothing"
    for name, candidate in by_name.items():
        assert candidate.seen == texts == len(candidate.rows["nll"])
        rise = candidate.gates[0]
        assert rise.name == "perplexity rise"
        assert candidate.accuracy.value / original.accuracy.value == pytest.approx(1 + rise.value)
        assert rise.low <= rise.value <= rise.high
        if name != "fp32":
            assert candidate.kl["mean"] > by_name["fp32"].kl["mean"]
    assert by_name["fp32"].gates[0].high < 1e-3
    assert by_name["fp32"].agreement.value > 0.995
    winner = judged.winner
    assert winner.outcome == "PASS"
    assert winner.gates[0].high <= 0.02
    assert store.get("tiny@best").ref == judged.best == winner.ref
    assert set(winner.speed.texts) == {"2"}
    assert winner.speed.texts["2"].load == judged.shape == "2x16+4"
    assert winner.speed.bytes == sum(
        each.stat().st_size for each in store.get(winner.ref).path.iterdir() if ".onnx" in each.name
    )
    assert winner.commands[0].startswith("ml-opt export-genai ")
    recipe = Path(judged.recipe).read_text()
    assert 'run = "export-genai"' in recipe


def test_what_was_learned_from_is_said(judged: Any, home: Path) -> None:
    assert judged.data["calib"]["file"] == "calib.jsonl"
    learned = next(c for c in judged.candidates if c.name == "int4-gptq_mixed")
    made = Store(home / "models").get(learned.ref)
    assert made.manifest.facts["gptq"]["products"] == 8
    assert "--calib" in made.manifest.command


def test_texts_that_were_learned_from_are_not_judged_on(judged: Any, home: Path, tmp_path: Path) -> None:
    lines = (home / "text.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "both.jsonl").write_text("".join(lines[:2]))
    asked = {"eval": home / "text.jsonl", "calib": tmp_path / "both.jsonl", "column": ("text=body",)}
    with pytest.raises(BadInput, match="2 rows of the calibration data are in the evaluation data") as caught:
        optimizer.optimize(judged.best, **asked, max_drop="2%", store=home / "models", **QUICK)
    assert "--allow-overlap" in str(caught.value.hint)


def test_the_report_says_it_everywhere(judged: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((home / "models" / "tiny" / "1" / "verdict.json").read_text())
    assert kept == judged.to_json()
    assert kept["bench"]["report"] == "bench-generation"
    assert kept["data"]["eval"]["tokens"] > kept["data"]["eval"]["rows"]
    page = (home / "report.html").read_text()
    for said in ("Rise of perplexity", "beside the original", "+2 %", "decode/s, 2 texts", "same token"):
        assert said in page
    assert "rows/s" not in page
    assert run(["report", "tiny@best", "--store", str(home / "models")]) == 0
    shown = capsys.readouterr().out
    assert "perplexity rises by" in shown
    assert "2.00% are allowed" in shown


def test_what_it_is_says_that_it_writes_text(judged: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an artifact too; a folder that is no decoder, and a classifier's task, are optimized as ever."""
    assert run(["optimize", judged.best, "--dry-run", "--json", "--store", str(home / "models")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {step["run"] for each in plan["candidates"] for step in each["steps"]} == {"export-genai"}


@pytest.mark.parametrize(("target", "there"), [("ort", False), ("openvino", True)])
def test_a_target_chooses_what_is_tried(
    target: str, there: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    words = ["optimize", str(folder), "--dry-run", "--target", target, "--json", "--store", str(tmp_path)]
    assert run(words) == 0
    tried = [each["name"] for each in json.loads(capsys.readouterr().out)["candidates"]]
    assert ("int4-openvino" in tried, "int4" in tried) == (there, not there)
    assert all(("openvino" in name) is there for name in tried)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "text-generation", "--max-drop", "2%"], "judged on held-out text"),
        (["--eval", "text.jsonl"], "no budget is given"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--metric", "accuracy"], "write --metric perplexity"),
        (["--eval", "text.jsonl", "--min-cosine", "0.9"], "--min-cosine is not for models that write text"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--calib", "missing.jsonl"], "no such file"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--shapes-from", "text.jsonl"], "--shape 8x128+64"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--target", "tensorrt"], "--target ort or --target openvino"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--target", "ort,tensorrt"], "no text is written by it here"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--confidence", "0.999"], "ask for 0.995 at most"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--shape", "1x2+"], "8x128+64"),
        (["--eval", "text.jsonl", "--max-drop", "2%", "--precision", "fp16"], "lacks the kernels"),
        (["--eval", "missing.jsonl", "--max-drop", "2%"], "no such file"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    words: list[str], said: str, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    monkeypatch.setattr(texts_run, "export", lambda *a, **k: pytest.fail("work was begun"))
    assert run(["optimize", str(folder), *words, "--store", "elsewhere"]) == 2
    assert said in capsys.readouterr().err
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ('{"body": "def a():"}\n{"body": "import os"}\n', [], "2 texts of two tokens or more"),
        ('{"body": ""}\n' * 4, [], "two tokens"),
        ('{"words": "def a():"}\n', [], "body"),
        ('{"body": "def a():"}\n' * 4, ["--shape", "1x4000+10"], "more than the context of 128"),
    ],
)
def test_data_that_says_nothing(
    text: str, more: list[str], said: str, judged: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jsonl").write_text(text)
    asked = ["--eval", str(tmp_path / "text.jsonl"), "--column", "text=body", "--max-drop", "2%", *more]
    assert run(["optimize", judged.best, *asked, "--store", str(home / "models")]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_writes_no_text(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}')
    asked = ["optimize", str(bert), "--eval", str(home / "text.jsonl"), "--max-drop", "2%", "--store", str(tmp_path)]
    assert run([*asked, "--metric", "perplexity"]) == 2
    assert "BertForSequenceClassification does not write text" in capsys.readouterr().err
    assert run([*asked, "--task", "text-classification", "--metric", "perplexity"]) == 2
    assert "perplexity is of models that write text" in capsys.readouterr().err
