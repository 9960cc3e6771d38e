"""Another attention in a model of transformers while it is traced, and what the exporter's errors come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optimizer.errors import BadInput
from optimizer.hf import LoadedModel
from optimizer.hf_errors import first_lines

__all__ = ["attention_exchanged", "cause", "exchangeable"]


def cause(error: BaseException) -> str:
    """The first reason of a chain: the exporter wraps it in its own report."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = first_lines(error) if isinstance(error, Exception) else str(error)
    return text[:300]


def exchangeable(loaded: LoadedModel) -> bool:
    """Whether transformers says that a model's attention may be another function; true where it says nothing."""
    says = getattr(type(loaded.module), "_can_set_attn_implementation", None)
    return bool(says()) if callable(says) else True


@contextmanager
def attention_exchanged(
    loaded: LoadedModel, name: str, attention: Callable[..., Any], refused: Callable[[str], BadInput]
) -> Iterator[None]:
    """Inside the block, a model's attention is another function, which makes its own masks.

    Args:
        loaded: the model; its own attention is put back.
        name: what transformers knows the function by.
        attention: as those of ``ALL_ATTENTION_FUNCTIONS``.
        refused: the error of a model that does not let its attention be exchanged, from the reason.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, lambda *place, **more: None)
    own = loaded.config._attn_implementation
    try:
        loaded.module.set_attn_implementation(name)
    except Exception as error:  # each version has its own way to say that a class has attention of its own
        raise refused(cause(error)) from error
    try:
        yield
    finally:
        loaded.module.set_attn_implementation(own)
