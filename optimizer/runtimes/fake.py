"""A runtime without a model: latency, noise, crashes and wrong answers as a small JSON file plants them.

It is shipped because the harness around models (bench, serve, verify) is tested with it on any machine, in
milliseconds, with answers known beforehand. ``ml-opt bench fake:a.json fake:b.json`` shows how it reads.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.runtime import Availability, Runtime, SessionOptions
from optimizer.runtimes._feeds import check_feeds
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RUNTIME", "FakeModel", "FakeSession"]

_INPUTS = [{"name": "x", "dtype": "float32", "shape": ["batch", "sequence"]}]
_OUTPUTS = [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}]


@dataclass(frozen=True)
class FakeModel:
    """What a fake model does; every field is a key of its JSON file, and every key has a default.

    Attributes:
        inputs: tensor specs, as a manifest has them.
        outputs: tensor specs; their named dimensions are filled from the inputs.
        load_s: seconds that opening takes.
        latency_s: seconds a call takes at least.
        row_s: seconds a call takes beside that for each row of its batch.
        copy_s: seconds that :meth:`FakeSession.run` takes beside that, for copies that a bound call does not make.
        noise: σ of the log-normal factor on a call's seconds.
        spikes: ``[probability, factor]``: calls that take ``factor`` times as long.
        wait: ``busy`` holds a core like a model would, ``sleep`` gives it away.
        seed: of the noise.
        offset: added to every output: a planted error.
        wrong: share of rows, chosen by their inputs, whose outputs come in reverse order: planted wrong decisions.
        nan: answer NaN.
        wrong_shape: answer one column too many.
        fail_after: calls after which :meth:`FakeSession.run` raises.
        die_after: calls after which the process kills itself (SIGKILL).
        hang_after: calls after which a call never ends.
        chatter: printed by every call, on stdout, as some libraries do.
        runs: what :meth:`FakeSession.runs` answers.
    """

    inputs: list[dict[str, JSON]] = field(default_factory=lambda: list(_INPUTS))
    outputs: list[dict[str, JSON]] = field(default_factory=lambda: list(_OUTPUTS))
    load_s: float = 0.0
    latency_s: float = 0.0
    row_s: float = 0.0
    copy_s: float = 0.0
    noise: float = 0.0
    spikes: list[float] = field(default_factory=lambda: [0.0, 1.0])
    wait: str = "busy"
    seed: int = 0
    offset: float = 0.0
    wrong: float = 0.0
    nan: bool = False
    wrong_shape: bool = False
    fail_after: int | None = None
    die_after: int | None = None
    hang_after: int | None = None
    chatter: str = ""
    runs: dict[str, JSON] | None = None

    @classmethod
    def read(cls, path: Path) -> FakeModel:
        """Read a fake model's JSON file; raises :class:`BadInput` or :class:`UnknownName` for what it cannot use."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} is not a fake model: {error}") from None
        known = [f.name for f in fields(cls)]
        if not isinstance(data, dict):
            raise BadInput(f"{path} is not a fake model: it holds no JSON object")
        for key in data:
            if key not in known:
                raise UnknownName(f"key of the fake model {path}", key, known)
        return cls(**data)


class FakeSession:
    """A session that does what its :class:`FakeModel` says, the same every time."""

    def __init__(self, model: FakeModel, options: SessionOptions) -> None:
        self._model = model
        self._random = random.Random(model.seed)
        self._calls = 0
        self.inputs = tuple(TensorSpec.from_json(s) for s in model.inputs)
        self.outputs = tuple(TensorSpec.from_json(s) for s in model.outputs)
        _wait(model.load_s, "sleep")
        self.facts: dict[str, JSON] = {
            "provider": "fake",
            "precision": "",
            "threads": options.threads,
            "nodes": {"fake": 1},
            "load_seconds": model.load_s,
        }

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        check_feeds(self.inputs, feeds, {})
        self._spend(_rows(feeds))
        _wait(self._model.copy_s, self._model.wait)
        return self._answer(feeds)

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        check_feeds(self.inputs, feeds, {})
        rows = _rows(feeds)
        return lambda: self._spend(rows)

    def runs(self) -> dict[str, JSON] | None:
        return self._model.runs

    def close(self) -> None:
        """Nothing is held."""

    def _spend(self, rows: int) -> None:
        """Take as long as the model says, or break as it says."""
        model = self._model
        self._calls += 1
        if model.chatter:
            os.write(1, model.chatter.encode())
        if model.fail_after is not None and self._calls > model.fail_after:
            raise GateFailed(f"the fake model fails after {model.fail_after} calls")
        if model.die_after is not None and self._calls > model.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if model.hang_after is not None and self._calls > model.hang_after:
            while True:
                time.sleep(3600)
        factor = math.exp(self._random.gauss(0.0, model.noise)) if model.noise else 1.0
        probability, stretch = model.spikes
        if probability and self._random.random() < probability:
            factor *= stretch
        _wait((model.latency_s + model.row_s * rows) * factor, model.wait)

    def _answer(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Outputs that depend on every row's inputs and on nothing else, with the planted error on top."""
        import numpy as np

        sizes = {
            dim: size
            for spec in self.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        rows = _rows(feeds)
        per_row = np.zeros(rows)
        for spec in self.inputs:
            per_row += np.asarray(feeds[spec.name], np.float64).reshape(rows, -1).sum(axis=1)
        answers: dict[str, Any] = {}
        for spec in self.outputs:
            shape = [sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape]
            if self._model.wrong_shape:
                shape[-1] += 1
            columns = np.arange(1, math.prod(shape[1:]) + 1)
            values = np.cos(per_row[:, None] * 0.37 + columns)
            chosen = np.modf(np.abs(np.sin(per_row * 12.9898)) * 43758.5453)[0] < self._model.wrong
            values[chosen] = values[chosen, ::-1]
            values = values.reshape(shape) + self._model.offset
            answers[spec.name] = np.full_like(values, np.nan) if self._model.nan else values
            answers[spec.name] = answers[spec.name].astype(spec.dtype)
        return answers


def _rows(feeds: Mapping[str, NDArray[np.generic]]) -> int:
    return int(next(iter(feeds.values())).shape[0])


def _wait(seconds: float, how: str) -> None:
    if how == "sleep":
        time.sleep(seconds)
        return
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> FakeSession:
    del model  # everything that a fake model is stands in its file
    return FakeSession(FakeModel.read(path), options)


def _available(provider: str) -> Availability:
    return Availability(provider, True)


RUNTIME = Runtime(
    name="fake",
    help="A deterministic runtime without a model, for testing what is around models.",
    providers={"fake": ()},
    open=_open,
    available=_available,
)
