"""What export-genai learns from text: AWQ's scales before it rounds, and GPTQ's levels in the file of 4 bits."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.columns import named_columns
from optimizer.data.documents import read_documents, windows
from optimizer.errors import BadInput
from optimizer.stage import Progress
from optimizer.types import JSON

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimizer.hf import LoadedModel
    from optimizer.stages.export_genai import ExportGenai

__all__ = ["Lesson", "lesson", "pieces_of"]

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


@dataclass(frozen=True)
class Lesson:
    """What is learned from.

    Attributes:
        algorithm: as it was asked for: ``gptq_last``, say.
        scratch: a folder of its own.
        copy_texts: puts tokenizer and settings of the model into a folder.
        pieces: tokens that the model reads.
        told: what the manifest says of them.
    """

    algorithm: str
    scratch: Path
    copy_texts: Callable[[Path], object]
    pieces: Sequence[Sequence[int]]
    told: Mapping[str, JSON]

    @property
    def floats(self) -> Path | None:
        """A folder for ``model.onnx`` of the decoder in float, for processors; None where nothing is learned of it."""
        if not self.algorithm.startswith("gptq"):
            return None
        folder = self.scratch / "floats"
        folder.mkdir(exist_ok=True)
        return folder

    def scale(self, loaded: LoadedModel, block_size: int, progress: Progress) -> dict[str, JSON] | None:
        """Scale a model's weights where AWQ is asked for; it answers as before.

        Args:
            loaded: the model, in float32; changed in place.
            block_size: weights that will share a scale.
            progress: told what is done.

        Returns:
            ``data`` (:attr:`told`), and what :func:`optimizer.quantizing.awq.scale` says; None for other algorithms.

        Raises:
            BadInput: what a product reads is not finite, or there is nothing in the model that can be scaled.
        """
        if not self.algorithm.startswith("awq"):
            return None
        from optimizer.quantizing.awq import scale

        found = scale(loaded.module, self.pieces, block_size, progress)
        if not found["sites"]:
            raise BadInput(
                f"--algorithm {self.algorithm} finds nothing to scale in {loaded.class_name} that would leave its "
                "answers as they are",
                f"write --algorithm {self.algorithm.replace('awq', 'gptq')}",
            )
        return {"data": self.told, **found}

    def save(self, loaded: LoadedModel) -> Path:
        """Write the scaled model to a folder, from which it can be built."""
        from optimizer.quantizing.awq import save

        folder = self.scratch / "scaled"
        self.copy_texts(folder)
        save(loaded.module, folder)
        return folder

    def learn(self, folder: Path, config: Mapping[str, Any], progress: Progress) -> dict[str, JSON]:
        """Give a decoder's products in 4 bits the levels that GPTQ chooses, from its graph in :attr:`floats`.

        Args:
            folder: of the file in 4 bits; written anew, in its own form (weights beside it, or in it). Its names are
                those of the float graph.
            config: ``genai_config.json``.
            progress: told what is done.

        Returns:
            ``data`` (:attr:`told`), and what :func:`optimizer.quantizing.gptq.refine` says.

        Raises:
            BadInput: what a product reads is not finite.
        """
        import numpy as np
        import onnx_ir

        from optimizer.graph.decoder import whole_text
        from optimizer.graph.io import DATA_NAME, MODEL_NAME, load
        from optimizer.quantizing.gptq import Original, refine

        def feeds() -> Iterator[dict[str, NDArray[Any]]]:
            return (whole_text(np.array([piece], np.int64), config["model"]["decoder"]) for piece in self.pieces)

        assert self.floats is not None
        model = load(folder / MODEL_NAME)
        facts = refine(model, Original(self.floats / MODEL_NAME, feeds, len(self.pieces)), progress)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            # Not over the file that the other weights are still read from.
            beside = DATA_NAME if (folder / DATA_NAME).is_file() else None
            onnx_ir.save(model, str(Path(work) / MODEL_NAME), external_data=beside)
            for made in Path(work).iterdir():
                made.replace(folder / made.name)
        return {"data": self.told, **facts}


@contextlib.contextmanager
def lesson(
    out: Path, options: ExportGenai, copy_texts: Callable[[Path], object], context: int, vocabulary: int
) -> Iterator[Lesson | None]:
    """The text of ``--calib``, read before anything that takes long; None without.

    Args:
        out: the artifact's folder, for scratch.
        options: of the export.
        copy_texts: puts ``tokenizer.json`` and the model's settings into a folder, which is made.
        context: most tokens that the model takes.
        vocabulary: tokens from here on are not the model's.

    Raises:
        BadInput: as :func:`pieces_of`.
    """
    if options.calib is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=out) as folder:
        scratch, columns = Path(folder), named_columns(options.column)
        copy_texts(scratch)
        found = pieces_of(options.calib, scratch, columns, context, options.samples, vocabulary)
        yield Lesson(options.algorithm, scratch, copy_texts, *found)
