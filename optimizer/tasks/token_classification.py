"""Classification of tokens: logits ``[rows, sequence, classes]``."""

from __future__ import annotations

from optimizer.task import Task
from optimizer.tasks._entities import ENTITY_F1, WORD_ACCURACY
from optimizer.tasks._tokens import agree_on_tokens

TASK = Task(
    name="token-classification",
    help="Which class each token of a text belongs to.",
    modalities=("text",),
    agree=agree_on_tokens,
    metrics=(ENTITY_F1, WORD_ACCURACY),
)
