"""What a text generator is judged on: texts, or answers to prompts where it reads with an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.data.documents import Answers, Document, read_documents, read_pairs
from optimizer.generating.config import read_config

__all__ = ["read_judged"]


def read_judged(
    path: Path,
    generator: Artifact,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    tokenizer: Path | None = None,
) -> list[Document]:
    """The held-out rows of a data file, as a generator is asked about them.

    Args:
        path: a text a row; a prompt and its answer where the generator has an encoder.
        generator: the one that is judged, or one that was made from the same model.
        columns: role → column, where the texts are in columns of unusual names.
        limit: the first so many rows.
        tokenizer: the folder of ``tokenizer.json`` [the generator's].

    Raises:
        BadInput: see :func:`~optimizer.data.documents.read_documents` and
            :func:`~optimizer.data.documents.read_pairs`.
    """
    folder = tokenizer or generator.path
    if "encoder" not in generator.manifest.facts:
        return read_documents(path, folder, columns, limit)
    config = read_config(generator.path)
    end = config.end_tokens[0] if config.end_tokens else None
    return read_pairs(path, folder, Answers(config.start, end, config.context, config.answers), columns, limit)
