"""Everything that can be set of a server; every door builds this value."""

from __future__ import annotations

from optimizer.errors import BadInput
from optimizer.options import Options, opt, parse_size
from optimizer.runtime import Provider
from optimizer.serving.kept import check_place

__all__ = ["Settings"]


class Settings(Options):
    host: str = opt("127.0.0.1", "Address to listen on.", metavar="ADDRESS")
    port: int = opt(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    grpc_port: int | None = opt(
        None, "Port for gRPC, beside that for HTTP; 0 takes a free one. None when left out.", ge=0, le=65535
    )
    provider: str = opt(
        "auto", "What computes, as in openvino:bf16; auto is what each artifact is made for, else the processor."
    )
    threads: int = opt(0, "Threads of one run of a model; 0 is one a physical core.", ge=0, le=1024)
    streams: int = opt(
        0,
        "Runs of a model side by side, each on one thread, while more waits than one run takes; weights lie in memory "
        "twice then. 0 is one a thread for models up to 1 GiB on the processor, 1 is never.",
        ge=0,
        le=1024,
    )
    workers: int = opt(
        1, "Processes that answer on the port, each with its own models and its share of the cores.", ge=1, le=256
    )
    verify: bool = opt(True, "Replay the golden inputs over HTTP before a model is ready.")
    max_queue: int = opt(256, "Most rows that wait for one model; more are answered 429.", ge=1, le=1_000_000)
    max_batch: int | None = opt(
        None, "Most rows in one run of a model [32, or as many as were measured, with --slo].", ge=1, le=65536
    )
    max_tokens: int | None = opt(
        None,
        "Most tokens in one run of a model, padding included [2048, or what its measured times say, with --slo].",
        ge=1,
        le=10_000_000,
    )
    slo: float | None = opt(
        None,
        "Time that requests should take: a run is kept to half of it, and what would wait longer is answered 429.",
        time=True,
    )
    delay: float | None = opt(
        None, "How long a request may wait for others while the model has nothing to do [not at all].", time=True
    )
    deadline: float = opt(30.0, "How long a request may take that names no time of its own.", time=True)
    grace: float = opt(30.0, "How long requests have to finish after SIGTERM.", time=True)
    max_body: int = opt(32, "Largest body of a request in MiB, after decompression.", ge=1, le=65536)
    max_megapixels: int = opt(
        50, "Megapixels of the largest picture, by its file's head; it is not decoded to know.", ge=1, le=178
    )
    cache: str = opt(
        "",
        "Keep answers of models that do not write text: so much of them in memory (256MiB), or in Redis "
        "(redis://HOST:6379/0). Off when left out.",
        metavar="SIZE|URL",
    )
    otel: bool = opt(
        False, "Send OpenTelemetry's spans over OTLP, to where OTEL_EXPORTER_OTLP_ENDPOINT says or localhost:4318."
    )
    memory: str = opt(
        "",
        "Memory that loaded models may take together, as in 2GiB: the least recently used one that is idle makes room "
        "for one that is asked for [no limit].",
        metavar="SIZE",
    )
    access_log: bool = opt(True, "One line of JSON on stderr for each request.")
    log_text: bool = opt(
        False, "Have that line say what was asked and written, 500 characters a text, personal data taken out."
    )

    def check(self) -> None:
        if self.provider != "auto":
            Provider.parse(self.provider)
        if self.cache:
            check_place(self.cache)
        if self.slo and self.delay and self.delay >= self.slo:
            raise BadInput(
                f"--delay {self.delay:g}s leaves nothing of --slo {self.slo:g}s to run in", "make one of them smaller"
            )
        if self.log_text and not self.access_log:
            raise BadInput("--log-text puts texts into the log of requests, which --no-access-log turns off")
        if self.memory:
            parse_size(self.memory, "--memory")
