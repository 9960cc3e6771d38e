"""Which served model a request for text means, and what writes for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.generating.tokens import TextTokenizer
from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.served import Served
from optimizer.serving.settings import Settings
from optimizer.serving.text.counted import Counted
from optimizer.serving.text.writers import Writer

if TYPE_CHECKING:
    from optimizer.serving.call import Call

__all__ = ["only_writer", "writer_for", "writer_of"]


def writer_for(served: Served, settings: Settings, metrics: Metrics) -> Writer:
    """What writes for a model whose generator is open. Reads its tokenizer, which takes a while.

    Raises:
        BadInput: there is no tokenizer beside it, or one that cannot be read.
    """
    assert served.generator is not None
    tokenizer = TextTokenizer(served.path)
    observer = Counted(metrics, served.name, served.version)
    most = settings.max_queue
    return Writer(served.name, served.version, served.ref, served.generator, tokenizer, most, observer)


def writer_of(call: Call, name: str | None = None, version: str = "") -> Writer:
    """What writes for a model: the one in the path, or a name.

    Raises:
        Problem: 404: there is no such model; 503: it is not ready; 400: it writes no text.
    """
    served = call.served(name, version)
    if served.writer is None:
        raise Problem(400, f"the model {served.name} writes no text: it is for {served.task}", param="model")
    return served.writer


def only_writer(call: Call) -> Writer:
    """The model that is meant where none is named: the only one that writes.

    Raises:
        Problem: 404: none does; 400: several do.
    """
    names = sorted({served.name for served in call.state.models if served.writer is not None})
    if not names:
        raise Problem(404, "no model of this server writes text", code="model_not_found")
    if len(names) > 1:
        raise Problem(400, f"several models write text: say which as model ({', '.join(names)})", param="model")
    return writer_of(call, names[0])
