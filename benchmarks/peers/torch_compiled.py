"""PyTorch with ``torch.compile``, in ml-opt's own environment: the worker that its models are measured in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from optimizer.benching.worker import main
from optimizer.runtime import Candidate
from optimizer.runtimes.pytorch import TorchSession


class CompiledSession(TorchSession):
    """A module compiled twice: for exactly the shape that is timed, which is fastest, and for any other shape."""

    @classmethod
    def of(cls, eager: TorchSession) -> CompiledSession:
        """The same model, compiled."""
        facts = {**eager.facts, "compiled": True}
        return cls(eager._module, eager.inputs, eager.outputs, eager._limits, facts)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run once, with code for shapes that are not known beforehand."""
        return self._compiled(dynamic=True).run(feeds)

    def bind(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """A call with code for these shapes alone, which is made now and not while it is timed."""
        call = self._compiled(dynamic=False).bind(feeds)
        call()
        return call

    def _compiled(self, *, dynamic: bool) -> TorchSession:
        import torch

        module = torch.compile(self._module, dynamic=dynamic)
        return TorchSession(module, self.inputs, self.outputs, self._limits, self.facts)


def _open(candidate: Candidate, threads: int) -> CompiledSession:
    return CompiledSession.of(cast(TorchSession, candidate.open(threads)))


if __name__ == "__main__":
    main(_open)
