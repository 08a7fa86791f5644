"""The contact sheet as a picture."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from feeder.tools import contact_sheet
from feeder.tools.contact_sheet import Tile, draw_sheet


def tile(shape: tuple[int, int, int] = (1, 128, 128), *, value: int = 40, mark: str | None = None) -> Tile:
    """Return a grey tile with two captions; ``shape`` is (V, H, W)."""
    return Tile(views=np.full((*shape, 3), value, np.uint8), captions=("a/key", "class (3)"), mark=mark)


def has_block(sheet: Image.Image, pixels: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Return whether ``pixels`` stand somewhere on the sheet, exactly."""
    canvas, (height, width) = np.asarray(sheet), pixels.shape[:2]
    rows, columns = np.nonzero((canvas == pixels[0, 0]).all(-1))
    return any(
        np.array_equal(canvas[y : y + height, x : x + width], pixels) for y, x in zip(rows, columns, strict=True)
    )


def test_images_of_usual_sizes_are_shown_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 150, 120, 3), dtype=np.uint8)
    sheet = draw_sheet(["title"], [Tile(views=pixels, captions=("key", "label"))])
    assert sheet.mode == "RGB"
    assert all(has_block(sheet, view) for view in pixels)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    sheet = draw_sheet(["title"], [Tile(views=pixels, captions=("key",))])
    assert has_block(sheet, pixels[0].repeat(4, axis=0).repeat(4, axis=1))


def test_large_images_are_reduced() -> None:
    sheet = draw_sheet(["title"], [tile((1, 1000, 500)), tile((1, 1000, 500))])
    assert sheet.height < 450
    assert sheet.width < 500


@pytest.mark.parametrize(("count", "views"), [(1, 1), (5, 1), (64, 1), (300, 1), (7, 4), (2, 20)])
def test_sheets_have_room_for_every_tile(count: int, views: int) -> None:
    sheet = draw_sheet(["one line", "another"], [tile((views, 128, 128)) for _ in range(count)])
    shown = (np.asarray(sheet) == 40).all(-1).sum()
    assert shown >= count * views * 128 * 128
    assert sheet.width <= max(1920, views * 130 + 20)


def test_marked_tiles_are_crossed_out() -> None:
    sheet = np.asarray(draw_sheet(["title"], [tile(value=0), tile(value=0, mark="padding")]))
    red = (sheet == (200, 30, 30)).all(-1)
    assert red.any()
    assert not red[:, : sheet.shape[1] // 4].any()  # the first tile has none


@pytest.mark.parametrize("text", ["", "日本語", "é" * 500, "a\nb", "\U0001f600", "\u202e reversed", "\x00"])
def test_no_text_breaks_a_sheet(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views = np.zeros((1, 16, 16, 3), np.uint8)
    draw_sheet([text], [Tile(views=views, captions=(text, text), mark=text)])
    monkeypatch.setattr(contact_sheet, "_font", lambda size: ImageFont.load_default_imagefont())  # without FreeType
    draw_sheet([text], [Tile(views=views, captions=(text, text), mark=text)])


def test_long_captions_are_cut_to_the_tile() -> None:
    long = Tile(views=np.zeros((1, 128, 128, 3), np.uint8), captions=("x" * 400, "y" * 400))
    sheet = np.asarray(draw_sheet(["t"], [long]))
    assert (sheet[60:, 140:] == 255).all()  # nothing is written beside the tile
