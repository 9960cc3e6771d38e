"""What a sentence-transformers folder says beside the model: how token states become one vector."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["pooling_of"]

#: Switch in ``1_Pooling/config.json`` → its name in :mod:`optimizer.tasks.feature_extraction`.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Modules that change no direction, and so no cosine: the export loses nothing by leaving them out.
_HARMLESS = ("Transformer", "Pooling", "Normalize")


def pooling_of(folder: Path) -> tuple[str, list[str]]:
    """How one vector is made of a model's token states, and what a reader should know.

    Returns:
        the pooling (``mean`` where the folder says nothing, ``none`` where it says something that is not known here)
        and warnings: about that, and about modules behind the pooling, which are not exported.

    Raises:
        BadInput: a file of the folder is not JSON.
    """
    warnings: list[str] = []
    for module in _read(folder / "modules.json") or []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _HARMLESS:
            where = module.get("path") or module.get("name")
            warnings.append(f"{kind} ({where}) of the sentence-transformers folder is not part of the export")
    config = _read(folder / "1_Pooling" / "config.json") or {}
    asked = [key for key in config if key.startswith("pooling_mode_") and config[key] is True]
    if not asked:
        named = str(config.get("pooling_mode"))  # how newer versions write it
        return (named if named in _MODES.values() else "mean"), warnings
    if len(asked) == 1 and asked[0] in _MODES:
        return _MODES[asked[0]], warnings
    warnings.append(f"1_Pooling asks for {' and '.join(asked)}, which is not known here: states are compared unpooled")
    return "none", warnings


def _read(path: Path) -> JSON:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
