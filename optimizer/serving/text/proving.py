"""A generator proves itself before it is ready: it writes its golden continuations, one by one and all at once.

What PyTorch wrote is kept beside the artifact, with how far each token was ahead of the next one. Where it was further
ahead than this artifact's logits are off, it has to be written again. Written together, the texts have to be those
that were written one by one, but for places where two tokens were as good as equal. One of them is asked for once more
as clients ask for texts, by a body of HTTP through a socket, and has to come back as the text of those tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.data.continuations import Continuation, load_continuations
from optimizer.errors import BadInput, GateFailed
from optimizer.generating.golden import EQUAL, EQUAL_IN_BLOCKS, first_difference, reach
from optimizer.generator import Sampling
from optimizer.serving.loopback import Loopback
from optimizer.serving.text.observer import Observer
from optimizer.serving.text.pieces import Pieces
from optimizer.serving.text.writers import Writer

if TYPE_CHECKING:
    from optimizer.generating.tokens import Text
    from optimizer.generator import Generator
    from optimizer.serving.served import Served
    from optimizer.serving.settings import Settings

__all__ = ["prove_writer"]

#: Tokens of each continuation: the server shall be ready soon.
_TOKENS = 16
#: Likeliest tokens that are asked for at each place: the two that count, and some that never come.
_TOP = 4


@dataclass(frozen=True)
class _Written:
    tokens: tuple[int, ...]
    margins: tuple[float, ...]


async def prove_writer(served: Served, settings: Settings) -> str:
    """Write what was kept beside a generator.

    Returns:
        what was written, in words; empty where nothing was kept.

    Raises:
        GateFailed: it writes something else, and where.
        Damaged: what was kept cannot be read.
    """
    assert served.generator is not None
    golden = await asyncio.to_thread(load_continuations, served.path)
    sure = reach(_facts(served), str(served.generator.facts.get("precision", "")))
    alone = [await _write(served.generator, each) for each in golden]
    for number, (each, written) in enumerate(zip(golden, alone, strict=True)):
        ends = served.generator.end_tokens
        wanted = [token for token in each.tokens[:_TOKENS] if token not in ends]
        place, _ = first_difference(wanted, written.tokens, each.margins, sure)
        if place is not None:
            raise _fails(served, number, place, "PyTorch wrote something else")
    together = await asyncio.gather(*(_write(served.generator, each) for each in golden))
    near = EQUAL_IN_BLOCKS if _facts(served).get("quantized", {}).get("weight_only") else EQUAL
    if str(served.generator.facts.get("precision", "")) not in ("", "fp32"):
        near = sure
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        place, _ = first_difference(one.tokens, other.tokens, one.margins, near)
        if place is not None:
            raise _fails(served, number, place, "beside other texts it writes something else than alone")
    if golden:
        await _asked_for(served, settings, golden[0], alone[0], near)
    return f"golden texts: {len(golden)}" if golden else ""


async def _asked_for(served: Served, settings: Settings, golden: Continuation, alone: _Written, near: float) -> None:
    """Ask for a continuation over HTTP; what it writes is nobody's text, and is not counted."""
    writer, generator = served.writer, served.generator
    assert writer is not None
    assert generator is not None
    served.writer = Writer(served.name, served.version, served.ref, generator, writer.tokenizer, 1, Observer())
    asked = {"model": served.name, "prompt": list(golden.prompt), "temperature": 0,
             "max_tokens": min(_TOKENS, len(golden.tokens))}  # fmt: skip
    try:
        reply = await Loopback(served, settings).post("/v1/completions", json.dumps(asked).encode())
    finally:
        served.writer = writer
    try:
        (choice,) = json.loads(reply.body)["choices"]
        text = str(choice["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise _fails(served, 0, 0, f"what comes over HTTP is no completion ({type(error).__name__})") from None
    place = _leaves(text, alone, lambda: writer.tokenizer.after(() if generator.answers else golden.prompt))
    if place is not None and not (place < len(alone.margins) and alone.margins[place] <= near):
        raise _fails(served, 0, place, "another text comes over HTTP than it writes")


def _leaves(text: str, alone: _Written, anew: Callable[[], Text]) -> int | None:
    """Place of the first token whose text is not the beginning of another; None where all of it is the same."""
    said = anew()
    so_far = ""
    for place, token in enumerate(alone.tokens):
        so_far += said.add((token,))
        if not text.startswith(so_far):
            return place
    return None if text == so_far + said.end() else len(alone.tokens)


def _facts(served: Served) -> dict[str, dict[str, float]]:
    facts = served.artifact.manifest.facts if served.artifact is not None else {}
    return {name: value for name, value in facts.items() if isinstance(value, dict)}


async def _write(generator: Generator, golden: Continuation) -> _Written:
    asked = Sampling(max_tokens=min(_TOKENS, len(golden.tokens)), logprobs=True, top_logprobs=_TOP)
    try:
        generation = generator.submit(golden.prompt, asked)
    except BadInput:  # a runtime that tells no chances
        generation = generator.submit(golden.prompt, Sampling(max_tokens=asked.max_tokens))
    tokens: list[int] = []
    margins: list[float] = []
    async for pieces in Pieces(generation):
        for piece in pieces:
            tokens += piece.tokens
            margins += map(_ahead, piece.tokens, piece.logprobs, piece.top)
    return _Written(tuple(tokens), tuple(margins))


def _ahead(token: int, chance: float, likeliest: Sequence[tuple[int, float]]) -> float:
    """How far a token was ahead of the next one, in nats; 0 where that is not known.

    What was likelier than a token that was taken is one that never comes in this model's answers.
    """
    return min((chance - other for each, other in likeliest if each != token and other <= chance), default=0.0)


def _fails(served: Served, number: int, place: int, what: str) -> GateFailed:
    return GateFailed(
        f"{served.ref} does not write its golden continuation {number + 1} as it should: at token {place + 1} {what}",
        f"look at it: ml-opt verify {served.ref} --against golden; to serve it all the same: --no-verify",
    )
