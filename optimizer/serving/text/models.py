"""Which served model a request for text means, and what writes for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from optimizer.generating.tokens import TextTokenizer
from optimizer.serving.problems import Problem
from optimizer.serving.text.counted import Counted
from optimizer.serving.text.writers import Writer

if TYPE_CHECKING:
    from optimizer.serving.call import Call
    from optimizer.serving.served import Served
    from optimizer.serving.state import State

__all__ = ["only_writer", "writer_of"]

_WRITERS: WeakKeyDictionary[Served, Writer] = WeakKeyDictionary()


async def writer_of(call: Call, name: str | None = None, version: str = "") -> Writer:
    """What writes for a model: the one in the path, or a name.

    Raises:
        Problem: 404: there is no such model; 503: it is not ready; 400: it writes no text.
    """
    served = call.served(name, version)
    if served.generator is None:
        raise Problem(400, f"the model {served.name} writes no text: it is for {served.task}", param="model")
    writer = _WRITERS.get(served)
    if writer is None:
        tokenizer = await asyncio.to_thread(TextTokenizer, served.path)
        writer = _WRITERS.setdefault(served, _made(served, tokenizer, call.state))
    return writer


def _made(served: Served, tokenizer: TextTokenizer, state: State) -> Writer:
    assert served.generator is not None
    observer = Counted(state.metrics, served.name, served.version)
    most = state.settings.max_queue
    return Writer(served.name, served.version, served.ref, served.generator, tokenizer, most, observer)


async def only_writer(call: Call) -> Writer:
    """The model that is meant where none is named: the only one that writes.

    Raises:
        Problem: 404: none does; 400: several do.
    """
    names = sorted({served.name for served in call.state.models if served.task == "text-generation"})
    if not names:
        raise Problem(404, "no model of this server writes text", code="model_not_found")
    if len(names) > 1:
        raise Problem(400, f"several models write text: say which as model ({', '.join(names)})", param="model")
    return await writer_of(call, names[0])
