"""The metric of each task from a model folder to a kept verdict, columns named by hand; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import f1_score
from tiny import phrases, tiny_bert, write

import optimizer
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.search.asked import columns_of
from optimizer.search.candidates import plan
from optimizer.search.machine import Machine
from optimizer.search.options import Optimize
from optimizer.store import Store

QUICK = {"duration": 0.05, "rounds": 3, "threads": 1, "precision": ("fp32",), "roofline": False}
FLAGS = ["--duration", "0.05", "--rounds", "3", "--threads", "1", "--precision", "fp32", "--no-roofline"]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def exported(folder: Path, store: Path) -> str:
    """The reference of an export whose source is gone: it is the original itself, and no process loads PyTorch."""
    ref = optimizer.export_onnx(str(folder), store=store).artifact.ref
    shutil.rmtree(folder)
    return str(ref)


def test_f1_of_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = tiny_bert(tmp_path / "tagger", "BertForTokenClassification", id2label=dict(enumerate(NAMES)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    drawn = np.random.default_rng(0)
    rows, tags, said = [], [], []
    for words in phrases(140, 1, longest=8):
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1)
        said.append([NAMES[best[encoded.word_ids().index(place)]] for place in range(len(words))])
        # One word in eight is tagged otherwise than the model does.
        tags.append([NAMES[drawn.integers(5)] if drawn.random() < 0.125 else tag for tag in said[-1]])
        rows.append({"w": words, "t": tags[-1]})
    write(tmp_path / "eval.jsonl", rows)
    words = ["optimize", str(folder), "--eval", str(tmp_path / "eval.jsonl"), "--max-drop", "0.2"]
    words += ["--column", "tokens=w", "--column", "tags=t", "--store", str(tmp_path / "models"), *FLAGS]
    assert run([*words, "--report", str(tmp_path / "r.html")]) == 0
    out = capsys.readouterr()
    assert "f1" in out.out
    report = json.loads((tmp_path / "models" / "tagger" / "1" / "verdict.json").read_text())
    assert (report["metric"], report["verdict"]) == ("f1", "PASS")
    original = report["original"]
    assert original["accuracy"]["value"] == pytest.approx(f1_score(tags, said), abs=1e-9)
    assert original["accuracy"]["low"] < original["accuracy"]["value"] < original["accuracy"]["high"]
    assert np.array(original["rows"]["right"]).shape == (140, 3)
    winner = next(c for c in report["candidates"] if c["ref"] == report["best"])
    assert winner["gates"][0]["name"] == "f1 drop"
    assert report["accuracy"]["drop"] == {key: winner["gates"][0][key] for key in ("value", "low", "high")}
    assert len(winner["rows"]["kl"]) == 140
    assert 0 <= winner["kl"]["mean"] <= winner["kl"]["worst"] < 1e-6
    assert report["kl"] == winner["kl"]
    assert "--column tokens=w --column tags=t" in report["command"]
    page = (tmp_path / "r.html").read_text()
    assert "mean KL" in page
    assert "f1; the original has" in page


def test_exact_match_of_answers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    folder = tiny_bert(tmp_path / "reader", "BertForQuestionAnswering")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    rows = []
    for place, words in enumerate(phrases(80, 1, longest=8)):
        question, context = "q a", " ".join(words)
        encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            out = model(**encoded)
        own = [token for token, text in enumerate(encoded.sequence_ids()) if text == 1]
        _, first, last = max(
            (float(out.start_logits[0, i] + out.end_logits[0, j]), i, j) for i in own for j in own if i <= j
        )
        said = context[offsets[first][0] : offsets[last][1]]
        rows.append({"q": question, "context": context, "answers": "no such" if place % 4 == 0 else [said]})
    report = optimizer.optimize(
        exported(folder, tmp_path / "models"), eval=write(tmp_path / "eval.jsonl", rows), max_drop=0.1,
        metric="exact-match", column=("question=q",), store=tmp_path / "models", **QUICK,
    )  # fmt: skip
    assert (report.metric, report.verdict) == ("exact-match", "PASS")
    assert report.original.accuracy.value == 0.75
    assert report.original.rows["right"][:5] == [0, 1, 1, 1, 0]
    assert report.winner.gates[0].name == "exact-match drop"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An embedder, scored pairs that it is right about more often than not, and a verdict over them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    home = tmp_path_factory.mktemp("pairs")
    folder = tiny_bert(home / "embedder", "BertModel")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [" ".join(words) for words in phrases(300, 1)]
    vectors = []
    with torch.inference_mode():
        for text in texts:
            encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
            vectors.append(model(**encoded).last_hidden_state[0].mean(0))
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    noise = np.random.default_rng(0).normal(0, np.std(cosines), len(cosines))
    scores = np.round(5 * (np.array(cosines) + noise)).tolist()
    rows = [
        {"sentence1": a, "sentence2": b, "label": s} for a, b, s in zip(texts[::2], texts[1::2], scores, strict=True)
    ]
    write(home / "eval.jsonl", rows)
    ref = exported(folder, home / "models")
    report = optimizer.optimize(
        ref, eval=home / "eval.jsonl", column=("score=label",), max_drop=0.1, store=home / "models", **QUICK
    )
    return {"home": home, "report": report, "truth": stats.spearmanr(scores, cosines).statistic, "rows": rows}


def test_spearman_of_scored_pairs(pairs: dict[str, Any]) -> None:
    report = pairs["report"]
    assert (report.metric, report.verdict) == ("spearman", "PASS")
    assert report.original.accuracy.value == pytest.approx(pairs["truth"], abs=1e-4)
    assert 0.4 < report.original.accuracy.low < report.original.accuracy.high < 0.95
    winner = report.winner
    assert (winner.seen, len(winner.rows["right"]), len(winner.rows["cosine"])) == (150, 150, 150)
    assert winner.kl == {}
    assert report.data["eval"]["rows"] == 150
    assert sum(report.data["eval"]["histogram"]["counts"]) == 300, "both texts of a pair are read"


def test_either_text_of_a_pair_may_leak(pairs: dict[str, Any], tmp_path: Path) -> None:
    calib = write(tmp_path / "calib.jsonl", [{"text": "x y z"}, {"text": pairs["rows"][3]["sentence2"]}])
    with pytest.raises(BadInput, match="1 rows of the calibration data are in the evaluation data too"):
        optimizer.optimize(
            "embedder:fp32", eval=pairs["home"] / "eval.jsonl", calib=calib, column=("score=label",), max_drop=0.1,
            store=pairs["home"] / "models", **QUICK,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column for score: wanted score or .*, found sentence1, sentence2, label"),
        ({"column": ("score=stars",)}, "no column for score: wanted stars, found sentence1, sentence2, label"),
        ({"column": ("score=label", "text=review")}, "no column for text: wanted review"),
        ({"column": ("scores=label",)}, "unknown column role: 'scores'; did you mean score"),
        ({"column": ("score=label",), "metric": "f1"}, "f1 cannot be measured here: the task feature-extraction has"),
        ({"column": ("score=label",), "metric": "accuracy"}, "accuracy cannot be measured here"),
        ({"column": ("score=label",), "confidence": 0.999}, "more than the bounds of spearman can be drawn for"),
    ],
)
def test_what_does_not_fit_is_refused(pairs: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        optimizer.optimize(
            "embedder:fp32", eval=pairs["home"] / "eval.jsonl", max_drop=0.1, store=pairs["home"] / "models",
            **{**QUICK, **options},
        )  # fmt: skip


def test_calibration_needs_no_column_of_answers(tmp_path: Path) -> None:
    calib = write(tmp_path / "calib.jsonl", [{"review": "a", "stars": 1}])
    chosen = Optimize(calib=calib, column=("text=review", "label=stars", "score=points"))
    assert columns_of(calib, chosen) == ("text=review", "label=stars")
    assert columns_of(None, chosen) == ()
    machine = Machine(frozenset({"avx512_vnni"}))
    made = plan(machine, calib=calib, columns=("text=review",)).ideas
    static = [step.options["column"] for idea in made for step in idea.steps if "calib" in step.options]
    assert static
    assert all(column == ["text=review"] for column in static)


def test_a_calibration_set_has_the_names_of_the_model(
    pairs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(pairs["home"] / "models")
    data = write(tmp_path / "data.jsonl", [{"review": " ".join(words)} for words in phrases(24, 9)])
    made = optimizer.calibration_set(
        "embedder:fp32", data=data, column=("text=review",), samples=16, store=store
    ).artifact
    assert made.manifest.options["column"] == ["text=review"]
    assert columns_of(made.path, Optimize(column=("text=review",))) == ()
    quantize = ["quantize", "static", "embedder:fp32", "--calib", made.ref, "--store", str(store.root)]
    assert run([*quantize, "--column", "text=review"]) == 2
    assert "is a calibration set, whose columns are called what they are" in capsys.readouterr().err
    # The same rows by another way are the same artifact.
    of_file = optimizer.quantize_static(
        "embedder:fp32", calib=data, column=("text=review",), samples=16, variant="of-file", store=store
    )
    of_set = optimizer.quantize_static("embedder:fp32", calib=made.ref, store=store)
    assert of_set.cached
    assert of_set.artifact.ref == of_file.artifact.ref


def test_columns_by_name_wherever_data_is_read(
    pairs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", [{"review": " ".join(words), "stars": 1} for words in phrases(24, 9)])
    outside = ["--store", str(pairs["home"] / "models")]
    named = ["--column", "text=review", "--column", "label=stars"]
    assert run(["quantize", "static", "embedder:fp32", "--calib", str(data), *named, *outside]) == 0
    manifest = Store(pairs["home"] / "models").get("embedder:int8-static").manifest
    assert manifest.options["column"] == ["text=review", "label=stars"]
    assert "--column text=review --column label=stars" in manifest.command
    assert manifest.facts["calibration"]["labels"] == {"1": 24}
    assert run(["sensitivity", "embedder:fp32", "--calib", str(data), *named, *outside]) == 0
    verify = ["verify", "embedder:fp32", "--against", "embedder:fp32", "--no-sweep", "--data", str(data)]
    assert run([*verify, *named, *outside]) == 0
    bench = ["bench", "embedder:fp32", "--against", "embedder:int8-static", "--data", str(data), "--threads", "1"]
    bench += ["--shape", "1x8", "--duration", "0.05", "--rounds", "3", "--min-samples", "3"]
    assert run([*bench, *named, *outside]) == 0
    capsys.readouterr()
    for command in (verify, bench, ["sensitivity", "embedder:fp32", "--calib", str(data)]):
        assert run([*command, *outside]) == 2
        assert "has no column for text: wanted text or sentence" in capsys.readouterr().err
        assert run([*command, "--column", "text=words", *outside]) == 2
        said = capsys.readouterr().err
        assert "has no column for text: wanted words, found review, stars" in said
        assert "--column text=COLUMN" in said


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("review", "--column 'review' names no column"),
        ("=review", "--column '=review' names no column"),
        ("text=", "--column 'text=' names no column"),
    ],
)
def test_a_flag_that_names_no_column(
    column: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write(tmp_path / "data.jsonl", [{"text": "a"}]))
    for words in (["optimize", "m", "--eval", data], ["bench", "m", "--data", data], ["verify", "m", "--data", data],
                  ["sensitivity", "m", "--calib", data], ["quantize", "static", "m", "--calib", data]):  # fmt: skip
        assert run([*words, "--column", column, "--store", str(tmp_path / "models")]) == 2
        assert message in capsys.readouterr().err
    assert run(["bench", "m", "--data", data, "--column", "text=a", "--column", "text=b"]) == 2
    assert "--column says twice which one is text: a and b" in capsys.readouterr().err
    for command in ("bench", "verify"):
        assert run([command, "m", "--column", "text=a"]) == 2
        assert "add --data FILE" in capsys.readouterr().err
