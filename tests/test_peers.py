"""Other toolchains beside ours: what they are asked and say, and the table that comes of it, on planted models."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import arrange
from benchmarks.peers.__main__ import _with
from benchmarks.peers.arrange import PEERS, calibrating, made_by, need
from benchmarks.peers.job import Job, Made, _why, calibration, prepare
from benchmarks.peers.side_by_side import Judged, SideBySide, _against, _thinned, losses, read, to_markdown, written
from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Plan
from optimizer.benching.run import bench
from optimizer.benching.shape import Shape
from optimizer.errors import MissingPiece
from optimizer.runtime import Candidate, Provider
from optimizer.stage import silent
from optimizer.store import Store


def test_one_maker_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "row.npz", x=np.arange(3))
    job = Job("", "generic", "m.onnx", (str(tmp_path / "row.npz"),), str(tmp_path / "out"))
    (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
    monkeypatch.setattr(sys, "argv", ["peer", "prepare", str(tmp_path / "job.json")])

    def good(asked: Job, folder: Path) -> Made:
        assert folder.is_dir()
        assert [row["x"].tolist() for row in calibration(asked)] == [[0, 1, 2]]
        return Made("good", f"{asked.onnx} of {asked.task}", "bf16")

    def bad(asked: Job, folder: Path) -> Made:
        raise RuntimeError("no such operator\nand more")

    prepare({"bad": bad, "good": good, "not for this model": lambda asked, folder: None})
    assert json.loads((tmp_path / "out" / "made.json").read_text()) == {
        "made": [{"name": "good", "path": "m.onnx of generic", "precision": "bf16"}],
        "failed": {"bad": "RuntimeError: no such operator"},
    }


def test_a_peer_is_made_once_and_brings_its_own_worker(
    minilm_store: Store, train_sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's own side is stood in for by what it writes; what it is asked is real."""
    monkeypatch.setattr(arrange, "ENVIRONMENTS", tmp_path)
    (tmp_path / "openvino" / "bin").mkdir(parents=True)
    (tmp_path / "openvino" / "bin" / "python").symlink_to(sys.executable)
    asked = []

    def stand_in(peer: arrange.Peer, folder: Path, threads: int) -> None:
        asked.append(Job(**json.loads((folder / "job.json").read_text())))
        made = [asdict(Made("NNCF int8", "model.xml")), asdict(Made("bf16", "model.onnx", "bf16"))]
        (folder / "made.json").write_text(json.dumps({"made": made, "failed": {"x": "why"}}))

    monkeypatch.setattr(arrange, "_prepare", stand_in)
    artifact = minilm_store.get("minilm:fp32")
    calib = calibrating(artifact, train_sentences, tmp_path, rows=6)
    with np.load(calib[0]) as row:
        assert set(row.files) == {spec["name"] for spec in artifact.manifest.facts["inputs"]}
        assert row["input_ids"].shape[0] == 1
        assert row["attention_mask"].all(), "a row alone needs no padding"
    for _ in range(2):
        entrants, failed = made_by(PEERS["openvino"], artifact, tmp_path, calib, tmp_path / "cache", 1)
    (job,) = asked
    assert (job.source, job.task, job.onnx) == (str(tmp_path), "feature-extraction", str(artifact.model_file))
    assert [entrant.label for entrant in entrants] == ["openvino: NNCF int8", "openvino: bf16"]
    assert entrants[1].candidate.provider.precision == "bf16"
    python = str(tmp_path / "openvino" / "bin" / "python")
    assert entrants[0].candidate.command == (python, "-m", "benchmarks.peers.openvino_native")
    assert failed == {"x": "why"}
    made_by(PEERS["openvino"], artifact, tmp_path, calib[:3], tmp_path / "cache", 1)
    assert len(asked) == 2, "other rows, other models"


def test_an_environment_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "ENVIRONMENTS", tmp_path)
    with pytest.raises(MissingPiece, match="environment of the peer optimum") as caught:
        need([PEERS["optimum"]])
    assert caught.value.hint == "run: make bench-peers"


def planted(tmp_path: Path, name: str, milliseconds: float) -> Entrant:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"latency_s": milliseconds / 1e3, "wait": "sleep"}))
    return Entrant(Candidate(name, path, Provider("fake")))


def test_ours_against_each_is_their_time_over_ours(tmp_path: Path) -> None:
    entrants = [planted(tmp_path, name, ms) for name, ms in (("torch", 12), ("ours", 4), ("peer", 8), ("ahead", 2))]
    plan = Plan((Shape(1, 4),), 1, rounds=4, seconds=0.05, samples=8, timeout=30.0, warm_limit_s=0.3)
    report = bench(entrants, "torch", plan, silent)
    against = _against(report, "ours")
    assert against.keys() == {"torch", "peer", "ahead"}
    assert against["peer"]["1x4"].value == pytest.approx(2, rel=0.25)
    assert against["ahead"]["1x4"].high < 1
    judged = {
        "torch": Judged(0.9, 1.0, 1.0, 1.0),
        "ours": Judged(0.9, 0.999, 0.9999, 1.0),
        "peer": Judged(0.89, 0.99, 0.995, 0.98),
        "ahead": Judged(0.5, 0.1, 0.2, 0.5),
    }
    found = SideBySide(
        "minilm",
        "ours",
        "PASS",
        600,
        judged,
        against,
        report,
        {"peer: O3": "RuntimeError: no"},
        {"peer": {"tool": "1.2"}},
    )
    (lost,) = losses(found)
    assert lost.startswith("minilm at 1 × 4: ahead takes 0.")
    assert lost.endswith(
        "of our time (accuracy 50.00%; ours accuracy 90.00%): not within the budget (a cosine of 0.999)"
    )
    (lax,) = losses(replace(found, judged={**judged, "ahead": judged["ours"]}))
    assert lax.endswith("ours accuracy 90.00%): within the budget")
    (dropped,) = losses(replace(found, model="vit"))
    assert dropped.endswith("not within the budget (a drop of 1%)")
    (other,) = losses(replace(found, model="magika"))
    assert other.endswith("not within the budget (a cosine of 0.99 and 98% of equal decisions)")
    table = [line for line in to_markdown(found).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1, "every line has the same cells"
    assert table[3].startswith("| **ours** | 90.00% | 0.99900 / 0.99990 | 100.00% |")
    assert "not made: RuntimeError: no" in table[-1]
    assert "; peer: tool 1.2. Ours is `ours`" in to_markdown(found)
    assert f"- {lost}" in to_markdown(found).splitlines()
    written([found], tmp_path / "peers.json")
    (again,) = read(tmp_path / "peers.json")
    assert to_markdown(again) == to_markdown(found)
    assert _with([again], replace(found, model="vit")) == [again, replace(found, model="vit")]
    assert _with([replace(again, rows=5, model="vit")], replace(found, model="vit"))[0].rows == 600


def test_long_lists_of_samples_are_thinned_and_nothing_else() -> None:
    short, words = [1.0] * 64, ["a"] * 100
    thin = _thinned({"row": [[float(each) for each in range(1000)], short], "words": words, "n": 5})
    assert thin["row"][0] == [float(each) for each in range(0, 1000, 16)]
    assert (thin["row"][1], thin["words"], thin["n"]) == (short, words, 5)


def test_a_column_without_a_number_is_left_out(tmp_path: Path) -> None:
    plan = Plan((Shape(1, 4),), 1, rounds=3, seconds=0.01, samples=3, timeout=30.0, warm_limit_s=0.1)
    report = bench([planted(tmp_path, "torch", 1), planted(tmp_path, "ours", 1)], "torch", plan, silent)
    judged = {name: Judged(None, 0.9, 0.95) for name in ("torch", "ours")}
    table = to_markdown(SideBySide("minilm", "ours", "PASS", 6, judged, _against(report, "ours"), report))
    assert "|  | cosine worst / mean | 1 × 4: ms | ours is faster by |" in table.splitlines()


def test_why_a_maker_failed_names_what_is_behind_it() -> None:
    try:
        try:
            raise ValueError("zero\nscale")
        except ValueError as error:
            raise RuntimeError("quantize_static failed.") from error
    except RuntimeError as caught:
        assert _why(caught) == "RuntimeError: quantize_static failed. (ValueError: zero)"
