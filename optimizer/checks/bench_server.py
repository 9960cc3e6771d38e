"""bench server: an open loop over HTTP against a server that is already running."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.benching.github import annotations_of, github_opt
from optimizer.benching.shape import Shape
from optimizer.benching.writing import check_formats, handed_out, report_opt
from optimizer.check import Check
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import BadInput
from optimizer.options import Options, opt

if TYPE_CHECKING:
    from optimizer.benching.protocols import Query
    from optimizer.benching.report import BenchReport
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "BenchServer"]

#: Rows of a data file that become queries; they are sent in turn.
_ROWS = 512
#: What is sent where no rows are given.
_TEXT = "The quick brown fox jumps over the lazy dog."


class BenchServer(Options):
    """Options of bench server."""

    model: str = opt(help="The model's name on the server.")
    qps: float = opt(help="Queries a second, at random times.", ge=0.001, le=1e6)
    protocol: str = opt("v2", "What the server speaks.", choices=("v2", "openai"))
    endpoint: str = opt("embeddings", "Of --protocol openai: what is asked for.", choices=("embeddings", "chat"))
    shape: str = opt("1x128", "Of --protocol v2 without --data: rows × steps of a query.")
    data: Path | None = opt(None, "Rows that are sent, one a query, instead of made-up ones.", data=True)
    column: tuple[str, ...] = column_opt()
    ref: str | None = opt(None, "Of --protocol v2 with --data: the artifact whose tokenizer reads the rows.", ref=True)
    max_tokens: int = opt(64, "Of --endpoint chat: tokens of an answer, at most.", ge=1, le=1_000_000)
    duration: float = opt(10.0, "Seconds that queries are sent, at least.", ge=0.0, le=86400, time=True)
    min_samples: int = opt(64, "Queries, at least.", ge=2, le=10_000_000)
    seed: int = opt(0, "Of the schedule and of made-up inputs.", ge=0)
    timeout: float = opt(30.0, "Seconds after which a query counts as unanswered.", ge=0.01, time=True)
    fail_if_p99: str | None = opt(
        None, "Fail when more than 1 in 100 queries is known to take longer: 50ms.", metavar="TIME"
    )
    max_errors: float = opt(0.0, "Share of queries that may stay without an answer.", ge=0, le=1)
    report: tuple[Path, ...] = report_opt()
    github: bool = github_opt()

    def check(self) -> None:
        Shape.parse(self.shape)
        _milliseconds(self.fail_if_p99)
        check_formats(self.report)
        if named_columns(self.column) and self.data is None:
            raise BadInput("--column says what the columns of --data are, which is not given", "add --data FILE")
        if self.protocol == "v2" and (self.data is None) != (self.ref is None):
            raise BadInput(
                "--protocol v2 sends tensors: rows of --data go through the tokenizer of --ref", "give both or neither"
            )


def _milliseconds(text: str | None) -> float | None:
    """``50ms`` or ``1.5s`` in milliseconds."""
    if text is None:
        return None
    for unit, factor in (("ms", 1.0), ("s", 1e3)):
        number = text.strip().removesuffix(unit)
        if number != text.strip():
            try:
                if 0 < (found := float(number) * factor) < math.inf:
                    return found
            except ValueError:
                break
    raise BadInput(f"{text!r} is no time", "write --fail-if-p99 50ms")


def _run(refs: tuple[str, ...], options: BenchServer, store: Store, progress: Progress) -> BenchReport:
    from optimizer.benching.serving import bench_server

    if len(refs) != 1 or not refs[0].startswith(("http://", "https://")):
        raise BadInput(
            f"{' '.join(refs) or 'nothing'} is no address of a server",
            "run: ml-opt bench server http://HOST:PORT --model M --qps N",
        )
    url = refs[0].rstrip("/")
    queries, shape = _queries(url, options, store)
    count = max(math.ceil(options.qps * options.duration), options.min_samples)
    progress(f"sending {count} queries to {url}")
    report = bench_server(
        url,
        options.model,
        options.protocol if options.protocol == "v2" else f"openai {options.endpoint}",
        queries,
        str(shape),
        shape.batch,
        qps=options.qps,
        count=count,
        seed=options.seed,
        timeout=options.timeout,
        p99_ms=_milliseconds(options.fail_if_p99),
        max_errors=options.max_errors,
        inputs=options.data.name if options.data else "synthetic",
    )
    command = shlex.join(["ml-opt", "bench", "server", *refs, *options.to_flags()])
    return replace(report, settings={**report.settings, "command": command})


def _queries(url: str, options: BenchServer, store: Store) -> tuple[list[Query], Shape]:
    """What is sent, and the shape that it has."""
    from optimizer.benching.protocols import chat, embeddings, infer, specs_of
    from optimizer.benching.remote import ask
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_rows
    from optimizer.data.synthetic import synthetic_feeds

    columns = named_columns(options.column)
    rows = read_rows(options.data, limit=_ROWS) if options.data else []
    if options.protocol == "openai":
        column = columns.get("text", "text")
        if any(not isinstance(row.values.get(column), str) for row in rows):
            raise BadInput(f"rows of {options.data} have no text under {column!r}", "say which: --column text=NAME")
        texts = [str(row.values[column]) for row in rows] or [_TEXT]
        if options.endpoint == "chat":
            return [chat(options.model, text, options.max_tokens) for text in texts], Shape(1)
        return [embeddings(options.model, [text]) for text in texts], Shape(1)
    ask(url, "/v2/health/ready", options.timeout)
    specs = specs_of(ask(url, f"/v2/models/{options.model}", options.timeout))
    if options.ref is None:
        shape = Shape.parse(options.shape)
        feeds = synthetic_feeds(specs, shape.batch, shape.sequence or 1, options.seed)
        return [infer(options.model, feeds)], shape
    artifact = store.get(options.ref)
    made = Preprocessor.open(artifact.path, artifact.manifest.model, columns=columns)
    made.check(rows)
    wanted = {spec.name: spec.dtype for spec in specs}
    every = (made.feeds([row]) for row in rows)
    return [
        infer(options.model, {name: array.astype(wanted[name]) for name, array in each.items() if name in wanted})
        for each in every
    ], Shape(1)


CHECK = Check(
    name="bench-server",
    command=("bench", "server"),
    help="Measure a server that is running: an open loop over HTTP, latency from the scheduled time.",
    details="Speaks the Open Inference Protocol (v2, as Triton, KServe and OpenVINO Model Server do) or OpenAI's, "
    "whose chat is streamed and gives times to the first token and between tokens. Errors are counted and never "
    "averaged in. Exit code 1 when a gate failed or queries stayed without an answer, 3 when a gate is undecided.",
    options=BenchServer,
    run=handed_out(_run),
    lines=annotations_of,
    files=True,
    url=True,
    modules=("numpy", "aiohttp"),
)
