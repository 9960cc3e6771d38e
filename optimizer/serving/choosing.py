"""Which variant of a model this machine serves, where none was named: by a verdict, or else the most exact one.

Accuracy does not depend on the processor much, and speed does. So a verdict that was reached on this very processor is
followed; of one from elsewhere it is taken which variants keep their budgets, and of those the first whose arithmetic
is fast here. What nobody has judged may be wrong however small it is: without a verdict nothing coarser is chosen than
there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.artifact import Artifact
from optimizer.environment import cpu_facts, gpu_facts
from optimizer.errors import BadInput
from optimizer.ref import Ref
from optimizer.runtime import is_openvino, preferred, works
from optimizer.store import Store
from optimizer.types import Kind, Precision

__all__ = ["BEST", "Choice", "chosen", "of_this_machine"]

#: The alias that ``ml-opt optimize`` gives the winner, and its verdict, beside the variants of a version.
BEST, _VERDICT = "best", "verdict.json"
#: Features of processors by which an arithmetic is faster than float there (as ``ml-opt optimize`` has it).
_FAST = {
    Precision.INT8: {"avx512_vnni", "avx_vnni", "amx_int8"},
    Precision.BF16: {"amx_bf16", "avx512_bf16"},
}
#: From the most exact.
_EXACT = tuple(Precision)


@dataclass(frozen=True)
class Choice:
    """A variant, and why it.

    Attributes:
        artifact: of the store.
        provider: where it should run; empty for what it is made for.
        why: in words; empty where there was no choice.
    """

    artifact: Artifact
    provider: str = ""
    why: str = ""


def chosen(store: Store, text: str, provider: str = "auto") -> Choice:
    """What a reference means on this machine; one that names a variant means that.

    Args:
        store: where it is looked up.
        text: a reference; ``name@best`` need not have been judged.
        provider: that was asked for; ``auto`` where none was.

    Raises:
        UnknownName: there is no such artifact.
        BadInput: it is no reference, or none of its variants runs here.
        Damaged: a manifest cannot be read.
    """
    ref = Ref.parse(text)
    if ref.at == BEST and BEST not in store.aliases(ref.name):
        ref = Ref(ref.name, "", ref.variant)
    name, version, variant = store.locate(ref)
    verdict = _verdict(store, name, version)
    if variant and (ref.at != BEST or ref.variant or verdict is None):
        return Choice(store.get(f"{name}@{version}:{variant}"))
    models = [each for each in store.artifacts(name, version) if each.kind in (Kind.ONNX, Kind.ENGINE, Kind.GENERATOR)]
    if len(models) < 2:
        return Choice(store.get(f"{name}@{version}"))
    judged = _judged(models, verdict or {}, provider)
    return judged or _most_exact(models, verdict or {}, provider, text)


def _verdict(store: Store, name: str, version: int) -> dict[str, Any] | None:
    """The verdict beside a version; None where there is none that can be read."""
    try:
        found = json.loads((store.version_folder(name, version) / _VERDICT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("candidates"), list):
        return None
    candidates = [each for each in found["candidates"] if isinstance(each, dict)]
    return {**found, "candidates": candidates, "environment": _mapping(found, "environment")}


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _judged(models: list[Artifact], verdict: Mapping[str, Any], provider: str) -> Choice | None:
    """The winner of a verdict from here, or the first that passed elsewhere and is fast here."""
    here, when = of_this_machine(verdict), str(verdict.get("created", ""))[:10]
    by_ref = {artifact.ref: artifact for artifact in models}
    for candidate in _passed(verdict):
        artifact, where = by_ref.get(str(candidate.get("ref"))), str(candidate.get("provider"))
        if not _works_here(where):
            where = str(preferred(where))  # OpenVINO comes in two ways
        if artifact is None or provider not in ("auto", where) or not _works_here(where):
            continue
        if here:
            return Choice(artifact, where, f"the best by the verdict of {when}, on this processor")
        if _bound(artifact) or not _fast(artifact, where):
            continue
        judge = str(_mapping(_mapping(verdict, "environment"), "cpu").get("model", "another machine"))
        return Choice(artifact, where, f"keeps its budgets by the verdict of {when} on {judge}, and is fast here too")
    return None


def _passed(verdict: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What kept every budget, the winner first, then as the verdict has them: the best first."""
    passed = [c for c in verdict.get("candidates", ()) if c.get("outcome") == "PASS"]
    winner = (verdict.get("best"), verdict.get("provider"))
    yield from sorted(passed, key=lambda c: (c.get("ref"), c.get("provider")) != winner)


def of_this_machine(report: Mapping[str, Any]) -> bool:
    """Whether a verdict or a report is of a machine like this one: the same processor, and the same GPUs."""
    environment = _mapping(report, "environment")
    cpu, own = _mapping(environment, "cpu"), cpu_facts()
    same = all(cpu.get(part) == own[part] for part in ("model", "features"))
    gpus = [gpu.get("name") for gpu in environment.get("gpus") or () if isinstance(gpu, dict)]
    return same and gpus == [gpu["name"] for gpu in gpu_facts()]


def _works_here(provider: str) -> bool:
    """Whether a provider computes on this machine."""
    name = provider.partition(":")[0]
    return name in ("cpu", "fake") or (name != "torch" and works(name).ok)


def _fast(artifact: Artifact, provider: str) -> bool:
    """Whether this processor has what makes the artifact's arithmetic fast."""
    precision = provider.partition(":")[2] or artifact.precision.value
    needs = next((features for each, features in _FAST.items() if each.value == precision), None)
    on_processor = provider.startswith("cpu") or is_openvino(preferred(provider))
    return needs is None or not on_processor or bool(needs & set(cpu_facts()["features"]))


def _bound(artifact: Artifact) -> bool:
    """Whether an artifact was compiled for one device."""
    return artifact.kind is Kind.ENGINE or artifact.compiled


def _most_exact(models: list[Artifact], verdict: Mapping[str, Any], provider: str, text: str) -> Choice:
    """What is nearest to the original: nobody has shown that more is allowed. The smallest graph of those."""
    outcomes: dict[str, set[str]] = {}
    for candidate in verdict.get("candidates", ()):
        outcomes.setdefault(str(candidate.get("ref")), set()).add(str(candidate.get("outcome")))
    failed = {ref for ref, found in outcomes.items() if found == {"FAIL"}}
    able, left_out = [], []
    for artifact in models:
        made_for = str(artifact.model_info.get("prefers") or ("cuda" if artifact.variant.endswith("-cuda") else "cpu"))
        if _bound(artifact):
            left_out.append(f"{artifact.variant} is made for one device")
        elif provider == "auto" and not _works_here(str(preferred(made_for))):
            left_out.append(f"{made_for} does not work here, which {artifact.variant} is made for")
        else:
            able.append(artifact)
    if not able:
        raise BadInput(f"nothing of {text} runs here: {'; '.join(left_out)}", f"name one: {models[0].ref}")
    best = min(able, key=lambda a: (a.ref in failed, _EXACT.index(a.precision), _nodes(a)))
    why = "the most exact that runs here; none is judged for this processor"
    return Choice(best, why="; ".join([why, *left_out]))


def _nodes(artifact: Artifact) -> tuple[int, str]:
    """How many operators its graph has: fused ones are fewer."""
    return sum(int(count) for count in dict(artifact.manifest.facts.get("ops") or {}).values()), artifact.variant
