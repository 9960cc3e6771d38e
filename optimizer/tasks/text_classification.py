"""Classification of texts: logits ``[rows, classes]``."""

from __future__ import annotations

from optimizer.task import Task
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._classify import agree_on_class

TASK = Task(
    name="text-classification",
    help="Which class a text, or a pair of texts, belongs to.",
    modalities=("text",),
    agree=agree_on_class,
    metrics=(ACCURACY,),
)
