"""``ml-opt serve``: the one command that does not end by itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from optimizer.cli.generate import COMMON, Common, complete_ref, option_parameters, typed_values, with_parameters
from optimizer.environment import need_modules
from optimizer.serving.settings import Settings

__all__ = ["serve"]


def _serve(**values: Any) -> int:
    """Serve models over HTTP: Open Inference Protocol V2, OpenAI's embeddings, classification, metrics.

    One JSON line on stderr for each request; with --json one on stdout when every model is ready. SIGTERM or Ctrl-C
    end it: not ready at once, what is under way finishes.
    """
    from optimizer.serving.config import guard_of, read_config
    from optimizer.serving.rpc.server import MODULES as RPC_MODULES
    from optimizer.serving.server import MODULES, serve

    outside = Common(values)
    refs, log = values.pop("refs"), _Log(outside)
    config = read_config(values.pop("config"), typed_values(Settings, values))
    need_modules(MODULES, "serve")
    if config.server.grpc_port is not None:
        need_modules(RPC_MODULES, "serve --grpc-port")
    guard = guard_of(config, lambda text: log({"event": "keys", "error": text}))
    serve(refs, config.server, outside.store, log, guard, ("-m", "optimizer", *sys.argv[1:]))
    return 0


class _Log:
    """Events as lines: when the server is ready for people or machines, and each request as JSON on stderr."""

    def __init__(self, outside: Common) -> None:
        self._output = outside.output

    def __call__(self, event: Mapping[str, Any]) -> None:
        import orjson

        line = orjson.dumps(event, default=str).decode() + "\n"
        if event["event"] == "ready":
            if self._output.json:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                names = ", ".join(f"{model['name']} version {model['version']}" for model in event["models"])
                self._output.talk(f"ready on {event['url']} after {event['seconds']} s: {names}")
                for model in event["models"]:
                    if not model["proof"]:
                        self._output.talk(f"{model['name']}: nothing was replayed, so that nothing proves its answers")
                    if why := model.get("why"):
                        self._output.talk(f"{model['name']} is {model['ref']} on {model['provider']}: {why}")
            return
        if not self._output.quiet:
            sys.stderr.write(line)
            sys.stderr.flush()


def _command() -> Any:
    from inspect import Parameter

    argument = typer.Argument(
        metavar="REF...",
        help=r"Artifact: name\[@version|@alias]\[:variant]; an artifact's folder, or an .onnx file.",
        autocompletion=complete_ref,
    )
    refs = Parameter("refs", Parameter.KEYWORD_ONLY, annotation=Annotated[list[str], argument])
    common = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in COMMON.items()
    ]
    file = typer.Option("--config", metavar="FILE", help="serve.toml: these settings, keys, rates and privacy.")
    config = Parameter("config", Parameter.KEYWORD_ONLY, annotation=Annotated[Path | None, file], default=None)
    return with_parameters(_serve, [refs, config, *option_parameters(Settings), *common])


serve = _command()
