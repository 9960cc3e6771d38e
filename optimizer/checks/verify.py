"""verify: does an artifact still answer like the model it came from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimizer.benching.gates import share_of
from optimizer.check import Check
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import BadInput, MissingPiece
from optimizer.options import Options, opt
from optimizer.types import JSON, Device, Kind, Precision, TensorSpec

if TYPE_CHECKING:
    from optimizer.artifact import Artifact
    from optimizer.data.golden import Golden
    from optimizer.evaluate.generation_report import GenerationReport
    from optimizer.evaluate.parity import Case, Tolerance
    from optimizer.evaluate.replay import ReplayReport
    from optimizer.evaluate.report import VerifyReport
    from optimizer.runtime import Candidate, Session
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "Verify", "precision_of"]


#: Options that say nothing of a session.
_GENERATORS = ("max_drop", "max_kl", "window", "stride", "continuations", "new_tokens")


class Verify(Options):
    """Options of verify."""

    against: str = opt(
        "source",
        "What to compare with: `source` (PyTorch itself, or the imported file), `golden` (the answers kept beside the "
        "model, for machines without PyTorch), or another artifact.",
        metavar="REF",
        ref=True,
    )
    data: Path | None = opt(
        None,
        "Real inputs to compare on, beside the sweep of shapes; of a text generator, held-out text, or prompts and "
        "their answers where it reads with an encoder.",
        data=True,
        metavar="FILE",
    )
    column: tuple[str, ...] = column_opt()
    samples: int = opt(64, "Rows of the data to use.", ge=1)
    batch: int = opt(8, "Rows in a batch of data.", ge=1)
    provider: str | None = opt(None, "Where to run it: cpu, openvino, openvino:bf16, cuda, … [cpu].")
    device: Device = opt(Device.AUTO, "Where it runs when nothing names a provider; auto prefers a GPU.")
    threads: int = opt(0, "Threads; 0 for one a core.", ge=0, key=False)
    max_abs: float | None = opt(None, "Largest difference allowed, relative to max(1, largest answer).", ge=0)
    min_cosine: float | None = opt(None, "Smallest cosine similarity allowed of any row.", ge=-1, le=1)
    min_top1: float | None = opt(None, "Smallest share of equal decisions allowed.", ge=0, le=1)
    max_drop: str | None = opt(
        None, "Of a text generator: by how much its perplexity may be worse [by precision].", metavar="N%"
    )
    max_kl: float | None = opt(None, "Largest mean divergence allowed of a token, nats.", ge=0)
    window: int = opt(0, "Tokens that are scored together; 0 for the context, or 2048 where it is longer.", ge=0)
    stride: int = opt(0, "Tokens from one window to the next; 0 for half a window.", ge=0)
    continuations: int = opt(16, "Texts whose beginning both go on from, to see how far they do alike.", ge=0)
    new_tokens: int = opt(64, "Tokens that they write.", ge=1)
    sweep: bool = opt(True, "Try a sweep of shapes: batch 1, 2, 8; one step, an odd number, the longest; padded.")

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Of a text generator": _GENERATORS,
    }

    def check(self) -> None:
        share_of(self.max_drop, "--max-drop", "%", "2%")
        if self.data is not None and self.against == "golden":
            raise BadInput(
                "--data has no golden answers to compare with",
                "compare with another artifact (--against REF) or with PyTorch (--against source)",
            )
        if named_columns(self.column) and self.data is None:
            raise BadInput("--column says what the columns of --data are, which is not given", "add --data FILE")
        if not self.sweep and self.data is None and self.against != "golden":
            raise BadInput("--no-sweep without --data leaves nothing to compare on", "add --data FILE")


def _run(
    refs: tuple[str, ...], options: Verify, store: Store, progress: Progress
) -> VerifyReport | GenerationReport | ReplayReport:
    from optimizer.benching.candidates import check_source, parse, provider_of
    from optimizer.data.golden import Golden
    from optimizer.environment import describe
    from optimizer.evaluate.parity import as_computed, compare, judge
    from optimizer.evaluate.report import VerifyReport
    from optimizer.task import get_task

    (ref,) = refs
    if options.provider and "+" in ref:
        raise BadInput(f"{ref} names its provider; leave --provider out")
    judged = parse(f"{ref}+{options.provider}" if options.provider else ref, store, default=provider_of(options.device))
    artifact = judged.artifact
    if artifact is None:
        raise BadInput(f"{ref} is not an artifact", "`ml-opt ls` lists what there is")
    artifact.check(store.digests)
    if artifact.kind is Kind.GENERATOR:
        from optimizer.checks._verify_generator import verify_generator

        return verify_generator(judged, options, store, progress)
    for name in _GENERATORS:
        if name in options.changed():
            flag = "--" + name.replace("_", "-")
            raise BadInput(f"{flag} is about text generators, and {ref} is {artifact.kind.phrase}", "leave it out")
    model = artifact.model_info
    task = get_task(str(model.get("task") or "generic"))
    golden = Golden.load(artifact.path)
    progress("opening the candidate")
    candidate = judged.candidate.open(options.threads, tf32=False)
    # An engine that was built with TF32 has it, whatever is asked now.
    precision = as_computed(precision_of(artifact, judged.candidate), candidate.facts)
    tolerance = _tolerance(precision, options)
    try:
        if options.against == "golden":
            reference: Session = _golden_session(golden, artifact)
            label, reference_facts = "golden", {}
        else:
            progress("opening the reference")
            if options.against.partition(":")[0] == "source":
                check_source(artifact, store)
            other = parse(options.against, store, artifact)
            try:
                reference = other.candidate.open(options.threads, tf32=False)
            except MissingPiece as error:
                error.hint += "; or compare with the kept answers: --against golden"
                raise
            label, reference_facts = other.label, reference.facts
        try:
            facts: dict[str, JSON] = {"candidate": candidate.facts, "reference": reference_facts}
            cases = list(_cases(artifact, golden, model, options, facts))
            if artifact.kind is Kind.ENGINE:
                cases = _built_for(artifact, golden, model, options, cases, facts)
            results = tuple(compare(reference, candidate, _counted(cases, progress), task, model))
        finally:
            reference.close()
    finally:
        candidate.close()
    facts["environment"] = describe()
    if options.min_top1 is not None and not any("top1" in r.agreement for r in results if not r.error):
        raise BadInput(f"--min-top1 asks for decisions, and {task.name} has none", "use --min-cosine or --max-abs")
    failures = judge(results, tolerance, every_cosine=options.min_cosine is not None)
    return VerifyReport(judged.label, label, task.name, precision.value, tolerance, results, tuple(failures), facts)


def _counted(cases: list[Case], progress: Progress) -> Iterator[Case]:
    for place, case in enumerate(cases):
        progress("comparing answers", place, len(cases))
        yield case


def _cases(
    artifact: Artifact,
    golden: Golden | None,
    model: Mapping[str, JSON],
    options: Verify,
    facts: dict[str, JSON],
) -> Iterator[Case]:
    from optimizer.evaluate.parity import Case, Inputs
    from optimizer.evaluate.sweep import sweep_cases

    if golden is not None:
        yield Case("golden", golden.inputs, Inputs.GOLDEN)
    if options.against == "golden":
        return
    # The signature that the export gave the model: a candidate that fixed a dimension since then must be caught.
    specs = tuple(TensorSpec.from_json(spec) for spec in model["inputs"])
    if options.sweep:
        if golden is None:
            raise BadInput(
                f"{artifact.ref} has no golden inputs to make a sweep of", "give real ones: --no-sweep --data FILE"
            )
        yield from sweep_cases(golden, specs, model)
    if options.data is not None:
        from optimizer.data.calibration import CalibrationSet

        rows = CalibrationSet.of(artifact, options.data, options.column, samples=options.samples)
        facts["data"] = rows.summary
        for number, batch in enumerate(rows.batches(options.batch), 1):
            yield Case(f"data, batch {number}", batch.feeds, Inputs.DATA)


def _built_for(
    artifact: Artifact,
    golden: Golden | None,
    model: Mapping[str, JSON],
    options: Verify,
    cases: list[Case],
    facts: dict[str, JSON],
) -> list[Case]:
    """Of cases that were made for any model those that an engine was built for, and its own shapes in a sweep.

    Real rows are left as they are: an engine that does not take them has failed.

    Raises:
        BadInput: nothing is left.
    """
    from optimizer.engines.profiles import Profile
    from optimizer.evaluate.parity import Inputs
    from optimizer.evaluate.sweep import profile_cases

    profiles = [Profile.from_json(each) for each in artifact.manifest.facts["engine"]["profiles"]]
    if not profiles:
        return cases
    if golden is not None and options.sweep and options.against != "golden":
        specs = tuple(TensorSpec.from_json(spec) for spec in model["inputs"])
        cases = list({case.name: case for case in (*profile_cases(golden, specs, profiles), *cases)}.values())
    kept: list[Case] = []
    left: list[Case] = []
    for case in cases:
        shapes = {name: array.shape for name, array in case.feeds.items()}
        fits = case.inputs is Inputs.DATA or any(profile.holds(shapes) for profile in profiles)
        (kept if fits else left).append(case)
    if left:
        facts["left_out"] = [case.name for case in left]
    if not kept:
        raise BadInput(
            f"{artifact.ref} was not built for the shapes that are compared here ({', '.join(facts['left_out'])})",
            f"it takes {'; '.join(map(str, profiles))}; compare on shapes of its own: --against source",
        )
    return kept


def _golden_session(golden: Golden | None, artifact: Artifact) -> Any:
    """The golden answers behind the interface of a session that always gives them."""
    from optimizer.evaluate.golden import GoldenSession

    if golden is None:
        raise BadInput(f"{artifact.ref} has no golden answers", "compare with its source: --against source")
    return GoldenSession(golden)


def precision_of(artifact: Artifact, candidate: Candidate) -> Precision:
    """The coarsest number format on the way to an answer: the provider's, or the one most weights are stored in."""
    own, asked = artifact.precision, candidate.provider.precision
    if asked == "bf16" and own in (Precision.FP32, Precision.FP16):
        return Precision.BF16
    if asked == "fp16" and own is Precision.FP32:
        return Precision.FP16
    return own


def _tolerance(precision: Precision, options: Verify) -> Tolerance:
    from dataclasses import replace

    from optimizer.evaluate.parity import TOLERANCES

    asked = {
        name: getattr(options, name)
        for name in ("max_abs", "min_cosine", "min_top1")
        if getattr(options, name) is not None
    }
    return replace(TOLERANCES[precision], **asked)


CHECK = Check(
    name="verify",
    help="Compare an artifact's answers with PyTorch's own, over a sweep of shapes and real data.",
    details="Per output the largest, mean and 99.9th percentile difference, cosine and top-1 agreement; padding never "
    "counts. The tolerance follows the precision. Exit code 1 when it is missed. A text generator is compared on "
    "held-out text: perplexity with its bounds, divergence, top-1 agreement and how far both write alike; exit code 3 "
    "when the text is too little to tell; with --against golden it writes again what PyTorch wrote at the export.",
    options=Verify,
    run=_run,
    modules=("numpy", "onnxruntime"),
)
