"""Where a store's things lie, and what else in its folder is not taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.layout import Layout, is_version
from optimizer.ref import REPORTS
from optimizer.store import Store


def test_what_is_found_is_what_a_commit_made(stocked: Store) -> None:
    layout = stocked.layout
    assert [p.name for p in layout.models()] == ["other", "toy"]
    assert [p.name for p in layout.versions("toy")] == ["1", "2"]
    assert [p.name for p in layout.variants(layout.version("toy", 1))] == ["fp32", "int8"]
    assert layout.version_file("toy", 1).is_file()
    assert layout.last_version("toy").is_file()


def test_strangers_in_the_folder_are_no_models(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for stranger in (".git", "a b", "toy/01", "toy/latest", "toy/1/.cache", f"toy/1/{REPORTS}", "toy/1/fp32"):
        (tmp_path / stranger).mkdir(parents=True)
    (tmp_path / "README.md").write_text("a file")
    assert [p.name for p in layout.models()] == ["toy"]
    assert [p.name for p in layout.versions("toy")] == ["1"]
    assert [p.name for p in layout.variants(layout.version("toy", 1))] == ["fp32"]
    assert layout.folders(tmp_path / "README.md") == layout.folders(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("name", "is_one"), [("1", True), ("10", True), ("0", False), ("01", False), ("٣", False), ("-1", False)]
)
def test_a_version_is_a_number_spelled_one_way(name: str, is_one: bool) -> None:
    assert is_version(name) is is_one
