"""A model that a benchmark trains is trained once, and anew when what it is made from changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.trained import STAMP, trained


def test_it_is_trained_once_and_anew_when_something_changed(tmp_path: Path) -> None:
    runs: list[Path] = []

    def train(out: Path) -> dict[str, int]:
        runs.append(out)
        (out / "model").write_text(str(len(runs)))
        return {"loss": len(runs)}

    folder = tmp_path / "model"
    for made_from, expected in (({"seed": 0}, 1), ({"seed": 0}, 1), ({"seed": 1}, 2)):
        assert trained(folder, made_from, train) == folder
        assert (folder / "model").read_text() == str(expected) == str(len(runs))
        assert json.loads((folder / STAMP).read_text()) == {"of": made_from, "loss": expected}


def test_a_training_that_was_cut_short_leaves_what_was_there(tmp_path: Path) -> None:
    folder = trained(tmp_path / "model", {"seed": 0}, lambda out: {})

    def dies(out: Path) -> dict[str, int]:
        (out / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder, {"seed": 1}, dies)
    assert json.loads((folder / STAMP).read_text())["of"] == {"seed": 0}
    assert not (trained(folder, {"seed": 2}, lambda out: {}) / "half").exists()
