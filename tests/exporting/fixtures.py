"""Model folders of the benchmarks' architectures, saved once a session."""

import json
from pathlib import Path

import pytest

from benchmarks.architectures import save


@pytest.fixture(scope="session")
def arch(tmp_path_factory):
    """``arch(name, task)`` → a folder that no test may change."""
    made = {}

    def folder(name: str, task: str) -> Path:
        if (name, task) not in made:
            made[name, task] = save(name, task, tmp_path_factory.mktemp(name))
        return made[name, task]

    return folder


def edit(folder: Path, **changes: object) -> Path:
    """Change ``config.json``; None removes an entry."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder
