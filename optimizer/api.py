"""The public functions, made from the same declarations as the commands.

``optimizer.quantize_static("minilm:fp32", calib="calib.jsonl")`` builds the options that
``ml-opt quantize static minilm:fp32 --calib calib.jsonl`` builds, and so ends in the same cache key.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer import check as checks
from optimizer import stage as stages
from optimizer.check import Check, Report
from optimizer.options import Options
from optimizer.pipeline import Result, apply
from optimizer.stage import Progress, Stage, silent
from optimizer.store import Store
from optimizer.types import Kind

__all__ = ["functions", "run_check", "run_stage"]


def run_stage(
    stage: Stage,
    source: str,
    values: dict[str, Any],
    *,
    store: Store | Path | str | None = None,
    name: str | None = None,
    variant: str | None = None,
    progress: Progress = silent,
) -> Result:
    """Apply a stage with options given by name; see :func:`optimizer.pipeline.apply`."""
    options = stage.options.from_mapping(values, stage.name)
    return apply(stage, source, options, _store(store), name=name, variant=variant, progress=progress)


def run_check(
    check: Check,
    refs: tuple[str, ...],
    values: dict[str, Any],
    *,
    store: Store | Path | str | None = None,
    progress: Progress = silent,
) -> Report:
    """Run a check with options given by name."""
    options = check.options.from_mapping(values, check.name)
    return check.apply(refs, options, _store(store), progress)


def _store(store: Store | Path | str | None) -> Store:
    return store if isinstance(store, Store) else Store(store)


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Every stage and check as a function, by its Python name."""
    made: dict[str, Callable[..., Any]] = {}
    for stage in stages.discover().values():
        made[stage.function] = _stage_function(stage)
    for check in checks.discover().values():
        made[check.function] = _check_function(check)
    return made


def _stage_function(stage: Stage) -> Callable[..., Result]:
    def function(source: str, **keywords: Any) -> Result:
        outside = {k: keywords.pop(k) for k in ("store", "name", "variant", "progress") if k in keywords}
        return run_stage(stage, source, keywords, **outside)

    source = inspect.Parameter("source", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
    extra = [_keyword("variant", str | None, None)]
    if Kind.SOURCE in stage.accepts:
        extra.insert(0, _keyword("name", str | None, None))
    return _dressed(function, stage.function, stage.help, stage.options, [source], extra, Result)


def _check_function(check: Check) -> Callable[..., Report]:
    positional = [f.name for f in check.options.fields() if f.opt.positional]

    def function(*refs: str, **keywords: Any) -> Report:
        outside = {k: keywords.pop(k) for k in ("store", "progress") if k in keywords}
        if not refs:
            raise TypeError(f"{check.function}() needs at least one reference")
        refs, behind = refs[: len(refs) if check.many else 1], refs[1:] if not check.many else ()
        if len(behind) > len(positional):
            raise TypeError(
                f"{check.function}() takes one reference{' and ' if positional else ''}{', '.join(positional)}"
            )
        for name, value in zip(positional, behind, strict=False):
            if name in keywords:
                raise TypeError(f"{check.function}() got {name} twice")
            keywords[name] = value
        return run_check(check, refs, keywords, **outside)

    refs = inspect.Parameter("refs", inspect.Parameter.VAR_POSITIONAL, annotation=str)
    return _dressed(function, check.function, check.help, check.options, [refs], [], Report)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _dressed(
    function: Callable[..., Any],
    name: str,
    help: str,
    options: type[Options],
    positional: list[inspect.Parameter],
    extra: list[inspect.Parameter],
    returns: Any,
) -> Callable[..., Any]:
    """Give a generated function the name, signature and docstring that one written by hand would have."""
    keywords = [
        _keyword(
            f.name,
            f.type | str if f.opt.time or f.opt.share else f.type,
            inspect.Parameter.empty if f.required else f.default,
        )
        for f in options.fields()
    ]
    common = [_keyword("store", Store | Path | str | None, None), _keyword("progress", Progress, silent)]
    signature = inspect.Signature([*positional, *keywords, *extra, *common], return_annotation=returns)
    function.__name__ = function.__qualname__ = name
    function.__module__ = "optimizer"
    function.__signature__ = signature  # type: ignore[attr-defined]
    lines = [help, "", "Args:"]
    lines += [f"    {f.name}: {f.opt.help}" for f in options.fields()]
    lines += ["    store: the folder of artifacts (default: $ML_OPT_STORE, or ./models)."]
    function.__doc__ = "\n".join(lines)
    return function
