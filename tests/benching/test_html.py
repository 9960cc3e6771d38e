"""The page of a report: well-formed, loading nothing, and what is drawn lies where the numbers say."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from golden.write import HERE

from optimizer.benching.formats.html import to_html
from optimizer.benching.plots import batch_plots, latency_plots, roofline_plot
from optimizer.benching.report import BenchReport
from optimizer.benching.stats import summarize

VOID = {"meta", "br", "line", "circle", "rect", "polygon"}


class Page(HTMLParser):
    """Every tag with its attributes, and a refusal of tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def report():
    return BenchReport.read(HERE / "bench-3.json")


@pytest.fixture(scope="module")
def page(report):
    return Page(to_html(report))


def lines(drawn, kind):
    """``(x1, y1, x2, y2)`` of every line of a class, percent and pixels alike."""
    found = [attrs for tag, attrs in Page(drawn).tags if tag == "line" and kind in attrs["class"].split()]
    return [tuple(float(attrs[name].rstrip("%")) for name in ("x1", "y1", "x2", "y2")) for attrs in found]


def dots(drawn):
    return [
        (attrs["class"], float(attrs["cx"].rstrip("%")), float(attrs["cy"].rstrip("%")))
        for tag, attrs in Page(drawn).tags
        if tag == "circle"
    ]


def test_it_loads_nothing_and_runs_nothing(report, page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for _, attrs in page.tags:
        assert not {"src", "href", "srcset", "data", "action", "xlink:href"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
    text = to_html(report)
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


def test_everything_of_the_report_is_on_it(report, page):
    for row in report.rows:
        assert row.label in page.text
    for gate in report.gates:
        assert gate.says in page.text
        assert gate.title in page.text
    for said in ("REGRESSION Benchmark", "its process was ended by SIGKILL", "A Processor", "governor performance",
                 "A GPU, driver 570.1", "onnxruntime 1.32.0", "--fail-if-slower 5%", "load 2.4", "1.2%",
                 "copy of 64 MiB on cpu: 20 GB/s", "1.99 (1.96 to 2.01)"):  # fmt: skip
        assert said in page.text, said


def test_the_worst_gates_come_first(report, page):
    places = [page.text.index(gate.says) for gate in report.gates]
    outcomes = [outcome for _, outcome in sorted(zip(places, (g.outcome.value for g in report.gates), strict=True))]
    assert outcomes == ["REGRESSION"] * 2 + ["INCONCLUSIVE"] * 2 + ["PASS"] * 2


def test_an_old_report_without_gates_and_roofs_is_drawn():
    text = to_html(BenchReport.read(HERE / "bench-1.json"))
    page = Page(text)
    assert "Gates" not in page.text
    assert "roofs" not in page.text
    assert "How the times lie" in page.text


def test_a_report_of_nothing_but_failures_is_drawn(report):
    page = Page(to_html(replace(report, rows=report.rows[-1:], gates=(), roofline=None)))
    assert "SIGKILL" in page.text
    assert "How the times lie" not in page.text


def test_words_of_a_stranger_are_not_markup(report):
    bad = replace(report.rows[1], label='<script>alert("x")</script>')
    page = Page(to_html(replace(report, rows=(report.rows[0], bad))))
    assert "script" not in {tag for tag, _ in page.tags}
    assert '<script>alert("x")</script>' in page.text


def test_percentiles_are_marked_where_they_lie(report):
    one = replace(report, settings={**report.settings, "shapes": ["1x16"]})
    marks = lines(latency_plots(one), "mark")
    medians = [(x, y2 - y1) for x, y1, _, y2 in marks]
    assert [height for _, height in medians] == [34, 17] * 3  # p50 whole, p90 half
    (base, _), _, (fast, _), _, (slow, _), _ = medians
    # On the logarithmic axis, distances are ratios: 1.99 times faster is farther than 1.16 times slower.
    ratio = (slow - base) / (base - fast)
    times = [row.cells[0].summary.p50_ms for row in report.rows[:3]]
    assert ratio == pytest.approx(math.log(times[2] / times[0]) / math.log(times[0] / times[1]), abs=0.01)


def test_the_shape_of_times_is_their_histogram(report):
    cell = report.rows[0].cells[0]
    rounds = [[1_000_000] * 75 + [10_000_000] * 25] * 2
    cell = replace(cell, rounds_ns=rounds, summary=summarize(rounds))
    drawn = latency_plots(replace(report, rows=(replace(report.rows[0], cells=(cell,)),)))
    (polygon,) = [attrs for tag, attrs in Page(drawn).tags if tag == "polygon"]
    points = [tuple(map(float, point.split(","))) for point in polygon["points"].split()]
    heights = {round(1 - y, 3) for _, y in points}
    assert heights == {0.0, 1.0, 0.333}


def test_throughput_is_drawn_for_lengths_with_several_batches(report):
    assert batch_plots(report) == ""  # 1x16 and 8x128 share no length
    rows = []
    for row in report.rows[:2]:
        small, large = row.cells
        rows.append(replace(row, cells=(replace(small, shape="1x128"), large)))
    drawn = batch_plots(replace(report, rows=tuple(rows), settings={**report.settings, "shapes": ["1x128", "8x128"]}))
    assert "Rows of 128 steps" in drawn
    places = dots(drawn)
    assert [kind for kind, _, _ in places] == ["c0", "c0", "c1", "c1"]
    rates = [cell.rows_per_s for row in report.rows[:2] for cell in row.cells]
    heights = [100 - y for _, _, y in places]
    assert [h / heights[0] for h in heights] == pytest.approx([r / rates[0] for r in rates], rel=1e-3)
    assert len(lines(drawn, "curve")) == 2


def test_the_roofline_meets_where_the_peak_is_the_bandwidth(report):
    drawn = roofline_plot(report)
    roofs = lines(drawn, "roof")
    level, slopes = roofs[:2], roofs[2:]
    assert all(y1 == y2 and x2 == 100 for _, y1, x2, y2 in level)
    assert len(slopes) == 2
    top = min(y for _, y, _, _ in level)
    assert all(y2 == pytest.approx(top, abs=0.02) for _, _, _, y2 in slopes)  # up to the highest peak
    inclines = [(y1 - y2) / (x2 - x1) for x1, y1, x2, y2 in slopes]
    assert inclines[0] == pytest.approx(inclines[1], rel=1e-2)  # every bandwidth has the same slope
    assert len(dots(drawn)) == 6


def test_no_dot_lies_above_a_roof_that_holds(report):
    drawn = roofline_plot(report)
    fp32 = next(y for _, y, _, _ in lines(drawn, "roof")[:1])
    assert all(y > fp32 for kind, _, y in dots(drawn) if kind in ("c0", "c2"))


def test_words_at_two_near_roofs_do_not_overlap(report):
    """Their places on paper, where a plot is lowest: at least the height of a line apart."""
    first, second = report.roofline.peaks
    near = replace(second, runs=tuple(replace(run, work=round(run.work * 1.02)) for run in first.runs))
    drawn = roofline_plot(replace(report, roofline=replace(report.roofline, peaks=(first, near))))
    words = [attrs for tag, attrs in Page(drawn).tags if tag == "text" and attrs["text-anchor"] == "end"]
    places = [float(w["y"].rstrip("%")) * 2.56 + float(w["dy"]) for w in words if w["x"] == "100.00%"]
    assert len(places) == 2
    assert abs(places[0] - places[1]) >= 12.9


def test_settings_are_words(report):
    limits = {"slower": 0.05, "min_cosine": 0.98}
    page = Page(to_html(replace(report, settings={**report.settings, "limits": limits})))
    assert "limits: slower 0.05, min cosine 0.98" in page.text
    assert "shapes: 1x16, 8x128" in page.text
