"""Charts as SVG text: curves over updates with a linear or logarithmic axis, and a time line of events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

BINS = 1000
"""A curve with more than two points per bin is drawn as the smallest and the largest value of each bin."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 260, 74, 16, 12, 40
_LANE = 14
_MAX_PARTS = 200  # a curve that goes back more often is drawn in order of the updates
_FAR = 1000.0  # times below the highest rate are first updates that measure or warm up
_SPIKE = 20  # a largest value this many times the median makes the axis logarithmic

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart: points (update, value), updates ascending; a value that is not finite is left out.

    `style` are the CSS classes of the line, for colour, width and dashes. A `step` holds until the next point, else
    points are joined, or with `dots` single. `sets_axis=False` is for proposals far out of bounds.
    """

    label: str
    points: Sequence[Point]
    style: str
    step: bool = False
    dots: bool = False
    sets_axis: bool = True


def decimate(points: Sequence[Point], bins: int = BINS) -> list[Point]:
    """The smallest and largest value of every bin, so that no spike is lost, plus the first and the last point.

    Points ascend in the first coordinate; at most 2 * bins stay as they are, of more at most 2 * bins + 2 are left.
    """
    if len(points) <= 2 * bins:
        return list(points)
    low, width = points[0][0], max(points[-1][0] - points[0][0], 1e-9)
    kept: list[int] = [0]
    start = 0
    for index in range(1, len(points) + 1):
        ended = index == len(points) or _bin(points[index][0], low, width, bins) != _bin(
            points[start][0], low, width, bins
        )
        if ended:
            part = range(start, index)
            kept += sorted({min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])})
            start = index
    kept.append(len(points) - 1)
    return [points[i] for i in sorted(set(kept))]


def _bin(x: float, low: float, width: float, bins: int) -> int:
    return min(bins - 1, int((x - low) / width * bins))


def split(points: Iterable[Point]) -> list[list[Point]]:
    """Parts that ascend: a curve that goes back, as after a rollback, starts a new part."""
    parts: list[list[Point]] = []
    for point in points:
        if not parts or point[0] <= parts[-1][-1][0]:
            parts.append([])
        parts[-1].append(point)
    return parts


# --- axes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The vertical axis from `low` at the bottom to `high` at the top, linear or logarithmic."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Vertical position of a value, that of the nearest edge for one outside."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        """About five round values."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, 5)


def loss_axis(curves: Sequence[Curve]) -> Axis:
    """Linear, or logarithmic where spikes would flatten all else."""
    values = sorted(y for curve in curves for _, y in curve.points if math.isfinite(y)) or [0.0, 1.0]
    log = values[0] > 0 and values[-1] > _SPIKE * values[len(values) // 2]
    return _log_axis(values[0], values[-1]) if log else _padded(min(values[0], 0.0), values[-1])


def rate_axis(curves: Sequence[Curve]) -> Axis:
    """Logarithmic over what was applied and bounded; proposals get a third of it at most on either side.

    First updates far below all later ones, such as those that only measure, do not stretch it.
    """
    kept = [y for curve in curves if curve.sets_axis for y in _without_first(_drawn(curve))]
    wild = [y for curve in curves if not curve.sets_axis for y in _drawn(curve)]
    kept = kept or wild or [1e-4]
    low, high = min(kept), max(kept)
    room = max(0.5 * math.log10(high / low), 0.05)
    return _log_axis(max(min([low, *wild]), low / 10**room, 5e-324), min(max([high, *wild]), high * 10**room))


def _drawn(curve: Curve) -> list[float]:
    return [y for _, y in curve.points if math.isfinite(y) and y > 0]


def _without_first(values: list[float]) -> list[float]:
    floor = max(values, default=0.0) / _FAR
    return values[next((i for i, value in enumerate(values) if value > floor), 0) :]


def _log_axis(low: float, high: float) -> Axis:
    room = max(0.04 * math.log10(high / low), 0.02)
    return Axis(max(low / 10**room, 5e-324), min(high * 10**room, 1e308), True)


def _padded(low: float, high: float) -> Axis:
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return Axis(low - (room if low < 0 else 0), high + room, False)


def _ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    if not (math.isfinite(raw) and raw > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next((u for u in (1, 2, 5, 10) if raw <= u * power * 1.0001), 10) * power
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [n * unit for n in range(first, last + 1)] if last - first < 50 else [low, high]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // 6))
    powers = range(first, last + 1, stride)
    for units in ((1,), (1, 2, 5), tuple(range(1, 10))):
        found = [u * 10.0**p for p in powers for u in units if low <= u * 10.0**p <= high]
        if len(found) >= 3 or stride > 1:
            return found
    return _ticks(low, high, 4)


# --- drawing ---------------------------------------------------------------------------------------------------------


def chart(title: str, unit: str, curves: Sequence[Curve], axis: Axis, last: int) -> str:
    """An `<svg>` of curves over updates 0 ... last, later ones on top, with the vertical axis's name in `unit`.

    The title is read aloud instead of the picture.
    """
    drawn = [_curve(curve, axis, last) for curve in curves]
    spoken = f"{title}. " + " ".join(_spoken(curve) for curve in curves)
    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
        for value in axis.ticks()
        for y in [axis.at(value)]
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    side = f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>'
    return _svg(spoken, _HEIGHT, grid + side + _across(last, _HEIGHT - _BOTTOM) + "".join(drawn))


def timeline(title: str, lanes: Sequence[tuple[str, Sequence[int]]], last: int) -> str:
    """An `<svg>` with one lane per kind of event, and the number of events; neighbours that would touch are one mark.

    Lanes are (name, updates in ascending order); the title is read aloud instead of the picture.
    """
    left = _LEFT
    parts = []
    for index, (name, steps) in enumerate(lanes):
        y = 22 + index * (_LANE + 16)
        parts.append(f'<text x="{left}" y="{y - 5}">{escape(name)} ({len(steps):,})</text>')
        parts.append(f'<path class="grid" d="M{left} {y + _LANE / 2:.1f}H{_WIDTH - _RIGHT}"/>')
        for first, end, count in _marks(steps, last):
            x, right = _x(first, last) - 1.5, _x(end, last) + 1.5
            at = f"update {first:,}" if count == 1 else f"{count:,} times, updates {first:,} to {end:,}"
            parts.append(
                f'<rect class="mark m{index % 8}" x="{x:.1f}" y="{y}" width="{right - x:.1f}" height="{_LANE}">'
                f"<title>{escape(name)}: {at}</title></rect>"
            )
    height = 22 + len(lanes) * (_LANE + 16) + _BOTTOM - 12
    spoken = f"{title}. " + " ".join(f"{name}: {len(steps)}." for name, steps in lanes)
    return _svg(spoken, height, "".join(parts) + _across(last, height - _BOTTOM))


def outside(curve: Curve, axis: Axis) -> int:
    """Number of points that a chart shows at its edge or not at all."""
    return sum(not (math.isfinite(y) and axis.low <= y <= axis.high) for _, y in curve.points)


def short(value: float, digits: int = 4) -> str:
    """A number for an axis or a sentence: 0.02, 1e-4, 3.5."""
    written = f"{value:.{digits}g}"
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
        head, _, power = f"{value:.{digits - 1}e}".partition("e")
        written = f"{head.rstrip('0').rstrip('.')}e{int(power)}"
    return written


def _curve(curve: Curve, axis: Axis, last: int) -> str:
    points = [p for p in curve.points if math.isfinite(p[1]) and not (axis.log and p[1] <= 0)]
    ascending = split(points)
    if len(ascending) > _MAX_PARTS:
        ascending = [sorted(points)]
    total = max(1, len(points))
    thinned = [decimate(part, max(1, BINS * len(part) // total)) for part in ascending]
    parts = [[(_x(x, last), axis.at(y)) for x, y in part] for part in thinned]
    if curve.dots or max(map(len, parts), default=0) == 1:
        circles = "".join(f"M{x:.1f} {y:.1f}h0" for part in parts for x, y in part)
        return f'<path class="curve dots {curve.style}" d="{circles}"/>' if circles else ""
    path = ""
    for part in parts:
        path += f"M{part[0][0]:.1f} {part[0][1]:.1f}"
        for x, y in part[1:]:
            path += f"H{x:.1f}V{y:.1f}" if curve.step else f"L{x:.1f} {y:.1f}"
    return f'<path class="curve {curve.style}" d="{path}"/>' if path else ""


def _spoken(curve: Curve) -> str:
    values = [y for _, y in curve.points if math.isfinite(y)]
    if not values:
        return f"{curve.label}: no values."
    first, last, low, high = (short(v) for v in (values[0], values[-1], min(values), max(values)))
    return f"{curve.label}: from {first} to {last}, smallest {low}, largest {high}."


def _marks(steps: Sequence[int], last: int) -> list[tuple[int, int, int]]:
    marks: list[tuple[int, int, int]] = []
    for step in steps:
        if marks and _x(step, last) - _x(marks[-1][1], last) < 3.5:
            marks[-1] = (marks[-1][0], step, marks[-1][2] + 1)
        else:
            marks.append((step, step, 1))
    return marks


def _across(last: int, y: float) -> str:
    found = [value for value in _ticks(0, last, 8) if value == int(value)]
    ticks = "".join(
        f'<path class="axis" d="M{x:.1f} {y:.1f}v5"/>'
        f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{value:,.0f}</text>'
        for value in found
        for x in [_x(value, last)]
    )
    name = f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{y + 34:.1f}" text-anchor="middle">update</text>'
    return f'<path class="axis" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>{ticks}{name}'


def _x(step: float, last: int) -> float:
    return _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)


def _svg(spoken: str, height: float, inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(spoken)}">{inside}</svg>'
