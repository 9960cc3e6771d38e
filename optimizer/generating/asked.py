"""What may be asked of a generator: refused here for every runtime, in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.errors import BadInput
from optimizer.generator import Sampling, room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["check_asked", "check_read", "check_scored"]


def check_asked(prompt: Sequence[int], sampling: Sampling, context: int, vocabulary: int, answers: int = 0) -> None:
    """Refuse what no decoder could do.

    Args:
        prompt: tokens.
        sampling: how to go on.
        context: most tokens of a prompt and its answer together.
        vocabulary: how many tokens there are.
        answers: most tokens of an answer where those of a prompt are counted apart, and ``context`` is about the
            prompt; 0 where they are not.

    Raises:
        BadInput: the prompt is empty, has a token that is none or fills the context, or a number is out of its range.
    """
    if not len(prompt):
        raise BadInput("the prompt is empty", "give the model at least one token to go on from")
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise BadInput(f"the prompt has a token outside 0 … {vocabulary - 1}: another model's tokenizer?")
    if answers and len(prompt) > context:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, and the model reads {context}",
            "shorten the prompt, or take a model with a longer context",
        )
    if not answers and len(prompt) >= context:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, and prompt and answer together may have {context}",
            "shorten the prompt, or take a model with a longer context",
        )
    if sampling.max_tokens < 1:
        raise BadInput(f"max tokens must be at least 1, not {sampling.max_tokens}")
    if sampling.max_tokens > (answers or context):
        raise BadInput(
            f"max tokens is {sampling.max_tokens}, and the model's context has {answers or context} tokens",
            f"ask for at most {room(len(prompt), context, answers)} with this prompt",
        )
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise BadInput(f"the temperature must be a number from 0 up, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise BadInput(f"top-p must be above 0 and at most 1, not {sampling.top_p}")
    if sampling.top_k < 0:
        raise BadInput(f"top-k must be 0 (all) or more, not {sampling.top_k}")
    if sampling.seed is not None and not 0 <= sampling.seed < 2**64:
        raise BadInput(f"the seed must be from 0 to 2^64 - 1, not {sampling.seed}")
    if not 0 <= sampling.top_logprobs <= vocabulary:
        raise BadInput(f"top logprobs must be from 0 to {vocabulary}, not {sampling.top_logprobs}")
    if not 0 <= sampling.min_p <= 1:
        raise BadInput(f"min-p must be from 0 to 1, not {sampling.min_p}")
    if sampling.min_tokens < 0:
        raise BadInput(f"min tokens must be 0 or more, not {sampling.min_tokens}")
    if sampling.json_schema and sampling.regex:
        raise BadInput("a text follows a JSON schema or a regular expression, not both")
    _check_penalties(sampling, vocabulary)
    _check_beams(sampling)


def _check_penalties(sampling: Sampling, vocabulary: int) -> None:
    """Refuse penalties that are no numbers, or of no token; raises :class:`BadInput`."""
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        raise BadInput(
            f"the repetition penalty must be a number above 0, not {sampling.repetition_penalty}", "1 changes nothing"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(sampling, name)):
            raise BadInput(f"the {name.replace('_', ' ')} must be a number, not {value}")
    if sampling.no_repeat_ngram_size < 0:
        raise BadInput(f"the n-gram size must be 0 (no limit) or more, not {sampling.no_repeat_ngram_size}")
    if sampling.no_repeat_ngram_size and (sampling.json_schema or sampling.regex):
        raise BadInput(
            "a text that is held to a grammar has to repeat what the grammar repeats, and an n-gram size forbids it",
            "leave one of them out",
        )
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise BadInput(f"the logit bias is about token {token}, and tokens are from 0 to {vocabulary - 1}")
        if not math.isfinite(bias):
            raise BadInput(f"the logit bias of token {token} must be a number, not {bias}")


def _check_beams(sampling: Sampling) -> None:
    """Refuse a search that is none; raises :class:`BadInput`."""
    if sampling.num_beams < 1:
        raise BadInput(f"the number of beams must be at least 1, not {sampling.num_beams}")
    if not math.isfinite(sampling.length_penalty):
        raise BadInput(f"the length penalty must be a number, not {sampling.length_penalty}")
    if sampling.num_beams == 1:
        return
    if sampling.temperature > 0:
        raise BadInput("beams are searched, and a temperature draws", "leave one of them out")
    if sampling.json_schema or sampling.regex:
        raise BadInput("a text that is held to a grammar is not searched with beams", "leave one of them out")
    if sampling.logprobs:
        raise BadInput("how likely its tokens were is not told of a text that was searched with beams")


def check_read(tokens: NDArray[np.int64], read: NDArray[np.int64] | None, answers: int) -> None:
    """Refuse prompts to score by for what has no encoder, and their lack for what has one.

    Args:
        tokens: to score, ``[rows, tokens]``.
        read: the prompts, ``[rows, tokens of a prompt]``; None where there are none.
        answers: most tokens of an answer; 0 where there is no encoder.

    Raises:
        BadInput: as said above, or there are not as many prompts as texts.
    """
    if read is None and answers:
        raise BadInput(
            "this model reads one text and writes another: texts alone cannot be scored with it",
            "give pairs: rows with a `text` and a `target`",
        )
    if read is not None and not answers:
        raise BadInput("this model reads no other text than it writes, and prompts were given beside what is scored")
    if read is not None and len(read) != len(tokens):
        raise BadInput(f"{len(tokens)} answers to score, and {len(read)} prompts")


def check_scored(tokens: NDArray[np.int64], context: int, vocabulary: int) -> None:
    """Refuse tokens that no decoder could score.

    Args:
        tokens: ``[rows, tokens]``.
        context: most tokens of a row.
        vocabulary: how many tokens there are.

    Raises:
        BadInput: it is no matrix, longer than the context, or has a token that is none.
    """
    if tokens.ndim != 2 or not tokens.size:
        raise BadInput(f"tokens to score are [rows, tokens], not {list(tokens.shape)}")
    if tokens.shape[1] > context:
        raise BadInput(f"{tokens.shape[1]} tokens to score, and the context has {context}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise BadInput(f"a token to score is outside 0 … {vocabulary - 1}: another model's tokenizer?")
