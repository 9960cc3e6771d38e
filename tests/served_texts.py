"""A real server of the tiny Llama: in a process of its own, with and without a chat template, and with a broken one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores import commit

from optimizer.artifact import Artifact
from optimizer.store import Store
from optimizer.types import Kind

ROOT = Path(__file__).parents[1]

#: What an instruction model has, in small: roles, turns, and where the answer begins.
TEMPLATE = (
    "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}{{ raise_exception('the last turn is the model\\'s own') }}{% endif %}"
    "{% if add_generation_prompt %}def {% endif %}"
)


def put_text(store: Store, folder: Path, name: str, template: str = "") -> Artifact:
    """Commit a generator's folder under a name."""
    with store.scratch() as scratch:
        shutil.copytree(folder, scratch.path, dirs_exist_ok=True)
        if template:
            (scratch.path / "chat_template.jinja").write_text(template)
        key = f"{digest_of(name):0<64}"
        model = {"task": "text-generation"}
        return commit(store, scratch, name, {"digest": name}, "fp32", key, kind=Kind.GENERATOR, model=model)


def digest_of(name: str) -> str:
    return name.encode().hex()[:64]


@contextmanager
def served(store: Path, *words: str) -> Iterator[str]:
    """A server; its address once it is ready. It is asked to end, and has to do so with exit code 0."""
    command = [sys.executable, "-m", "optimizer", "serve", *words]
    command += ["--store", str(store), "--port", "0", "--json", "--threads", "1", "--no-access-log"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server ended before it was ready"
        yield str(json.loads(line)["url"])
    finally:
        code = ended(process)
    assert code == 0


def ended(process: subprocess.Popen[str]) -> int:
    """Ask a server to end, and its exit code; one that does not within half a minute is killed, and the wait fails."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(30)
    finally:
        process.kill()
