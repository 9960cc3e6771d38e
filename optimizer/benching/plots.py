"""What a report of ``bench`` draws: how its times lie, how throughput grows with the batch, and the roofline."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.benching.comparison import Comparison
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.roofline import Roofline
from optimizer.benching.shape import shape_text
from optimizer.benching.stats import brief
from optimizer.drawing.page import escape
from optimizer.drawing.svg import Axis, circle, frame, key, laid_out, line, linear, log, text

__all__ = ["batch_plots", "change_plot", "color_of", "latency_plots", "roof_names", "roofline_plot"]

#: Colours there are; candidates beyond them take the first again, and are told apart by their numbers.
_COLORS = 8
#: Pixels of a candidate's words, of the shape of its times below them, and of both with the room around them.
_WORDS, _SHAPE, _LANE = 34, 34, 78
#: Pixels of the height of a plot on paper, where it is lowest, and of a line of words.
_PLOT, _LINE = 256, 13
#: Pixels of a line of a comparison.
_CHANGE = 34
#: Bins of the shape of a candidate's times, over all the times at a shape.
_BINS = 90


def color_of(number: int) -> str:
    """The class of the candidate with this number, in every drawing and table."""
    return f"c{number % _COLORS}"


def latency_plots(report: BenchReport) -> str:
    """One drawing a shape: for each candidate how its times lie, and where p50, p90 and p99 are.

    All candidates share a logarithmic axis, on which equal ratios are equal distances: a shape that is as wide as
    another spreads by the same factor. Its height is the share of calls in a bin over that of its fullest bin.
    """
    drawn = []
    for shape in report.shapes:
        lanes = [(n, row, cell) for n, row in enumerate(report.rows) for cell in row.cells if cell.shape == shape]
        if lanes:
            drawn.append(f"<h3>{escape(shape_text(shape))}</h3>{_lanes(lanes)}")
    return "\n".join(drawn)


def _lanes(lanes: Sequence[tuple[int, Row, Cell]]) -> str:
    times = [[ns / 1e6 for ns in itertools.chain(*cell.rounds_ns)] for _, _, cell in lanes]
    axis = log(min(map(min, times)), max(map(max, times)), room=1.03)
    tall = len(lanes) * _LANE
    parts = [f'<div class="lanes"><svg role="img" aria-label="times of every candidate" style="height:{tall}px">']
    for mark in axis.marks:
        parts += [line(axis.at(mark), 0, axis.at(mark), 100, "grid")]
        parts += [text(axis.at(mark), 100, f"{mark:,g}", "middle", dy=18)]
    for place, ((number, row, cell), every) in enumerate(zip(lanes, times, strict=True)):
        parts.append(_lane(place, number, row, cell, every, axis))
    parts.append(text(50, 100, f"milliseconds a {'pass' if lanes[0][2].workload else 'call'}", "middle", dy=38))
    return "".join([*parts, "</svg></div>"])


def _lane(place: int, number: int, row: Row, cell: Cell, times: Sequence[float], axis: Axis) -> str:
    top = place * _LANE
    marked = {"p50": cell.summary.p50_ms, **cell.summary.percentiles_ms}
    said = ", ".join(f"{name} {brief(value)}" for name, value in marked.items())
    kind = color_of(number)
    parts = [
        f'<text class="{kind}" x="0" y="{top + 13}"><tspan class="bold">{number} {escape(row.label)}</tspan></text>',
        f'<text x="0" y="{top + 28}">{said}</text>',
        # The shape has a coordinate system of its own, as a polygon takes no percentages.
        f'<svg x="0" y="{top + _WORDS}" width="100%" height="{_SHAPE}" viewBox="0 0 {_BINS} 1" '
        f'preserveAspectRatio="none"><polygon class="{kind}" points="{_outline(times, axis)}"/></svg>',
    ]
    for name, value in marked.items():
        x, low = axis.at(value), top + _WORDS + _SHAPE
        height = _SHAPE if name == "p50" else _SHAPE // 2
        parts.append(f'<line class="mark {kind}" x1="{x:.2f}%" y1="{low - height}" x2="{x:.2f}%" y2="{low}"/>')
    return "".join(parts)


def _outline(times: Sequence[float], axis: Axis) -> str:
    """A histogram's steps as the points of a polygon, ``_BINS`` wide and 1 high, from below."""
    counts = [0] * _BINS
    for each in times:
        counts[min(_BINS - 1, int(axis.at(each) / 100 * _BINS))] += 1
    points = ["0,1"]
    for place, count in enumerate(counts):
        height = 1 - count / max(counts)
        points += [f"{place},{height:.3f}", f"{place + 1},{height:.3f}"]
    return " ".join([*points, f"{_BINS},1"])


def batch_plots(report: BenchReport) -> str:
    """Rows a second against rows in a call, one drawing for each length that was timed with several batches."""
    lengths: dict[str, set[int]] = {}
    for cell in (cell for row in report.rows for cell in row.cells if not cell.workload):
        lengths.setdefault(_length(cell), set()).add(cell.batch)
    drawn = []
    for length, batches in lengths.items():
        if len(batches) > 1:
            title = f"<h3>Rows of {escape(length)} steps</h3>" if length else ""
            drawn.append(title + _batches(report, length, sorted(batches)))
    return "\n".join(drawn)


def _length(cell: Cell) -> str:
    """The steps of a row: ``128`` of ``8x128``, nothing of ``8``."""
    return cell.shape.partition("x")[2]


def _batches(report: BenchReport, length: str, batches: Sequence[int]) -> str:
    curves = {
        number: [(cell.batch, cell.rows_per_s) for cell in row.cells if not cell.workload and _length(cell) == length]
        for number, row in enumerate(report.rows)
    }
    curves = {number: sorted(curve) for number, curve in curves.items() if curve}
    x = log(batches[0], batches[-1], room=1.15)
    x = Axis(x.low, x.high, tuple(batches), is_log=True)
    y = linear(0.0, 1.04 * max(rate for curve in curves.values() for _, rate in curve))
    parts = ['<div class="plot"><svg role="img" aria-label="throughput against batch">']
    parts += frame(x, y, "rows in a call", "rows/s")
    places = {number: [(x.at(batch), 100 - y.at(rate)) for batch, rate in curve] for number, curve in curves.items()}
    for number, curve in places.items():
        for one, two in itertools.pairwise(curve):
            parts.append(line(*one, *two, f"curve {color_of(number)}"))
        parts += [circle(*place, color_of(number)) for place in curve]
    parts += _numbered([(number, *curve[-1]) for number, curve in places.items()])
    return "".join([*parts, "</svg></div>"]) + _key(report, places)


def change_plot(report: Comparison) -> str:
    """Every change with its interval on one axis, 0 and the tolerance drawn; numbered as in the table below it."""
    known = [(n, change) for n, change in enumerate(report.changes) if change.low is not None]
    limits = [0.0] if report.tolerance is None else [0.0, 100 * report.tolerance]
    ends = [100 * end for _, change in known for end in (change.low, change.high) if end is not None]
    if not known:
        return ""
    x = linear(min(*ends, *limits) - 1, max(*ends, *limits) + 1)
    tall = _CHANGE * len(known)
    parts = [f'<div class="lanes"><svg role="img" aria-label="changes" style="height:{tall}px">']
    for mark in x.marks:
        parts += [line(x.at(mark), 0, x.at(mark), 100, "grid"), text(x.at(mark), 100, f"{mark:+g} %", "middle", dy=18)]
    parts.append(line(x.at(0.0), 0, x.at(0.0), 100, "axis"))
    if report.tolerance is not None:
        parts.append(line(x.at(limits[1]), 0, x.at(limits[1]), 100, "budget"))
        parts.append(text(x.at(limits[1]), 0, "allowed", "start", dx=4, dy=10, kind="budget"))
    for place, (number, change) in enumerate(known):
        up = 100 * (place + 0.5) / len(known)
        low, middle, high = (x.at(100 * end) for end in (change.low or 0.0, change.value, change.high or 0.0))
        parts += [line(low, up, high, up, "bound"), circle(middle, up, color_of(number))]
        parts.append(text(middle, up, str(number), "middle", dy=-9, kind=color_of(number)))
    parts.append(text(50, 100, "time a call, in percent of what it was", "middle", dy=38))
    return "".join([*parts, "</svg></div>"])


@dataclass(frozen=True)
class _Dot:
    """A cell under the roofs: its candidate's number, operations a byte, and 10⁹ operations a second."""

    number: int
    intensity: float
    gflops: float


def roofline_plot(report: BenchReport) -> str:
    """Every call whose operations and bytes are known, under the roofs that were measured in the same run.

    Both axes are logarithmic (Williams, Waterman and Patterson, 2009): a bandwidth is a slope, a peak is level.
    """
    dots = [
        _Dot(number, cell.position.intensity, cell.position.gflops)
        for number, row in enumerate(report.rows)
        for cell in row.cells
        if cell.position is not None and cell.position.intensity and cell.position.gflops > 0
    ]
    roofs = report.roofline
    if roofs is None or not dots or not any(peak.gflops for peak in roofs.peaks):
        return ""
    peaks = [peak.gflops for peak in roofs.peaks if peak.gflops]
    slopes = [rate for _, _, rate in _slopes(roofs)]
    ridges = [max(peaks) / rate for rate in slopes]
    x = log(*_range([dot.intensity for dot in dots] + ridges), room=1.6)
    y = log(*_range([dot.gflops for dot in dots] + peaks), room=1.6)
    parts = ['<div class="plot"><svg role="img" aria-label="roofline">']
    parts += frame(x, y, "operations a byte that has to be moved", "GFLOP/s")
    parts += _level_roofs(roofs, slopes, x, y)
    parts += _sloping_roofs(slopes, max(peaks), x, y)
    places = [(dot.number, x.at(dot.intensity), 100 - y.at(dot.gflops)) for dot in dots]
    parts += [circle(across, up, color_of(number)) for number, across, up in places]
    parts += _numbered(places)
    return "".join([*parts, "</svg></div>"]) + _key(report, {dot.number: () for dot in dots})


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def roof_names(roofs: Roofline) -> list[str]:
    """Every line of the plot in words."""
    level = [f"{p.arithmetic} on {p.provider}: {p.gflops:,.0f} GFLOP/s" for p in roofs.peaks if p.gflops]
    return level + [f"copy of {size} MiB on {device}: {rate:.3g} GB/s" for device, size, rate in _slopes(roofs)]


def _slopes(roofs: Roofline) -> list[tuple[str, int, float]]:
    """Device, MiB and GB/s of each device's smallest and largest working set."""
    return [
        (bandwidth.device, run.size, run.rate)
        for bandwidth in roofs.bandwidths
        for run in {run.size: run for run in (*bandwidth.runs[:1], *bandwidth.runs[-1:])}.values()
    ]


def _level_roofs(roofs: Roofline, slopes: Sequence[float], x: Axis, y: Axis) -> list[str]:
    """Each peak, from where the fastest memory reaches it, the highest first: words that would overlap move down."""
    parts = []
    known = [(peak.gflops, f"{peak.arithmetic} on {peak.provider}") for peak in roofs.peaks if peak.gflops]
    words_at = float(-_LINE)
    for gflops, said in sorted(known, reverse=True):
        begin = max(x.low, gflops / max(slopes)) if slopes else x.low
        up = 100 - y.at(gflops)
        pixels = up * _PLOT / 100
        above = pixels - 5
        words_at = above if above >= words_at + _LINE else max(pixels + _LINE, words_at + _LINE)
        parts.append(line(x.at(min(begin, x.high)), up, 100, up, "roof"))
        parts.append(text(100, up, f"{said}: {gflops:,.0f}", "end", dx=-2, dy=words_at - pixels))
    return parts


def _sloping_roofs(slopes: Sequence[float], peak: float, x: Axis, y: Axis) -> list[str]:
    """Each bandwidth, up to the highest peak; what is below or left of the drawing is cut off."""
    parts = []
    for rate in slopes:
        begin, end = max(x.low, y.low / rate), min(x.high, peak / rate)
        if begin >= end:
            continue
        parts.append(line(x.at(begin), 100 - y.at(begin * rate), x.at(end), 100 - y.at(end * rate), "roof"))
        middle = begin * (end / begin) ** 0.3
        parts.append(text(x.at(middle), 100 - y.at(middle * rate), f"{rate:.3g} GB/s", "start", dx=6, dy=12))
    return parts


def _numbered(places: Sequence[tuple[int, float, float]]) -> list[str]:
    """The numbers of candidates beside their dots."""
    beside = laid_out([(x, y) for _, x, y in places])
    return [
        text(x, y, str(number), "middle", dx=dx, dy=dy + 4, kind=color_of(number))
        for (number, x, y), (dx, dy) in zip(places, beside, strict=True)
    ]


def _key(report: BenchReport, numbers: Mapping[int, object]) -> str:
    return key([(number, report.rows[number].label, color_of(number)) for number in numbers])
