"""Freed memory is taken again: seen in the page faults of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import toys as toybox

#: Takes and frees 100 MiB ten times, and prints how many pages of 4 KiB that faulted on.
COPIES = """
import resource, sys
from optimizer.memory import reuse_freed
if sys.argv[1] == "reuse":
    reuse_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(b"x") * (100 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() // 2**20)
"""


def faulted(word: str) -> int:
    """MiB of memory that was not there when it was first touched."""
    # Huge pages would hide what is counted.
    environment = toybox.environment(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    words = [sys.executable, "-c", COPIES, word]
    return int(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_the_second_copy_takes_the_memory_of_the_first() -> None:
    assert faulted("reuse") < 200
    assert faulted("as it is") > 400
