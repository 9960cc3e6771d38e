"""What GitHub Actions is told, by the words of its own documentation."""

from types import SimpleNamespace

import pytest
from golden.write import HERE

from optimizer.benching.formats.csv import to_csv
from optimizer.benching.formats.markdown import to_markdown
from optimizer.benching.github import annotation, annotations_of, summary_file
from optimizer.benching.report import BenchReport
from optimizer.benching.writing import hand_out, handed_out
from optimizer.errors import BadInput


@pytest.fixture
def report():
    return BenchReport.read(HERE / "bench-3.json")


def test_an_annotation_is_escaped_as_the_toolkit_does_it():
    assert annotation("error", "a: b, 5%", "50% of\r\nit: yes, no") == (
        "::error title=a%3A b%2C 5%25::50%25 of%0D%0Ait: yes, no"
    )


def test_failed_gates_are_errors_and_undecided_ones_warnings(report):
    lines = list(annotations_of(report, SimpleNamespace(github=True)))
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 2 + ["::warning"] * 2 + ["::error"]
    assert lines[0] == (
        "::error title=dead.onnx could not be measured::its process was ended by SIGKILL give it more memory"
    )
    assert lines[1].startswith(
        '::error title=REGRESSION%3A mini@1%3A<odd> & "slow" | %25%2C slower at 1x16::+16.0%25 ('
    )
    assert all("\n" not in line for line in lines)


def test_nothing_is_annotated_unasked(report):
    assert list(annotations_of(report, SimpleNamespace(github=False))) == []


def test_a_report_is_handed_out_to_files_and_added_to_the_summary_that_is_there(report, tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    hand_out(report, [tmp_path / "a.csv"], github=False)
    assert (tmp_path / "a.csv").read_text() == to_csv(report)
    assert path.read_text() == "before\n"
    hand_out(report, [], github=True)
    assert path.read_text() == "before\n" + to_markdown(report) + "\n"


def test_a_check_is_refused_before_it_runs_and_its_report_handed_out_after(report, tmp_path, monkeypatch):
    ran = []

    def run(refs, options, store, progress):
        ran.append(refs)
        return report

    check = handed_out(run)
    asked = SimpleNamespace(github=True, report=(tmp_path / "a.csv",))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    with pytest.raises(BadInput, match="GITHUB_STEP_SUMMARY"):
        check(("x",), asked, None, None)
    assert ran == []
    assert check(("x",), SimpleNamespace(github=False, report=()), None, None) is report
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert check(("y",), asked, None, None) is report
    assert ran == [("x",), ("y",)]
    assert (tmp_path / "a.csv").read_text() == to_csv(report)
    assert (tmp_path / "summary.md").read_text() == to_markdown(report) + "\n"


@pytest.mark.parametrize("value", [None, ""])
def test_outside_of_github_the_variable_is_named(value, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    if value is not None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", value)
    with pytest.raises(BadInput, match="GITHUB_STEP_SUMMARY; it is not set") as refused:
        summary_file()
    assert "--report FILE.md" in refused.value.hint
