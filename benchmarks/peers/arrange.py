"""ml-opt's side of a peer: where its environment is, what it makes there, and how it takes part in a benchmark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Job
from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant
from optimizer.benching.inputs import save
from optimizer.benching.process import worker_environment
from optimizer.data.calibration import sample
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import read_rows
from optimizer.digest import digest_file, digest_json
from optimizer.errors import MissingPiece
from optimizer.runtime import Candidate, Provider

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"
_NAME = re.compile(r"[A-Za-z][\w.-]*")
#: Rows that every toolchain calibrates on; the same ones.
CALIB_ROWS = 128


@dataclass(frozen=True)
class Peer:
    """One toolchain.

    Attributes:
        name: of its environment, its requirements and its rows in the table.
        module: what is run there.
        worker: what its models are measured in; its own module, or ml-opt's worker for plain ONNX files.
    """

    name: str
    module: str
    worker: str

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    @property
    def packages(self) -> dict[str, str]:
        """Everything that is installed in its environment, and in which version."""
        words = [self.python, "-m", "pip", "list", "--format", "json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return {each["name"]: each["version"] for each in json.loads(done.stdout)}

    @property
    def versions(self) -> dict[str, str]:
        """Those that its requirements name."""
        lines = (REQUIREMENTS / f"{self.name}.txt").read_text(encoding="utf-8").splitlines()
        named = {found[0].lower() for line in lines if (found := _NAME.match(line))}
        return {name: version for name, version in self.packages.items() if name.lower() in named}


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("optimum", "benchmarks.peers.optimum_onnx", "benchmarks.peers.optimum_onnx"),
        Peer("olive", "benchmarks.peers.olive_onnx", "benchmarks.peers.olive_onnx"),
        Peer("openvino", "benchmarks.peers.openvino_native", "benchmarks.peers.openvino_native"),
    )
}


def need(peers: Sequence[Peer]) -> None:
    """Raise :class:`MissingPiece` when an environment is not there."""
    for peer in peers:
        if not peer.python.exists():
            raise MissingPiece(f"the environment of the peer {peer.name} is not there", "run: make bench-peers")


def calibrating(artifact: Artifact, calib: Path, folder: Path, *, rows: int = CALIB_ROWS) -> list[Path]:
    """Calibration rows as arrays, one ``.npz`` a row, chosen as ml-opt's own calibration chooses them."""
    model = artifact.model_info
    preprocessor = Preprocessor.open(artifact.path, model)
    every = read_rows(calib)
    places = sample(every, rows, content=preprocessor.content, lengths=preprocessor.lengths(every))
    return save(folder, "calib", [preprocessor.feeds([every[place]]) for place in places])


def made_by(
    peer: Peer, artifact: Artifact, source: Path, calib: Sequence[Path], cache: Path, threads: int
) -> tuple[list[Entrant], dict[str, str]]:
    """What a peer makes of a model, and by name why something could not be made.

    Args:
        peer: which.
        artifact: ml-opt's fp32 export of the same model.
        source: the folder or the ONNX file that it was exported from.
        calib: see :func:`calibrating`.
        cache: where its files are kept; a second call with the same source, rows and environment makes nothing.
        threads: of its libraries.
    """
    folder = cache / digest_json(_identity(peer, artifact, calib))[:16]
    if not (folder / "made.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job = Job(
            source=str(source) if source.is_dir() else "",
            task=str(artifact.model_info.get("task") or ""),
            onnx=str(artifact.model_file),
            calib=tuple(map(str, calib)),
            out=str(folder),
        )
        (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        _prepare(peer, folder, threads)
    found = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    return [_entrant(peer, **made) for made in found["made"]], found["failed"]


def _identity(peer: Peer, artifact: Artifact, calib: Sequence[Path]) -> dict[str, Any]:
    """All that decides what a peer makes."""
    module = ROOT / Path(*peer.module.split(".")).with_suffix(".py")
    return {
        "artifact": artifact.manifest.key,
        "calib": [digest_file(path) for path in calib],
        "module": digest_file(module),
        "packages": peer.packages,
    }


def _prepare(peer: Peer, folder: Path, threads: int) -> None:
    with open(folder / "log", "wb") as log:
        subprocess.run(
            [peer.python, "-m", peer.module, "prepare", str(folder / "job.json")],
            env=worker_environment(threads), stdout=log, stderr=log, check=True, cwd=folder,
        )  # fmt: skip


def _entrant(peer: Peer, name: str, path: str, precision: str) -> Entrant:
    candidate = Candidate(
        f"{peer.name}: {name}", Path(path), Provider(f"{peer.name}-peer", precision),
        command=(str(peer.python), "-m", peer.worker),
    )  # fmt: skip
    return Entrant(candidate)


def torch_entrants(source: Path, artifact: Artifact) -> list[Entrant]:
    """PyTorch in bf16, and compiled, of the folder that was exported; eager fp32 is the baseline itself."""
    if not source.is_dir():
        return []
    model = {**artifact.manifest.facts, **artifact.model_info}
    ways = {"torch: bf16": "bf16", "torch: compiled": "compiled", "torch: compiled bf16": "compiled-bf16"}
    return [
        Entrant(Candidate(label, source, Provider("torch", precision), model=model))
        for label, precision in ways.items()
    ]
