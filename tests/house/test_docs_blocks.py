"""The code in README.md and docs/*.md is run.

A fenced ``console`` or ``python`` block runs when the line before it is ``<!-- run -->``. The blocks of one page run
in order in one folder, which holds ``all-MiniLM-L6-v2``, the real model, and ``reviews.jsonl``, labelled sentences.
In a console block the lines that begin with ``$`` are commands, and each must end with exit code 0.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import toys as toybox

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
MARK = "<!-- run -->"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def marked_blocks(text: str) -> list[Block]:
    """The blocks of a page that are marked to be run."""
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
        if before.strip() == MARK:
            found.append(Block(fence[1], fence[2], text.count("\n", 0, fence.start()) + 1))
    return found


def commands(block: Block) -> list[list[str]]:
    """What to start for a block."""
    if block.language == "python":
        return [[sys.executable, "-c", block.text]]
    lines = re.sub(r"\\\n", " ", block.text).splitlines()
    return [["bash", "-euo", "pipefail", "-c", line[2:]] for line in lines if line.startswith("$ ")]


def test_blocks_are_found_where_they_are_marked() -> None:
    page = "a\n\n{M}\n```console\n$ one \\\n  two\nanswer\n$ three\n```\n\n```python\nno()\n```\n\n{M}\n\n"
    page = (page + "```python\nyes()\n```\n").replace("{M}", MARK)
    blocks = marked_blocks(page)
    assert [(b.language, b.line) for b in blocks] == [("console", 4), ("python", 17)]
    assert [c[-1] for c in commands(blocks[0])] == ["one    two", "three"]
    assert commands(blocks[1])[0][-1] == "yes()\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_mark_has_its_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = marked_blocks(text)
    assert len(blocks) == text.count(MARK)
    assert all(b.language in ("console", "python") and commands(b) for b in blocks)


def test_the_readme_has_blocks_that_run() -> None:
    assert marked_blocks((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if MARK in p.read_text(encoding="utf-8")], ids=lambda p: p.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, minilm_dir: Path, sentences: Path) -> None:
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(minilm_dir)
    rows = sentences.read_text(encoding="utf-8").splitlines(keepends=True)[:32]
    (tmp_path / "reviews.jsonl").write_text("".join(rows), encoding="utf-8")
    env = toybox.environment(HF_HUB_OFFLINE="1")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    for block in marked_blocks(page.read_text(encoding="utf-8")):
        for command in commands(block):
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            where = f"{page.name}, line {block.line}: {command[-1]}"
            assert done.returncode == 0, f"{where}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
