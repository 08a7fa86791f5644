"""Line charts as SVG, one below another: for reports, without a plotting package.

Colours are those of Okabe and Ito (2008), which readers with any kind of colour vision can tell apart; every line is
named at its end too, so that colour is not needed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from feeder.shards.storage import staged_file

_WIDTH, _HEIGHT = 720, 300  # of a chart (pixels)
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 40, 50  # margins: numbers, names of lines, title, names of the x axis
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_NAME_HEIGHT = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: written at its end.
        values: one for each label of the x axis; None leaves a gap.
        dashed: for what is compared with.
    """

    name: str
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over labelled places.

    Attributes:
        title, x_name: written above and below.
        x_labels: of the places, from left to right.
        lines: at least one.
        logarithmic: the y axis; values of 0 and less are left out then.
    """

    title: str
    x_name: str
    x_labels: Sequence[str]
    lines: Sequence[Line]
    logarithmic: bool = False


def write_charts(path: Path, charts: Sequence[Chart]) -> None:
    """Write charts into one SVG file, which replaces one of that name."""
    with staged_file(path) as file:
        file.write(draw_charts(charts).encode())


def draw_charts(charts: Sequence[Chart]) -> str:
    """Return the SVG document."""
    height = _HEIGHT * len(charts)
    size = f'width="{_WIDTH}" height="{height}"'
    box = f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box}>', f'<rect {size} fill="white"/>']
    for number, chart in enumerate(charts):
        parts.append(f'<g transform="translate(0 {number * _HEIGHT})">')
        parts += _drawn(chart)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _drawn(chart: Chart) -> Iterator[str]:
    """Yield the elements of a chart: title, grid, then lines and their names."""
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    shown = [v for line in chart.lines for v in line.values if _is_shown(v, chart.logarithmic)]
    ticks = _ticks([v for v in shown if v is not None], chart.logarithmic)
    low, high = (_scaled(end, chart.logarithmic) for end in (ticks[0], ticks[-1]))

    def x(place: int) -> float:
        return _LEFT + inner_width * (place + 0.5) / len(chart.x_labels)

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - (_scaled(value, chart.logarithmic) - low) / (high - low))

    yield f'<text x="{_LEFT}" y="{_TOP - 16}" font-size="14">{escape(chart.title)}</text>'
    for tick in ticks:
        yield f'<path d="M{_LEFT} {y(tick):.1f}h{inner_width}" stroke="#dddddd"/>'
        yield f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for place, label in enumerate(chart.x_labels):
        yield f'<text x="{x(place):.1f}" y="{_TOP + inner_height + 18}" text-anchor="middle">{escape(label)}</text>'
    middle = _LEFT + inner_width / 2
    yield f'<text x="{middle:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(chart.x_name)}</text>'
    names = []
    for number, line in enumerate(chart.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(x(i), y(v)) for i, v in enumerate(line.values) if v is not None and _is_shown(v, chart.logarithmic)]
        if not points:
            continue
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        if not line.dashed:
            yield from (f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points)
        names.append((points[-1][1], line.name, colour))
    at = -math.inf
    for wanted, name, colour in sorted(names):  # names of lines that end at one height stand below each other
        at = max(wanted, at + _NAME_HEIGHT)
        yield f'<text x="{_WIDTH - _RIGHT + 6}" y="{at + 4:.1f}" fill="{colour}">{escape(name)}</text>'


def _is_shown(value: float | None, logarithmic: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not logarithmic)


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _ticks(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Return round numbers, ascending, at least two, that enclose all values."""
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        decades = [10.0**e for e in range(first, max(last, first + 1) + 1)]
        if len(decades) > 3:
            return decades
        finer = [round(m * decade, 15) for decade in decades for m in (1, 2, 5)]
        start = max(i for i, tick in enumerate(finer) if tick <= low * (1 + 1e-9))
        end = min(i for i, tick in enumerate(finer) if tick >= high * (1 - 1e-9))
        return finer[start : max(end, start + 1) + 1]
    low = min(low, 0.0)
    step = 10.0 ** math.floor(math.log10((high - low) or 1.0))
    step /= 1 if (high - low) / step > 4 else 2 if (high - low) / step > 2 else 5
    count = max(1, math.ceil((high - low) / step - 1e-9))
    return [round(math.floor(low / step) * step + i * step, 12) for i in range(count + 1)]
