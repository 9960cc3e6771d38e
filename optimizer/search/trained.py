"""Training for int8: what is left to try when all that is done after training misses a budget, and int8 may win.

A family's candidate is trained in the place of being calibrated. It is the last that is tried, as it takes minutes
where others take seconds; whether it may win is known from the times of the family's calibrated members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.search.candidates import QAT, STATIC, Idea, StepOf
from optimizer.search.contender import Contender
from optimizer.search.race import is_promising
from optimizer.training.tasks import TASKS
from optimizer.types import JSON

__all__ = ["Trained", "training_of", "untrainable"]

#: Options of the export that say how its source is opened.
_OPENED_BY = ("task", "revision", "trust_remote_code", "allow_pickle")


def untrainable(export: Artifact) -> str:
    """Why the model that was exported cannot be trained; empty where it can."""
    info = export.model_info
    if info["source"]["type"] == "file":
        return "an .onnx file cannot be trained: give the model folder that it was exported from"
    task = info.get("task")
    return "" if task in TASKS else f"{task} cannot be trained here; {', '.join(TASKS)} can"


def training_of(train: Path, columns: tuple[str, ...], export: Artifact) -> dict[str, JSON]:
    """Options of the stage that trains: its defaults, on this data, on the model that the export was made from.

    Args:
        train: the rows to learn from.
        columns: what their columns are, as ``--column`` has it.
        export: what every other candidate is made from.
    """
    given = export.manifest.options
    opened = {name: given[name] for name in _OPENED_BY if given.get(name)}
    return {"train": str(train), **({"column": list(columns)} if columns else {}), **opened}


class Trained:
    """A family's trained candidate, once.

    Args:
        plain: a calibrated member of the family, in whose place it is made.
        training: options of the stage that trains.
        contend: makes a contender of an idea.

    Attributes:
        made: the idea that was tried, by name; empty while it was not.
    """

    def __init__(self, plain: Idea, training: Mapping[str, JSON], contend: Callable[[Idea], Contender]) -> None:
        # TensorRT takes signed activations only; one graph serves ONNX Runtime and OpenVINO.
        target = {"target": "tensorrt"} if plain.target == "tensorrt" else {}
        # Where sums of two products saturate, whoever calibrates 7 bits trains 7 bits.
        (calibrated,) = (each for each in plain.steps if each.stage == STATIC)
        narrow: dict[str, JSON] = {"reduce_range": True} if calibrated.options.get("reduce_range") else {}
        # Smoothed: what is short is accuracy, and the multiplications cost little of what int8 is faster by.
        step = StepOf(QAT, {**training, "smooth": True, **target, **narrow})
        self._idea = replace(
            plain,
            name=plain.name.replace("static", "qat"),
            steps=tuple(step if each.stage == STATIC else each for each in plain.steps),
            why="trained to answer well in int8, as nothing that is done after training keeps the budgets",
        )
        self._contend = contend
        self.made: dict[str, Idea] = {}

    @property
    def untried(self) -> str:
        """Its name; empty when it was tried."""
        return "" if self.made else self._idea.name

    def __call__(self, tried: Sequence[Contender]) -> Contender | None:
        """It, and None the second time."""
        if self.made:
            return None
        self.made[self._idea.name] = self._idea
        return self._contend(self._idea)

    def unneeded(self, tried: Sequence[Contender]) -> str:
        """Why nothing asked for it, where nothing held it back.

        Args:
            tried: every candidate.
        """
        good = next((c.name for c in tried if c.family == self._idea.family and is_promising(c)), "")
        return f"{good or 'static int8'} misses no budget without training"
