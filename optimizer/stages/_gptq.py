"""What export-genai does for GPTQ: pieces of text through the float graph, and other levels in the file of 4 bits."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.documents import read_documents, windows
from optimizer.errors import BadInput
from optimizer.stage import Progress
from optimizer.types import JSON

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["learn_levels", "pieces_of"]

#: Tokens of a piece: attention is quadratic, and what products read is the same further on.
_LONGEST = 512


def pieces_of(
    data: Path, tokenizer: Path, columns: Mapping[str, str], context: int, count: int, vocabulary: int
) -> tuple[list[tuple[int, ...]], dict[str, JSON]]:
    """Pieces of texts, spread over all of them.

    Every text is cut into pieces of up to 512 tokens (or the context). Those with the smallest sha256 of their tokens
    are taken: the choice depends on nothing but the text.

    Args:
        data: one text a row.
        tokenizer: the folder of ``tokenizer.json``.
        columns: role → column.
        context: most tokens that the model takes.
        count: how many pieces.
        vocabulary: tokens from here on are not the model's.

    Returns:
        their tokens; and of the file, for the manifest: its name, how many texts it has, and how many pieces and tokens
        were taken.

    Raises:
        BadInput: the file cannot be read, or holds tokens that the model does not know.
    """
    length = min(context, _LONGEST)
    texts = read_documents(data, tokenizer, columns)
    pieces = {
        text.tokens[each.begin : each.end] for text in texts for each in windows(len(text.tokens), length, length - 1)
    }
    chosen = sorted(pieces, key=lambda piece: hashlib.sha256(repr(piece).encode()).digest())[:count]
    strange = max(max(piece) for piece in chosen)
    if strange >= vocabulary:
        raise BadInput(f"{data}: the tokenizer knows token {strange}, and the model {vocabulary} tokens")
    told = {"file": data.name, "texts": len(texts), "pieces": len(chosen), "tokens": sum(map(len, chosen))}
    return chosen, told


def learn_levels(
    folder: Path, floats: Path, pieces: Sequence[Sequence[int]], config: Mapping[str, Any], progress: Progress
) -> dict[str, JSON]:
    """Give a decoder's products in 4 bits the levels that GPTQ chooses.

    Args:
        folder: of the file in 4 bits; written anew, in its own form (weights beside it, or in it).
        floats: ``model.onnx`` of the same decoder in float, with the same names, for processors.
        pieces: tokens that both read.
        config: ``genai_config.json``.
        progress: told what is done.

    Returns:
        what :func:`optimizer.quantizing.gptq.refine` says.

    Raises:
        BadInput: what a product reads is not finite.
    """
    import numpy as np
    import onnx_ir

    from optimizer.graph.decoder import whole_text
    from optimizer.graph.io import DATA_NAME, MODEL_NAME, load
    from optimizer.quantizing.gptq import Original, refine

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        return (whole_text(np.array([piece], np.int64), config["model"]["decoder"]) for piece in pieces)

    model = load(folder / MODEL_NAME)
    facts = refine(model, Original(floats, feeds, len(pieces)), progress)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Not over the file that the other weights are still read from.
        beside = DATA_NAME if (folder / DATA_NAME).is_file() else None
        onnx_ir.save(model, str(Path(work) / MODEL_NAME), external_data=beside)
        for made in Path(work).iterdir():
            made.replace(folder / made.name)
    return facts
