import json

from optimizer.evaluate.parity import CaseResult, Difference, Inputs, Tolerance
from optimizer.evaluate.report import VerifyReport


def report(*cases, failures=()):
    return VerifyReport(
        "m@1:int8", "source", "text-classification", "int8", Tolerance(None, 0.9, 0.95), cases, failures
    )


def case(name, inputs, max_abs, cosine, top1, rows):
    difference = Difference(max_abs, max_abs / 2, max_abs, 1.0, cosine, top1, True)
    return CaseResult(name, inputs, {"x": [2, 3]}, {"logits": difference}, rows)


GOLDEN = case("golden", Inputs.GOLDEN, 0.1, 0.99, 1.0, {"cosine": [0.99, 1.0], "top1": [1.0, 1.0]})
DATA = case("data, batch 1", Inputs.DATA, 0.3, 0.9, 0.5, {"cosine": [0.8, 0.98], "top1": [0.0, 1.0]})
REFUSED = CaseResult("8x1", Inputs.SWEEP, {"x": [8, 1]}, error="the batch is 2")


def test_the_worst_over_all_cases():
    worst = report(GOLDEN, DATA, REFUSED).worst()
    assert worst["outputs"]["logits"] == {
        "max_abs": 0.3,
        "p999_abs": 0.3,
        "mean_abs": 0.15,
        "cosine": 0.9,
        "top1": 0.5,
    }
    assert worst["cosine"] == {"worst": 0.8, "mean": (0.99 + 1.0 + 0.8 + 0.98) / 4, "rows": 4}
    assert worst["top1"] == {"share": 0.75, "rows": 4}
    assert report(REFUSED).worst() == {"outputs": {}}


def test_the_exit_code_is_the_verdict():
    assert (report(GOLDEN).exit_code, report(GOLDEN).to_json()["passed"]) == (0, True)
    failed = report(GOLDEN, failures=("too far",))
    assert (failed.exit_code, failed.to_json()["passed"]) == (1, False)


def test_the_schema():
    """What readers rely on: raise SCHEMA when one of these goes."""
    data = json.loads(json.dumps(report(GOLDEN, DATA, REFUSED, failures=("8x1: the batch is 2",)).to_json()))
    assert list(data) == [
        "report", "schema", "ref", "against", "passed", "exit_code", "task", "precision", "tolerance", "worst",
        "failures", "cases", "facts",
    ]  # fmt: skip
    assert (data["report"], data["schema"], data["exit_code"]) == ("verify", 1, 1)
    assert data["tolerance"] == {"max_abs": None, "min_cosine": 0.9, "min_top1": 0.95}
    assert [c["inputs"] for c in data["cases"]] == ["golden", "data", "sweep"]
    assert list(data["cases"][0]) == ["name", "inputs", "shapes", "outputs", "agreement", "error"]
    assert list(data["cases"][0]["outputs"]["logits"]) == [
        "max_abs", "mean_abs", "p999_abs", "scale", "cosine", "top1", "finite",
    ]  # fmt: skip
    assert data["cases"][2]["error"] == "the batch is 2"
