"""Is the extra ``serve`` enough? In an environment that has nothing else: install it, serve a model, ask.

    make check-serve-extra

MiniLM is exported here, by the environment of development. A new environment gets ``.[serve]`` from this checkout and
nothing else, and may not find this checkout's own modules. Of what it then has, nothing may be torch, transformers or
of their kin; its ``ml-opt serve`` has to be ready with the model, its golden inputs replayed, to answer sentences as
ONNX Runtime does here, and to end with 0. Needs the network, or pip's own cache. Exit code 1 where something is not so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.serving.door import ROOT, STORE, minilm
from optimizer.artifact import Artifact
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row
from optimizer.runtime import Candidate, Provider
from optimizer.tasks.feature_extraction import vectors

#: What an environment that only serves has no use for.
HEAVY = {"torch", "transformers", "onnx", "onnx-ir", "onnxscript", "pyarrow", "openvino", "scipy", "sympy", "pytest"}
TEXTS = ["a film that I will not see again", "warm", "the second half makes up for the first"]
#: Most that a number of a vector of length 1 may differ by.
_CLOSE = 1e-5


def installed(folder: Path) -> Path:
    """A new environment with the extra in it; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", f"{ROOT}[serve]"], check=True, cwd=folder)
    return python


def alone() -> dict[str, str]:
    """The environment of processes there: no other place for modules than their own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def distributions(python: Path, folder: Path) -> dict[str, str]:
    """What is installed there, with versions."""
    command = [str(python), "-m", "pip", "list", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=alone())
    return {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(done.stdout)}


def wanted(artifact: Artifact) -> list[list[float]]:
    """The vectors of the texts, each alone, by a session here."""
    session = Candidate("here", artifact.model_file, Provider("cpu"), "", artifact.model_info).open(threads=1)
    prepared = Preprocessor.open(artifact.path, artifact.model_info)
    found = []
    for text in TEXTS:
        feeds = prepared.feeds([Row(Path("texts"), 0, {"text": text})])
        vector = vectors(session.run(feeds), feeds, artifact.model_info)[0]
        length = float(sum(float(each) ** 2 for each in vector)) ** 0.5
        found.append([float(each) / length for each in vector])
    session.close()
    return found


def served(python: Path, artifact: Artifact, folder: Path) -> list[list[float]]:
    """What a server there answers; raises SystemExit where it is not ready, or does not end as it should."""
    command = [str(python.parent / "ml-opt"), "serve", artifact.ref, "--store", str(STORE), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=alone())
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if '"ready"' not in line:
            raise SystemExit(f"the server ended before it was ready: {line}")
        body = json.dumps({"input": TEXTS, "encoding_format": "float"}).encode()
        request = urllib.request.Request(
            f"{json.loads(line)['url']}/v1/embeddings", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        server.send_signal(signal.SIGTERM)
        if code := server.wait(60):
            raise SystemExit(f"the server ended with {code}")
    finally:
        server.kill()
    return [each["embedding"] for each in answer["data"]]


def main() -> None:
    artifact, _ = minilm()
    with tempfile.TemporaryDirectory(prefix="serve-extra-") as home:
        folder = Path(home)
        python = installed(folder / "environment")
        has = distributions(python, folder)
        if heavy := sorted(HEAVY & set(has)):
            raise SystemExit(f"the extra serve brings {', '.join(heavy)}")
        got, right = served(python, artifact, folder), wanted(artifact)
        apart = max(
            abs(a - b) for ours, theirs in zip(got, right, strict=True) for a, b in zip(ours, theirs, strict=True)
        )
        if apart > _CLOSE:
            raise SystemExit(f"answers differ by {apart:.1e}")
        print(f"{len(has)} distributions, none of {', '.join(sorted(HEAVY))}; answers differ by {apart:.1e}")


if __name__ == "__main__":
    main()
