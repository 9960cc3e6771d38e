"""Which served model a request for text means, and what writes for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.generating.tokens import TextTokenizer
from optimizer.serving.asking import named_model
from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.served import Served
from optimizer.serving.settings import Settings
from optimizer.serving.text.counted import Counted
from optimizer.serving.text.writers import Writer

if TYPE_CHECKING:
    from optimizer.serving.call import Call

__all__ = ["writer_for", "writer_of"]


def writer_for(served: Served, settings: Settings, metrics: Metrics) -> Writer:
    """What writes for a model whose generator is open. Reads its tokenizer, which takes a while.

    Raises:
        BadInput: there is no tokenizer beside it, or one that cannot be read.
    """
    assert served.generator is not None
    tokenizer = TextTokenizer(served.path)
    observer = Counted(metrics, served.name, served.version)
    most = settings.max_queue
    return Writer(
        served.name, served.version, served.ref, served.generator, tokenizer, most, observer, served.statistics
    )


def writer_of(call: Call, document: dict[str, Any] | None = None) -> Writer:
    """What writes for the model that a body names, or the only one that writes; without a body, the one in the path.

    Raises:
        Problem: 404: there is no such model; 503: it is not ready; 400: it writes no text, or which is meant?
    """
    served = call.served() if document is None else named_model(call, document, ("text-generation",))
    if served.writer is None:
        raise Problem(400, f"{served.name} is a model for {served.task}, and writes no text", param="model")
    return served.writer
