"""Classification of sounds: logits ``[rows, classes]``."""

from __future__ import annotations

from optimizer.task import Task
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._classify import agree_on_class

TASK = Task(
    name="audio-classification",
    help="Which class a sound belongs to.",
    modalities=("audio",),
    agree=agree_on_class,
    metrics=(ACCURACY,),
)
