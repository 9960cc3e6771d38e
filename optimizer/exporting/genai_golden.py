"""What PyTorch writes after a few prompts, and how near an exported decoder's logits are to its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.continuations import Continuation
from optimizer.errors import BadInput, GateFailed
from optimizer.graph.decoder import read_genai_config, whole_text
from optimizer.graph.io import MODEL_NAME
from optimizer.hf import LoadedModel, quiet_libraries
from optimizer.hf_errors import first_lines
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "NEW_TOKENS",
    "Golden",
    "copy_text_files",
    "difference",
    "end_tokens",
    "load_tokenizer",
    "parity",
    "write_on",
]

#: New tokens in a golden continuation.
NEW_TOKENS = 32
_PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def main():\n    ",
    "In 1969, people first walked on the",
    "Dear Sir or Madam,\n\n",
)
#: What belongs to a model's text, and is kept beside its graph as it is.
_TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "config.json"),
)
#: What settings of models that read with an encoder ask of their search, without which the likeliest token is written.
_PLAIN: Mapping[str, Any] = {
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "forced_eos_token_id": None,
}
#: Kept by ``save_pretrained``, where a folder has its tokenizer in another form.
_FAST = "tokenizer.json"


@dataclass(frozen=True)
class Golden:
    """What PyTorch wrote, and the logits of one whole text.

    Attributes:
        continuations: prompts and what followed.
        tokens: the first prompt with what followed, ``[1, tokens]``.
        logits: PyTorch's of them, ``[1, tokens, vocabulary]``.
    """

    continuations: tuple[Continuation, ...]
    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer. Raises :class:`BadInput` when there is none, or it cannot be loaded."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # each tokenizer has its own way to fail on a bad file
            raise BadInput(
                f"the tokenizer of {folder} cannot be loaded: {first_lines(error)}",
                "a generator speaks through its tokenizer: put tokenizer.json and tokenizer_config.json beside it",
            ) from error


def copy_text_files(tokenizer: Any, folder: Path, out: Path) -> bool:
    """Put tokenizer, chat template and generation settings beside the graph; whether there is a chat template."""
    out.mkdir(exist_ok=True)
    if not (folder / _FAST).is_file():
        with quiet_libraries():
            tokenizer.save_pretrained(out)
    for name in _TEXT_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    return bool(tokenizer.chat_template)


def end_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """The tokens that end a text, as the generation settings say, else the configuration."""
    for settings in (getattr(loaded.module, "generation_config", None), loaded.config):
        found = getattr(settings, "eos_token_id", None)
        if isinstance(found, int):
            return (found,)
        if found:
            return tuple(int(each) for each in found)
    return ()


def write_on(loaded: LoadedModel, tokenizer: Any, context: int, start: Sequence[int] = ()) -> Golden:
    """Let PyTorch write on after each of a few prompts, the likeliest token each time.

    Args:
        loaded: the model.
        tokenizer: its tokenizer.
        context: most tokens of a prompt and its answer together.
        start: of a model that reads with an encoder, what its answers begin with, which belongs to none; the tokens
            of the result are such an answer with its beginning, and ``context`` is about the prompt alone.
    """
    import numpy as np
    import torch

    skipped = len(start[1:])
    table = int(loaded.module.get_input_embeddings().weight.shape[0])
    written: list[Continuation] = []
    for text in _PROMPTS:
        prompt = [token for token in tokenizer(text).input_ids if token < table][: max(1, context // 2)]
        with torch.inference_mode(), quiet_libraries():
            answer = loaded.module.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=skipped + min(NEW_TOKENS, context - (skipped if start else len(prompt))),
                do_sample=False,
                num_beams=1,
                use_cache=True,
                return_dict_in_generate=True,
                output_scores=bool(start),
                output_logits=not start,
                pad_token_id=(end_tokens(loaded) or (0,))[0],
                **(_PLAIN if start else {}),
            )
        said = answer.scores[skipped:] if start else answer.logits
        best = [scores[0].float().topk(2).values for scores in said]
        margins = tuple(round(float(first - second), 4) for first, second in best)
        tokens = tuple(answer.sequences[0, len(start) or len(prompt) :].tolist())
        written.append(Continuation(text, tuple(prompt), tokens, margins))
    fed = [*start, *written[0].tokens] if start else [*written[0].prompt, *written[0].tokens]
    rows = {"decoder_input_ids" if start else "input_ids": torch.tensor([fed])}
    if start:
        rows["input_ids"] = torch.tensor([written[0].prompt])
    with torch.inference_mode(), quiet_libraries():
        logits = loaded.module(**rows, use_cache=False).logits.float()
    return Golden(tuple(written), np.array([fed], np.int64), logits.numpy())


def parity(out: Path, golden: Golden) -> dict[str, JSON]:
    """Run the exported graph on ONNX Runtime over the golden text, without a cache, beside PyTorch's logits.

    Returns:
        see :func:`difference`.

    Raises:
        GateFailed: ONNX Runtime does not run the graph.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    feeds = whole_text(golden.tokens, read_genai_config(out)["model"]["decoder"])
    try:
        session = onnxruntime.InferenceSession(str(out / MODEL_NAME), settings, providers=["CPUExecutionProvider"])
        known = {each.name for each in session.get_inputs()}
        (got,) = session.run(["logits"], {name: array for name, array in feeds.items() if name in known})
    except Exception as error:  # ONNX Runtime's errors have no common class of its own
        raise GateFailed(f"ONNX Runtime does not run what was exported: {first_lines(error)}") from error
    return difference(golden.logits[0], got[0])


def difference(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, JSON]:
    """How far logits ``[tokens, vocabulary]`` are from those that they should be.

    Returns:
        ``max_abs`` (largest difference of a logit), ``top1`` (share of places where both would write the same token)
        and ``kl`` (mean Kullback-Leibler divergence of the second distribution from the first, in nats).
    """
    import numpy as np

    want, got = wanted.astype(np.float64), got.astype(np.float64)
    logs = [each - np.logaddexp.reduce(each, axis=-1, keepdims=True) for each in (want, got)]
    return {
        "max_abs": float(f"{np.abs(want - got).max():.3g}"),
        "top1": round(float((want.argmax(-1) == got.argmax(-1)).mean()), 4),
        "kl": float(f"{(np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean():.3g}"),
    }
