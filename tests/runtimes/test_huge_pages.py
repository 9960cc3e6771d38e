"""Weights lie on huge pages where the system has them, and memory does not grow by that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.runtimes import _huge_pages
from optimizer.store import Store

#: Opens a session in a process of its own, as pages of other tests' models would be counted too.
OPENED = """
import json, sys
from pathlib import Path
import numpy as np
from optimizer.runtime import Provider, SessionOptions, get_runtime

def memory():
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {name[:-1]: 1024 * int(size) for name, size, *_ in lines}

moved = []
if sys.argv[2] == "small":
    import optimizer.runtimes.ort as ort
    ort.onto_huge_pages = lambda: 0
else:
    import optimizer.runtimes.ort as ort
    really = ort.onto_huge_pages
    def watched():
        moved.append(memory())
        return really()
    ort.onto_huge_pages = watched
provider = Provider("cpu")
session = get_runtime(provider).open(Path(sys.argv[1]), SessionOptions(provider, threads=1), model={})
after = memory()
ids = np.arange(1000, 1016)[None]
answers = session.run({spec.name: ids if spec.name == "input_ids" else ids * 0 + 1 for spec in session.inputs})
print(json.dumps({
    "facts": session.facts["huge_pages"], "huge": after["AnonHugePages"],
    "grew": after["Rss"] - moved[0]["Rss"] if moved else 0,
    "answers": {name: each.tolist() for name, each in answers.items()},
    "again": really() if moved else 0,
}))
"""


@pytest.fixture
def huge_pages() -> None:
    """For what needs the system's huge pages: skipped where it has none."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists() or "[never]" in path.read_text():
        pytest.skip("this system has no transparent huge pages")


def opened(store: Store, how: str) -> dict[str, object]:
    path = store.get("minilm:fp32").path / "model.onnx"
    done = subprocess.run([sys.executable, "-c", OPENED, str(path), how], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_weights_lie_on_huge_pages_and_nothing_grows(huge_pages: None, minilm_store: Store) -> None:
    small, huge = opened(minilm_store, "small"), opened(minilm_store, "huge")
    # 22 million weights of four bytes; what is left over at the ends of mappings stays.
    assert huge["facts"] > 80e6
    assert huge["huge"] >= huge["facts"]
    assert small["huge"] < 20e6
    assert huge["answers"] == small["answers"]
    assert huge["grew"] < 8e6
    # A page that could not be had the first time, or an allocator's that filled up since, may move now.
    assert huge["again"] < huge["facts"] / 10, "what lies there already is not moved again"


SMAPS = """\
7f0000000000-7f0000a00000 rw-p 00000000 00:00 0
Size:              10240 kB
Rss:               {full} kB
AnonHugePages:     {huge} kB
7f0001000000-7f0001a00000 {rights} 00000000 00:00 {inode}
Rss:               10240 kB
AnonHugePages:         0 kB
7f0002100000-7f0002a00000 rw-p 00000000 00:00 0 [anon]
Rss:                9216 kB
AnonHugePages:         0 kB
7f0003000000-7f0003100000 rw-p 00000000 00:00 0
Rss:                1024 kB
AnonHugePages:         0 kB
"""
FIRST, SECOND, THIRD = (0x7F0000000000, 10 << 20), (0x7F0001000000, 10 << 20), (0x7F0002200000, 8 << 20)


@pytest.mark.parametrize(
    ("full", "huge", "rights", "inode", "expected"),
    [
        (10240, 0, "rw-p", 0, [FIRST, SECOND, THIRD]),
        (512, 0, "rw-p", 0, [SECOND, THIRD]),  # as a thread's stack: all but empty
        (10240, 10240, "rw-p", 0, [SECOND, THIRD]),  # there already
        (10240, 0, "r--p", 0, [FIRST, THIRD]),
        (10240, 0, "rw-s", 0, [FIRST, THIRD]),
        (10240, 0, "rw-p", 77, [FIRST, THIRD]),  # of a file
    ],
)
def test_only_what_is_full_private_and_on_small_pages_moves(
    monkeypatch: pytest.MonkeyPatch, full: int, huge: int, rights: str, inode: int, expected: list[tuple[int, int]]
) -> None:
    text = SMAPS.format(full=full, huge=huge, rights=rights, inode=inode)
    monkeypatch.setattr(_huge_pages.Path, "read_text", lambda self: text)
    assert list(_huge_pages._small_paged()) == expected


def test_a_system_that_tells_nothing_leaves_memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(_huge_pages.Path, "read_text", refused)
    assert _huge_pages.onto_huge_pages() == 0
