"""The picture of `iolane bench lanes`: how often each disk has the guest left for a request, and its rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

ROW, BAR, TOP = 44, 20, 92
LABEL_X, LEFT_X, LEFT_WIDTH, RIGHT_X, RIGHT_WIDTH = 24, 236, 300, 600, 220
WIDTH = RIGHT_X + RIGHT_WIDTH + 80
INK, FAINT = "#1f2430", "#8a90a0"
WAITING, TO_QEMU, OTHER = "#c9ced8", "#d1495b", "#edae49"
LANES = {"emulated": "#30638e", "paravirtual": "#00798c", "passthrough": "#3d7a3d"}
LEGEND = ((WAITING, "waiting for the interrupt"), (TO_QEMU, "a register QEMU handles"), (OTHER, "other"))


@dataclass(frozen=True)
class Row:
    """One disk. The counts are for one request."""

    name: str
    lane: str
    detail: str
    waiting: float
    to_qemu: float
    other: float
    rate: float
    """Requests a second."""

    @property
    def exits(self) -> float:
        """All of them."""
        return self.waiting + self.to_qemu + self.other


def draw(rows: Sequence[Row], title: str) -> str:
    """An SVG document, readable on light and on dark."""
    height = TOP + ROW * len(rows) + 24
    most = max((row.exits for row in rows), default=0.0) or 1.0
    fastest = max((row.rate for row in rows), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        _box(0, 0, WIDTH, height, "#ffffff"),
        _text(LABEL_X, 30, title, size=16, weight="bold"),
        _text(LEFT_X, 58, "the guest's processor is left, times a request"),
        _text(RIGHT_X, 58, "requests a second, the fastest is 1"),
        *_legend(),
    ]
    for number, row in enumerate(rows):
        parts += _row(TOP + ROW * number, row, most, fastest)
    return "\n".join([*parts, "</svg>\n"])


def _legend() -> list[str]:
    parts, x = [], LEFT_X
    for colour, words in LEGEND:
        parts += [_box(x, 66, 10, 10, colour), _text(x + 14, 75, words, size=10, colour=FAINT)]
        x += 26 + 5 * len(words)
    return parts


def _row(y: int, row: Row, most: float, fastest: float) -> list[str]:
    middle = y + BAR - 6
    parts = [
        _box(LABEL_X - 10, y, 4, BAR + 10, LANES.get(row.lane, INK)),
        _text(LABEL_X, middle, row.name, weight="bold"),
        _text(LABEL_X, middle + 14, f"{row.lane}, {row.detail}", size=10, colour=FAINT),
    ]
    x = float(LEFT_X)
    for count, colour in ((row.waiting, WAITING), (row.to_qemu, TO_QEMU), (row.other, OTHER)):
        width = max(0.0, count) / most * LEFT_WIDTH
        parts.append(_box(x, y, width, BAR, colour))
        x += width
    parts.append(_text(x + 6, middle, f"{row.exits:.1f}"))
    width = row.rate / fastest * RIGHT_WIDTH
    parts.append(_box(RIGHT_X, y, width, BAR, LANES.get(row.lane, INK)))
    parts.append(_text(RIGHT_X + width + 6, middle, f"{row.rate / fastest:.2f}"))
    return parts


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _text(
    x: float, y: float, words: str, *, size: int = 13, weight: str = "normal", colour: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
