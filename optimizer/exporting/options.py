"""Options of every stage that starts from a model folder or a hub id, each written once."""

from __future__ import annotations

from typing import Any

from optimizer.options import opt

__all__ = ["allow_pickle_opt", "revision_opt", "task_opt", "trust_remote_code_opt"]


def task_opt() -> Any:
    """``task``: what the model is loaded for."""
    return opt(None, "What the model does, e.g. text-classification [read from its config.json].")


def revision_opt() -> Any:
    """``revision``: which state of a hub model."""
    return opt(None, "Branch, tag or commit of a hub model.")


def trust_remote_code_opt() -> Any:
    """``trust_remote_code``: whether code that came with the model may run."""
    return opt(False, "Run the Python files that come with the model.")


def allow_pickle_opt() -> Any:
    """``allow_pickle``: whether loading weights may run code."""
    return opt(False, "Take weights stored as Python pickles, which can run code when loaded.")
