"""Classification of images: logits ``[rows, classes]``."""

from __future__ import annotations

from optimizer.task import Task
from optimizer.tasks._accuracy import ACCURACY
from optimizer.tasks._classify import agree_on_class

TASK = Task(
    name="image-classification",
    help="Which class an image belongs to.",
    modalities=("image",),
    agree=agree_on_class,
    metrics=(ACCURACY,),
)
