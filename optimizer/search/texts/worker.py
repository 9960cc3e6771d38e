"""The process that one text generator is judged in: ``python -m optimizer.search.texts.worker``.

It speaks the lines of :mod:`optimizer.benching.generation_worker`, and answers about documents beside:

    {"do": "answer", "documents": "FILE.json", "place": 3, "folder": "DIR/3", "whole": true}  by the original
    {"do": "answer", "documents": "FILE.json", "place": 3, "folder": "DIR/3", "nll": 812.5}   by a candidate

with ``tokens``, ``nll``, ``kl`` (null where it is not known) and ``same`` of that document. The file has the documents
and how they are cut into windows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.benching import worker
from optimizer.benching.generation_worker import GenerationWorker
from optimizer.data.documents import Document
from optimizer.evaluate.generation import Sliding
from optimizer.evaluate.remembered import remember, score_beside
from optimizer.generator import Generator
from optimizer.runtime import Candidate
from optimizer.types import JSON

__all__ = ["DocumentWorker", "main", "write_documents"]


def write_documents(path: Path, documents: list[Document], sliding: Sliding) -> None:
    """The file that a worker is told of."""
    path.write_text(
        json.dumps({"sliding": vars(sliding), "documents": [vars(each) for each in documents]}), encoding="utf-8"
    )


class DocumentWorker(GenerationWorker):
    """Answers requests about one generator, and of what it says of documents.

    Args:
        opener: opens a candidate with so many threads; None for what ml-opt's runtimes open.
    """

    def __init__(self, opener: Callable[[Candidate, int], Generator] | None = None) -> None:
        super().__init__(opener)
        self._read: dict[str, Any] = {}

    def _answer(self, request: dict[str, JSON]) -> dict[str, JSON]:
        known = self._read or json.loads(Path(request["documents"]).read_text(encoding="utf-8"))
        self._read = known
        said = known["documents"][request["place"]]
        document = Document(said["name"], tuple(said["tokens"]), tuple(said["read"]), said["first"])
        sliding = Sliding(**known["sliding"])
        folder = Path(request["folder"])
        if "nll" in request:
            score = score_beside(self._opened_one, document, sliding, folder, request["nll"])
        else:
            score = remember(self._opened_one, document, sliding, folder, request["whole"])
        kl = score.kl if math.isfinite(score.kl) else None
        return {"tokens": score.tokens, "nll": score.candidate, "kl": kl, "same": score.same}


def main(opener: Callable[[Candidate, int], Generator] | None = None) -> None:
    """Answer requests until stdin ends."""
    worker.main(worker=lambda: DocumentWorker(opener))


if __name__ == "__main__":
    main()
