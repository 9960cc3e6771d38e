"""Tables and sentences for people; machines read the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimizer.artifact import Artifact
from optimizer.check import Report
from optimizer.cli.output import Output
from optimizer.cli.tables import escape, size, table
from optimizer.diff import Difference
from optimizer.pipeline import Result
from optimizer.store import Store
from optimizer.types import JSON, Kind

__all__ = [
    "render_artifact",
    "render_differences",
    "render_doctor",
    "render_listing",
    "render_report",
    "render_result",
]


def render_result(result: Result, output: Output) -> None:
    """One line for what was made, and one for each thing worth knowing about it."""
    console = output.console()
    manifest = result.artifact.manifest
    state = "[dim]cached[/dim]" if result.cached else f"made in {result.seconds:.1f} s"
    console.print(f"[bold]{result.artifact.ref}[/bold]  {size(manifest.bytes)}  {state}", soft_wrap=True)
    for line in _highlights(manifest.kind, manifest.facts):
        console.print(f"  {line}", style="dim", soft_wrap=True)
    _render_inside(result.artifact, output)
    for warning in manifest.warnings:
        output.talk(f"  note: {warning}")


def _render_inside(artifact: Artifact, output: Output) -> None:
    """What an artifact that is no model holds, as a table."""
    from optimizer.cli.reports import render_coverage, render_ranking

    forms = {Kind.RANKING: render_ranking, Kind.CALIBRATION: render_coverage}
    if artifact.kind in forms:
        forms[artifact.kind](artifact, output)


def _highlights(kind: Kind, facts: Mapping[str, JSON]) -> list[str]:
    if kind is Kind.CALIBRATION:
        return [_chosen(facts["calibration"])]
    if kind is Kind.RANKING:
        return []
    if kind is Kind.ENGINE:
        return _of_engine(facts)
    if kind is Kind.GENERATOR:
        return _of_generator(facts)
    lines = []
    if fused := {k: v for k, v in facts.get("fused", {}).items() if v}:
        lines.append("fused: " + ", ".join(f"{v} {k}" for k, v in fused.items()))
    if quantized := facts.get("quantized", {}).get("total"):
        kinds = ", ".join(f"{v} {k}" for k, v in facts["quantized"].items() if k != "total")
        lines.append(f"quantized nodes: {quantized} ({kinds})")
    if calibration := facts.get("calibration"):
        lines.append(f"calibrated on {calibration.get('rows_used')} of {calibration.get('rows')} rows")
    if smooth := facts.get("smooth"):
        ways = (smooth.get("norm", 0) + smooth.get("linear", 0), smooth.get("insert", 0))
        lines.append("smoothed with alpha {:g}: {} folded, {} Mul inserted".format(smooth["alpha"], *ways))
    if left_out := facts.get("left_out"):
        lines.append("left in float: " + ", ".join(each["node"] for each in left_out))
    if cast := facts.get("cast"):
        counts = {"out of range, kept in fp32": "out_of_range", "subnormal": "subnormal", "rounded to zero": "zeroed"}
        said = ", ".join(f"{cast[key]} {words}" for words, key in counts.items() if key in cast)
        lines.append(f"cast to {cast['to']}: {cast['numbers']} numbers, {said}")
    if training := facts.get("training"):
        lines += _trained(training, facts.get("parity"))
    return lines


def _trained(training: Mapping[str, JSON], parity: Mapping[str, JSON] | None) -> list[str]:
    """What training came to, and how the graph answers beside the model that was trained."""
    lines = [f"trained {training['steps']} steps on {training['data']['rows']} rows of {training['data']['file']}"]
    if scores := training["scores"]:
        shown = "accuracy" if "accuracy" in scores["float"] else next(iter(scores["float"]))
        for name in dict.fromkeys((shown, "cosine", "worst_cosine")):
            said = ", ".join(f"{when} {found[name]:.4f}" for when, found in scores.items() if name in found)
            lines.append(f"{name.replace('_', ' ')} on {training['eval']['file']}: {said}")
    if parity is not None:
        agreed = f", the same decision in {parity['agreement']:.1%}" if parity["agreement"] is not None else ""
        lines.append(
            f"the graph and PyTorch differ by {parity['median']:.1g} in the usual row of {parity['rows']}, "
            f"{parity['max']:.2g} in the worst{agreed}"
        )
    return lines


def _of_engine(facts: Mapping[str, JSON]) -> list[str]:
    """Who built an engine and for what, what it computes in, and the shapes it takes."""
    from optimizer.engines.profiles import Profile

    engine, layers = facts["engine"], facts["layers"] if facts["layers"]["layers"] else facts["network"]
    capabilities = ", ".join(engine["compute_capabilities"]) or "the GPU it was built on"
    products = ", ".join(f"{count} in {name}" for name, count in layers["products"].items())
    lines = [
        f"{engine['flavor']} {engine['version']} in {engine['build_seconds']:.1f} s, for {capabilities}",
        f"{layers['layers']} layers; products {products or 'none'}; {layers['attention']} fused attentions",
    ]
    lines += [f"profile {profile}" for profile in map(Profile.from_json, engine["profiles"])]
    return lines


def _of_generator(facts: Mapping[str, JSON]) -> list[str]:
    """The size of a decoder and its cache, what its weights are stored in, and how near it is to PyTorch."""
    decoder, blocks = facts["decoder"], facts["blocks"]
    lines = [
        f"{decoder['layers']} layers, {decoder['heads']} heads of {decoder['head_size']} over {decoder['kv_heads']} of "
        f"keys and values; {facts['attention']} fused attentions",
        f"context of {decoder['context']} tokens, {size(decoder['cache_bytes_per_token'])} of cache for each",
    ]
    if encoder := facts.get("encoder"):
        lines[0] = lines[0].partition(";")[0] + "; an encoder reads the prompt"
        lines[1] = f"prompts of up to {encoder['context']} tokens, answers of up to {encoder['answers']}"
    elif decoder.get("grows"):
        lines[0] = lines[0].partition(";")[0] + "; attention of its own, with a cache that grows"
    if blocks["products"]:
        kinds = ", ".join(f"{count} in {bits} bits" for bits, count in blocks["by_bits"].items())
        words = " and ".join(map(str, blocks["block_size"]))
        left = f"; in float: {', '.join(facts['float_products'])}" if facts["float_products"] else ""
        lines.append(f"products: {kinds}, blocks of {words}; {blocks['tables']} tables in blocks{left}")
    if parity := facts.get("parity"):
        lines.append(
            f"beside PyTorch: logits differ by {parity['max_abs']:g} at most, the same token in "
            f"{parity['top1']:.1%} of places, divergence {parity['kl']:g} nats"
        )
    return lines


def _chosen(data: Mapping[str, JSON]) -> str:
    text = f"{data['rows_used']} of {data['rows']} rows of {data['file']}, {data['duplicates']} duplicates dropped"
    if lengths := data["lengths"]:
        text += f"; lengths {lengths['min']} to {lengths['max']}, half of them up to {lengths['median']}"
    return text


def render_listing(
    store: Store, artifacts: list[Artifact], aliases: Mapping[str, Mapping[str, str]], output: Output
) -> None:
    """The store as a table."""
    if not artifacts:
        print(f"the store {store.root} is empty; make something with: ml-opt export-onnx MODEL")
        return
    made = table("artifact", "kind", "size", "made by", "created", right=("size",))
    for artifact in artifacts:
        manifest = artifact.manifest
        created = manifest.created[:16].replace("T", " ")
        made.add_row(artifact.ref, manifest.kind.value, size(manifest.bytes), manifest.stage["name"], created)
    console = output.console()
    console.print(made)
    for name, entries in aliases.items():
        for alias, target in entries.items():
            console.print(f"{name}@{alias} → {name}@{target}", style="dim")


def render_artifact(artifact: Artifact, output: Output) -> None:
    """One manifest, made to be read."""
    manifest = artifact.manifest
    console = output.console()
    console.print(f"[bold]{artifact.ref}[/bold]  {manifest.kind.value}, {size(manifest.bytes)}")
    made = table("", "")
    made.show_header = False
    stage = manifest.stage
    rows: dict[str, str] = {
        "path": str(artifact.path),
        "made by": f"{stage['name']} (version {stage['version']}) in {manifest.seconds} s, {manifest.created}",
        "from": str(manifest.source.get("ref") or manifest.source.get("spec")),
        "again with": manifest.command,
        "model": ", ".join(
            f"{k} {v}" for k, v in manifest.model.items() if isinstance(v, (str, int)) and not isinstance(v, bool) and v
        ),
        "options": ", ".join(f"{k}={_short(v)}" for k, v in manifest.options.items()),
        "inputs": "; ".join(f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in manifest.inputs),
        "outputs": "; ".join(f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in manifest.outputs),
    }
    shown = {"inputs", "outputs", "ranking", "coverage"}
    for name, value in manifest.facts.items():
        if name not in shown:
            rows[name] = _short(value)
    for name, text in rows.items():
        if not text and name in shown:
            continue  # what is no model has no inputs
        made.add_row(f"[dim]{name}[/dim]", escape(text))
    console.print(made)
    _render_inside(artifact, output)
    files = table("file", "bytes", "sha256", right=("bytes",))
    for file, entry in manifest.files.items():
        files.add_row(file, str(entry["bytes"]), str(entry["sha256"])[:16] + "…")
    console.print(files)
    for warning in manifest.warnings:
        console.print(f"note: {escape(warning)}", style="yellow")


def _short(value: JSON) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def render_differences(first: str, second: str, found: list[Difference], output: Output) -> None:
    """Two artifacts side by side, differing fields only."""
    if not found:
        print(f"{first} and {second} are the same")
        return
    made = table("field", first, second)
    for each in found:
        made.add_row(escape(each.field), *("–" if v is None else escape(_short(v)) for v in (each.first, each.second)))
    output.console().print(made)


def render_doctor(facts: Mapping[str, JSON], output: Output) -> None:
    """The machine on one screen."""
    console = output.console()
    environment = facts["environment"]
    cpu = environment["cpu"]
    console.print(f"[bold]{cpu['model']}[/bold], {cpu['cores']} cores, {size(environment['memory_bytes'])} memory")
    console.print(f"  features: {', '.join(cpu['features']) or 'none that matter here'}")
    for gpu in environment["gpus"]:
        console.print(
            f"  GPU: {gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}, SM {gpu['compute_capability']}"
        )
    if not environment["gpus"]:
        console.print("  GPU: none found")
    for title, rows, about in (("provider", facts["providers"], "reason"), ("extra", facts["extras"], "for")):
        made = table(title, "", "")
        for row in rows:
            mark = "[green]works[/green]" if row["ok"] else "[yellow]not here[/yellow]"
            text = escape(row[about] if row["ok"] or title == "extra" else row["reason"])
            if row["hint"] and not row["ok"]:
                text = f"{text}\n[dim]{escape(row['hint'])}[/dim]"
            made.add_row(row["name"], mark, text)
        console.print(made)
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    console.print(f"versions: {versions}", style="dim")
    for sentence in facts["advice"]:
        console.print(f"→ {sentence}")


def render_report(report: Report, output: Output) -> None:
    """A check's report in its own form."""
    from optimizer.cli.generation_reports import (
        render_bench_generation,
        render_replay,
        render_verify_generation,
    )
    from optimizer.cli.inspect_report import render_inspect
    from optimizer.cli.optimize_report import render_optimize, render_plan
    from optimizer.cli.reports import render_bench, render_comparison, render_history, render_verify

    forms: dict[str, Callable[[Any, Output], None]] = {
        "verify": render_verify,
        "verify-generation": render_verify_generation,
        "verify-golden-text": render_replay,
        "inspect": render_inspect,
        "bench": render_bench,
        "bench-generation": render_bench_generation,
        "bench-comparison": render_comparison,
        "bench-history": render_history,
        "optimize": render_optimize,
        "optimize-plan": render_plan,
    }
    document = report.to_json()
    forms[document["report"]](report, output)
