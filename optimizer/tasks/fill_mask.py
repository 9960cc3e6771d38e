"""Masked language models: logits ``[rows, sequence, vocabulary]``, compared at every token, masked or not."""

from __future__ import annotations

from optimizer.task import Task
from optimizer.tasks._tokens import agree_on_tokens

TASK = Task(
    name="fill-mask",
    help="Which token stands behind each mask.",
    modalities=("text",),
    agree=agree_on_tokens,
)
