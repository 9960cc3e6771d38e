"""Rows to train on and to judge by, as torch sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optimizer.data.preprocess import Batch, Preprocessor
from optimizer.data.readers import read_rows
from optimizer.errors import BadInput
from optimizer.evalset import EvalSet
from optimizer.hf import flat_outputs
from optimizer.task import FIDELITY, Metric, get_task
from optimizer.training.distill import IGNORED
from optimizer.training.tasks import TASKS
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Judge", "TrainingRows", "answers", "batch_of", "open_rows"]


def open_rows(
    path: Path, preprocessor: Preprocessor, model: Mapping[str, JSON], *, labelled: bool | None = None
) -> tuple[EvalSet, Metric | None]:
    """A data file's rows, and what they are judged by.

    Args:
        path: the data file.
        preprocessor: of the model.
        model: what a manifest would say of it.
        labelled: whether labels are needed; None to take them where there are some.

    Returns:
        the rows, and their metric; None where they have no labels, and likeness to the float model is what counts.

    Raises:
        BadInput: a row cannot be fed; labels are needed and missing, or are none that the model knows.
    """
    task = get_task(str(model["task"]))
    role = TASKS[task.name]
    rows = read_rows(path)
    found = any(preprocessor.columns.find(row, role) is not None for row in rows[:1])
    if labelled and (not found or role == "score"):
        raise BadInput(
            f"{path.name} has no {role} to learn from, and --no-distill learns from nothing else"
            if role != "score"
            else "--no-distill learns from classes, and a model that answers with vectors has none",
            "learn from the float model's own answers instead: leave --no-distill out"
            + ("" if role == "score" else f", or name the column: --column {role}=COLUMN"),
        )
    wanted = found if labelled is None else labelled
    metric = task.metric(None, model) if wanted else None
    return EvalSet.open(path, preprocessor, metric, model, rows), metric


@dataclass(frozen=True)
class TrainingRows(torch.utils.data.Dataset[int]):
    """What a training loop takes batches from: places of rows, which :meth:`collate` makes inputs of.

    Attributes:
        rows: the data.
        model: what a manifest would say of the model.
        labelled: whether batches hold labels.
    """

    rows: EvalSet
    model: Mapping[str, JSON]
    labelled: bool

    def __len__(self) -> int:
        return len(self.rows.rows)

    def __getitem__(self, place: int) -> int:
        return place

    def collate(self, places: Sequence[int]) -> dict[str, Any]:
        """``feeds`` (inputs by name) and, where rows are labelled, ``classes`` (``[rows]`` or ``[rows, steps]``)."""
        feeds = self.rows.feeds(places)
        made: dict[str, Any] = {"feeds": batch_of(feeds)}
        if self.labelled:
            assert self.rows.truths is not None
            made["classes"] = _classes([self.rows.truths[place] for place in places], feeds, self.model)
        return made

    def order(self, seed: int, epoch: int, batch: int) -> list[int]:
        """Every row once, shuffled, with rows of like length in one batch: half the padding of plain shuffling."""
        import numpy as np

        shuffled = np.random.default_rng([seed, epoch])
        places: list[int] = shuffled.permutation(len(self)).tolist()
        if (lengths := self.rows.lengths) is None:
            return places
        pool = 8 * batch
        batches: list[list[int]] = []
        for start in range(0, len(places), pool):
            near = sorted(places[start : start + pool], key=lambda place: lengths[place])
            batches += [near[first : first + batch] for first in range(0, len(near), batch)]
        whole = [each for each in batches if len(each) == batch]
        shuffled.shuffle(whole)
        return [place for each in [*whole, *(b for b in batches if len(b) < batch)] for place in each]


def batch_of(feeds: Mapping[str, NDArray[np.generic]], device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Numpy's arrays as torch's tensors; on a processor of the same memory."""
    return {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}


def answers(
    module: Any, batches: Iterable[Mapping[str, NDArray[np.generic]]], device: Any = "cpu"
) -> list[dict[str, NDArray[Any]]]:
    """A model's answers to inputs by name, batch by batch, in float32."""
    with torch.inference_mode():
        made = (flat_outputs(module(**batch_of(each, device))) for each in batches)
        return [{name: tensor.float().cpu().numpy() for name, tensor in outputs.items()} for outputs in made]


def _classes(
    truths: Sequence[Any], feeds: Mapping[str, NDArray[np.generic]], model: Mapping[str, JSON]
) -> torch.Tensor:
    """Right classes: a number a row, or for tagged words a number at each word's first token."""
    import numpy as np

    if isinstance(truths[0], int):
        return torch.tensor(truths)
    names = [str(name) for name in model.get("labels") or ()]
    ids = feeds["input_ids"]
    classes = torch.full(ids.shape, IGNORED)
    for row, truth in enumerate(truths):
        mask = feeds.get("attention_mask")
        real = np.arange(ids.shape[1]) if mask is None else np.flatnonzero(mask[row])
        for tag, place in zip(truth.tags, truth.places, strict=True):
            if place is not None:
                classes[row, real[place]] = names.index(tag)
    return classes


@dataclass(frozen=True)
class Judge:
    """How good a model's answers are to rows that it was not trained on.

    Attributes:
        rows: the data.
        metric: how answers are judged by labels; None for likeness to the float model.
        model: what a manifest would say of the model.
    """

    rows: EvalSet
    metric: Metric | None
    model: Mapping[str, JSON]

    @property
    def name(self) -> str:
        """What the first number is called."""
        return self.metric.name if self.metric is not None else FIDELITY

    def answers(self, module: Any, device: Any) -> list[dict[str, NDArray[Any]]]:
        """A model's answers, batch by batch."""
        return answers(module, (batch.feeds for batch in self._batches()), device)

    def _batches(self) -> Iterator[Batch]:
        return self.rows.batches(self.model.get("max_batch"))

    def score(
        self, answers: Sequence[dict[str, NDArray[Any]]], original: Sequence[dict[str, NDArray[Any]]]
    ) -> dict[str, float]:
        """What answers are worth: the metric by name, and ``cosine``, ``worst_cosine`` and ``agreement`` (the share of
        rows with the same decision, where there is one) with the float model's.
        """
        import numpy as np

        task = get_task(str(self.model["task"]))
        numbers: list[Any] = []
        measures: dict[str, list[Any]] = {}
        for batch, ours, theirs in zip(self._batches(), answers, original, strict=True):
            if self.metric is not None:
                assert self.rows.truths is not None
                wanted = [self.rows.truths[place] for place in batch.rows]
                numbers += self.metric.score(ours, batch.feeds, wanted, self.model).tolist()
            for name, values in task.agree(theirs, ours, batch.feeds, self.model).items():
                measures.setdefault(name, []).append(values)
        whole = {name: np.concatenate(values) for name, values in measures.items()}
        found = {self.metric.name: self.metric.value(numbers)} if self.metric is not None else {}
        found |= {"cosine": float(whole["cosine"].mean()), "worst_cosine": float(whole["cosine"].min())}
        if "top1" in whole:
            found["agreement"] = float(whole["top1"].mean())
        return found
