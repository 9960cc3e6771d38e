"""What calibrating came to is kept for the next variant, and never a reason for another result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stages.tiny_bert import bert

import optimizer
from optimizer import upkeep
from optimizer.quantizing import alpha, calibrate
from optimizer.store import Store

__all__ = ["bert"]

#: In this order each finds something that an earlier one has kept, and something that none has.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"exclude_worst": 1},
    {"method": "percentile"},
    {"method": "entropy", "exclude_worst": 2},
    {"smooth": True, "alpha": 0.55},
    {"smooth": True},
    {"smooth": True, "exclude_worst": 1},
    {"smooth": True, "method": "percentile"},
    {"smooth": True, "per_channel": False},
    {"symmetric": True},
    {"op_types": ("all",), "exclude_worst": 1},
    {"samples": 9},
    {"batch": 3},
)


def made(store: Store, texts: Path, number: int) -> Any:
    options = {"samples": 12, **VARIANTS[number]}
    return optimizer.quantize_static("tiny:fp32", calib=texts, variant=f"v{number}", store=store, **options).artifact


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of several lengths, each another one."""
    path = tmp_path_factory.mktemp("rows") / "texts.txt"
    path.write_text(
        "\n".join(" ".join("abcdefghijklmnopqrstuvwx"[place : place + 2 + place % 7]) for place in range(16))
    )
    return path


@pytest.fixture
def empty(bert: tuple[Store, Path], tmp_path: Path) -> Store:
    """The store with the float graph alone, and nothing kept."""
    return fresh(bert[0], tmp_path / "models")


def fresh(store: Store, folder: Path) -> Store:
    """A store with the float graph alone, and nothing kept."""
    shutil.copytree(store.root / "tiny" / "1" / "fp32", folder / "tiny" / "1" / "fp32")
    shutil.copyfile(store.root / "tiny" / "1" / "version.json", folder / "tiny" / "1" / "version.json")
    return Store(folder)


def test_every_variant_is_the_same_to_the_byte_with_what_is_kept_and_without(
    bert: tuple[Store, Path], texts: Path, empty: Store, tmp_path: Path
) -> None:
    for number in range(len(VARIANTS)):
        with_it = made(empty, texts, number)
        without = made(fresh(bert[0], tmp_path / f"alone-{number}"), texts, number)
        assert with_it.manifest.files == without.manifest.files, VARIANTS[number]
        assert with_it.manifest.facts == without.manifest.facts, VARIANTS[number]
        assert with_it.manifest.key == without.manifest.key
    assert list(empty.layout.calibrated.iterdir())


def refuse(*args: Any, **options: Any) -> Any:
    raise AssertionError("this was known already")


def test_what_leaves_nodes_in_float_is_not_calibrated_again(
    texts: Path, empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(empty, texts, 0)
    made(empty, texts, 5)
    for module, name in ((calibrate, "calibrate"), (alpha, "record"), (alpha, "check_exact"), (alpha, "cosines")):
        monkeypatch.setattr(module, name, refuse)
    made(empty, texts, 1)
    made(empty, texts, 6)
    for number in (2, 4, 7, 8, 9, 11, 12):  # other ranges, other alphas, other forms, other rows
        with pytest.raises(AssertionError, match="known already"):
            made(empty, texts, number)
    upkeep.gc(empty)
    upkeep.remove(empty, "tiny:v1")
    with pytest.raises(AssertionError, match="known already"):
        made(empty, texts, 1)


def test_half_of_what_was_kept_is_nothing(bert: tuple[Store, Path], texts: Path, empty: Store, tmp_path: Path) -> None:
    made(empty, texts, 5)
    for path in empty.layout.calibrated.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    again = made(empty, texts, 6)
    assert again.manifest.files == made(fresh(bert[0], tmp_path / "alone"), texts, 6).manifest.files
