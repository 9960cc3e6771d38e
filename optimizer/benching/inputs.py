"""What every candidate is fed: the same arrays, real ones where the model brought examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.benching.shape import Shape
from optimizer.benching.workload import Load, Workload, Writing
from optimizer.data.golden import Golden, is_sequence
from optimizer.data.synthetic import symbol_sizes, synthetic_feeds
from optimizer.errors import BadInput
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[np.generic]]

__all__ = ["Examples", "save"]

#: Rows in a batch when outputs are compared over a data file.
_DATA_BATCH = 8
#: A length for models that name none and bring no examples.
_USUAL_LENGTH = 16


@dataclass(frozen=True)
class Examples:
    """Where inputs come from.

    Attributes:
        specs: every input that some candidate takes.
        model: the manifest's ``model``: limits and longest sequence.
        golden: the artifact's examples, if it has them.
        folder: the artifact's folder, which a data file is preprocessed with.
        data: rows to compare outputs on.
        seed: of made-up values.
        columns: role → column of the data, where the usual names do not fit.
    """

    specs: tuple[TensorSpec, ...]
    model: Mapping[str, JSON]
    golden: Golden | None = None
    folder: Path | None = None
    data: Path | None = None
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where timed inputs come from, for the report: ``golden`` or ``synthetic``."""
        return "golden" if self._has_golden else "synthetic"

    def of_shape(self, shape: Shape) -> Feeds:
        """Timed inputs: example rows without padding, cut or repeated to the shape; made up when there are none."""
        if shape.sequence and not self._has_length:
            raise BadInput(
                f"--shape {shape}: no input of this model has a length to set", f"write --shape {shape.batch}"
            )
        length = shape.sequence or self._usual_length()
        if self._has_golden:
            assert self.golden is not None
            return self.golden.feeds(self.specs, shape.batch, length)
        limits = self.model.get("limits") or {}
        return synthetic_feeds(self.specs, shape.batch, length, self.seed, limits)

    def of(self, load: Load) -> list[Feeds]:
        """Timed inputs: one feed for a shape, one for every batch of a pass."""
        assert not isinstance(load, Writing)  # texts are made by whoever writes them
        return load.feeds() if isinstance(load, Workload) else [self.of_shape(load)]

    def to_compare(self, load: Load) -> list[Feeds]:
        """Inputs on which answers are compared: rows of the data file, else the examples, else the timed ones."""
        if self.data is not None:
            return self._from_data(self.data)
        if self._has_golden:
            assert self.golden is not None
            return [{spec.name: self.golden.inputs[spec.name] for spec in self.specs}]
        return self.of(load)[:1]

    @property
    def _has_golden(self) -> bool:
        return self.golden is not None and all(spec.name in self.golden.inputs for spec in self.specs)

    @property
    def _has_length(self) -> bool:
        """Whether some input has a dimension that a shape's second number can set."""
        if self._has_golden:
            return any(is_sequence(dim) for spec in self.specs for dim in spec.shape)
        return 2 in symbol_sizes(self.specs, 1, 2).values()

    def _usual_length(self) -> int:
        """The examples' own length, for a shape that names none."""
        if self._has_golden and self.golden is not None:
            for spec in self.specs:
                for axis, dim in enumerate(spec.shape):
                    if is_sequence(dim):
                        return int(self.golden.inputs[spec.name].shape[axis])
        return _USUAL_LENGTH

    def _from_data(self, data: Path) -> list[Feeds]:
        from optimizer.data.preprocess import Preprocessor
        from optimizer.data.readers import read_rows

        if self.folder is None:
            raise BadInput(
                "--data needs an artifact of the store first, whose tokenizer or processor reads the rows",
                "put a reference first, or leave --data out",
            )
        model = {**self.model, "inputs": [spec.to_json() for spec in self.specs]}
        made = Preprocessor.open(self.folder, model, columns=self.columns)
        return [batch.feeds for batch in made.batches(read_rows(data), _DATA_BATCH, sort=True)]


def save(folder: Path, name: str, batches: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[Path]:
    """Write feeds for the workers to read, one ``.npz`` a batch."""
    import numpy as np

    paths = []
    for number, feeds in enumerate(batches):
        path = folder / f"{name}-{number}.npz"
        np.savez(path, **feeds)  # type: ignore[arg-type]
        paths.append(path)
    return paths
