"""calibration-set: real rows, chosen once to look like the file they come from, and kept as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.artifact import Artifact, Source
from optimizer.data.columns import column_opt, named_columns
from optimizer.errors import GateFailed
from optimizer.options import Options, opt
from optimizer.quantizing.options import seed_opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import JSON, Kind

__all__ = ["STAGE", "MakeCalibrationSet"]


class MakeCalibrationSet(Options):
    """Options of calibration-set."""

    data: Path = opt(
        help="Data like the model will see: jsonl, csv, parquet, npz, txt, a saved dataset, or a folder of images.",
        data=True,
        metavar="FILE",
    )
    column: tuple[str, ...] = column_opt()
    samples: int = opt(200, "Rows to keep, chosen by length and label.", ge=1, le=100000)
    seed: int = seed_opt()

    def check(self) -> None:
        named_columns(self.column)


def _run(source: Source, out: Path, options: MakeCalibrationSet, progress: Progress) -> Outcome:
    from optimizer.data.calibration import CalibrationSet, digest_of
    from optimizer.data.kept import write_rows
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_kept

    assert isinstance(source, Artifact)
    progress("choosing rows")
    model = source.model_info
    preprocessor = Preprocessor.open(source.path, model, columns=named_columns(options.column))
    chosen = CalibrationSet.open(options.data, preprocessor, samples=options.samples, seed=options.seed)
    progress("writing them down")
    write_rows(chosen.rows, preprocessor, out)
    # Written down, columns are called what they are to the model, whatever --column said.
    if digest_of(read_kept(out), Preprocessor.open(source.path, model).content) != chosen.summary["rows_sha256"]:
        raise GateFailed(
            f"rows of {options.data.name} are not the same to {source.ref} once they are written down",
            "give the file itself where a calibration set is wanted, and please report it",
        )
    warnings = [f"no row of {what} was chosen: more --samples cover it" for what in chosen.covers["missed"]]
    if len(chosen.rows) < chosen.asked:
        warnings.append(
            f"{len(chosen.rows)} rows, all different ones that {options.data.name} has; {chosen.asked} were asked for"
        )
    return Outcome({"calibration": chosen.summary, "coverage": chosen.covers}, warnings=warnings)


def _verify(options: MakeCalibrationSet, facts: Mapping[str, JSON], source: Source) -> None:
    chosen = facts["calibration"]["rows_used"]
    if facts["rows"] != chosen:
        raise GateFailed(f"calibration-set wrote {facts['rows']} rows, and {chosen} were chosen")


def _variant(options: MakeCalibrationSet, source: Source) -> str:
    return f"calib-{options.samples}" + (f"-seed{options.seed}" if options.seed else "")


STAGE = Stage(
    name="calibration-set",
    help="Choose rows of a data file for calibration, and keep them as an artifact.",
    details="Duplicates are dropped, every label and every stratum of like length gives its share, and nothing but the "
    "rows and --seed decides the choice. The rows are kept in the model's own words, with the files they name, so that "
    "the folder can be moved. `quantize static`, `sensitivity` and `optimize` take its reference as --calib.",
    options=MakeCalibrationSet,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.CALIBRATION,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    needs=("tokenizers",),
    modules=("numpy",),
)
