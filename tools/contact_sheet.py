"""A batch as one picture: its images in rows, with captions under them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from feeder.shards.storage import staged_file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SHEET_WIDTH = 1920  # pixels: fits a screen; a sheet is wider only if one sample is
_SMALLEST, _LARGEST = 112, 320  # pixels: smaller images are enlarged to have legible captions, larger ones reduced
_GAP = 8  # pixels between tiles
_TEXT_SIZE, _LINE = 12, 16  # pixels
_TITLE_SIZE, _TITLE_LINE = 16, 22
_PAPER, _INK, _FAINT, _ALARM = (255, 255, 255), (20, 20, 20), (110, 110, 110), (200, 30, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One sample on a sheet.

    Attributes:
        views: V of (H, W, 3) uint8; drawn side by side, all of them in the size of the first.
        captions: lines under the views, cut to their width; the first is the darkest.
        mark: why the sample does not count, such as "padding"; crosses the tile out. None for samples that count.
    """

    views: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    captions: Sequence[str]
    mark: str | None = None


def draw_sheet(title: Sequence[str], tiles: Sequence[Tile]) -> Image.Image:
    """Return the sheet, mode RGB.

    All tiles have equally many views and captions; there is at least one tile.
    """
    count, (height, width, _) = len(tiles[0].views), tiles[0].views[0].shape
    height, width = _shown_size(height, width)
    block_width = count * width + (count - 1) * 2
    block_height = height + 4 + _LINE * len(tiles[0].captions)
    columns = _columns(len(tiles), block_width + _GAP, block_height + _GAP)
    rows = math.ceil(len(tiles) / columns)
    top = _GAP + _TITLE_LINE * len(title) + _GAP
    sheet_width = max(_GAP + columns * (block_width + _GAP), 480)
    sheet = Image.new("RGB", (sheet_width, top + rows * (block_height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, text in enumerate(title):
        _write(draw, (_GAP, _GAP + line * _TITLE_LINE), text, _font(_TITLE_SIZE), _INK, sheet_width - 2 * _GAP)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (block_width + _GAP), top + row * (block_height + _GAP)
        for view, pixels in enumerate(tile.views):
            sheet.paste(_shown(pixels, width, height), (x + view * (width + 2), y))
        if tile.mark is not None:
            _cross_out(draw, (x, y, x + block_width - 1, y + height - 1), tile.mark)
        for line, text in enumerate(tile.captions):
            ink = _FAINT if line else _INK
            _write(draw, (x, y + height + 3 + line * _LINE), text, _font(_TEXT_SIZE), ink, block_width)
    return sheet


def save_sheet(sheet: Image.Image, output: Path) -> None:
    """Write a sheet as a PNG file, which replaces one of that name."""
    with staged_file(output) as file:
        sheet.save(file, "PNG", compress_level=3)  # takes half the time of the default


def _shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the size at which images are drawn: enlarged by a whole factor, as they are, or reduced."""
    if width < _SMALLEST:
        times = math.ceil(_SMALLEST / width)
        return height * times, width * times
    factor = min(1.0, _LARGEST / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shown(pixels: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size == (width, height):
        return image
    enlarged = width > image.width
    return image.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _columns(tiles: int, width: int, height: int) -> int:
    """Return how many columns make a sheet a third wider than high, within the width of a sheet."""
    wanted = math.ceil(math.sqrt(tiles * height / width * 4 / 3))
    return max(1, min(wanted, tiles, (_SHEET_WIDTH - _GAP) // width))


def _cross_out(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], mark: str) -> None:
    left, top, right, bottom = box
    draw.rectangle(box, outline=_ALARM, width=2)
    draw.line((left, top, right, bottom), fill=_ALARM, width=2)
    draw.line((left, bottom, right, top), fill=_ALARM, width=2)
    draw.rectangle((left, top, right, top + _LINE + 2), fill=_ALARM)
    _write(draw, (left + 4, top + 2), mark, _font(_TEXT_SIZE), _PAPER, right - left - 8)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Font, ink: tuple[int, int, int], width: int
) -> None:
    """Write text, its middle left out if it is wider than ``width``: the ends of a key tell more than its middle."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # all that the bitmap font has
    cut, kept = text, len(text)
    while kept > 1 and font.getlength(cut) > width:
        kept -= 1
        head = kept // 3
        cut = f"{text[:head]}...{text[len(text) - (kept - head) :]}"
    draw.text(at, cut, fill=ink, font=font)


@lru_cache(maxsize=4)  # making one takes a millisecond, and a sheet writes hundreds of lines
def _font(size: int) -> Font:
    """Return Pillow's own font; the small bitmap one where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except ImportError:
        return ImageFont.load_default()
