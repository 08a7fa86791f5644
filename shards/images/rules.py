"""Image rules: which images a build takes, and how it scales, turns and converts them.

By default images pass byte for byte. The rules, in the order in which they are applied:

**Filters.** ``min_side`` is the least shorter side, ``max_side`` the greatest longer side, ``min_pixels`` the least
width × height, ``max_aspect`` the greatest longer side over shorter. They look at the image as it is in the source,
before it is scaled, and at the field ``image`` alone. What they leave out is listed with bad images, by its own causes
(`FILTERED`): it was asked for, so it neither stops a build nor counts towards the fraction that may be bad.

**Pass through.** An image that needs no change is not decoded and keeps its bytes: one within the size asked for is not
scaled, an upright one not turned, an RGB one not converted. ``quality`` is for images that are encoded anew anyway;
alone it would change nothing and is refused.

**Size.** Images only become smaller, in both directions by the same factor; the side that is not given is rounded to
the nearest pixel, halves up, and is at least 1.

============  ==============================================================
shorter=256   the shorter side becomes 256, where it was more
longer=512    the longer side becomes 512, where it was more
fit=640x480   the largest size with a width up to 640 and a height up to 480
============  ==============================================================

The size asked for holds even where the new bytes are more than the old, as happens when a strongly compressed image is
scaled a little. Width and height are those of the upright image with ``orientation="apply"``, else of the stored one.
The filter is Lanczos (a = 3). A JPEG at least four times as large is decoded at a half, a quarter or an eighth, but no
less than twice the final size: that changes pixels far less than JPEG itself does, and saves a third of the time.

**Orientation.** "keep": stored pixels, and a re-encoded image keeps an EXIF block that says the orientation alone.
"apply": pixels are turned upright, and a re-encoded image has no EXIF.

**Colour.** "keep": grey stays grey, CMYK stays CMYK; only a palette becomes RGB to be scaled. "rgb": all images get
three channels of 8 bits: grey, 1-bit, palette, CMYK and YCCK by Pillow's formula, 16-bit grey by its high byte, and
what is transparent is laid on white.

**Encoding.** The same bytes in every process; another release of Pillow, libjpeg or zlib may write others.

==================  ================================================================================
from                a re-encoded image is
==================  ================================================================================
JPEG                JPEG: ``quality`` (90), 4:2:0, baseline, standard Huffman tables
PNG                 PNG, with its transparency; 16-bit grey stays so, 16-bit colour becomes 8-bit
WebP                WebP: ``quality``, or lossless where it was; of an animation the first frame
GIF, BMP, TIFF,     PNG, which holds the same pixels in fewer bytes; of an animation the first frame
PPM
ICC profile         kept, unless the colour conversion made it wrong
other metadata      dropped: EXIF (but for the orientation, above), XMP, comments, thumbnails
==================  ================================================================================

**Other image fields** of a sample go by the rules, too, so that what had the size of ``image`` has it afterwards; one
that cannot be decoded makes the sample bad. JPEG fields are photographs and are treated like ``image``. All others may
be masks, whose values mean something: they are scaled by nearest neighbour, keep their mode, palette and depth, and
never change colours. Masks seldom have EXIF: one that says nothing and was as large as the stored ``image`` is turned
with it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from feeder.errors import ConfigError
from feeder.optional import load
from feeder.shards.errors import BadImageError
from feeder.shards.images.exif import UPRIGHT, orientation, swaps_sides
from feeder.shards.images.headers import MAX_PIXELS, ImageHeader, read_header

DEFAULT_QUALITY = 90  # at shorter=256 30 % fewer bytes than 95, which img2dataset takes, and 2 dB less PSNR
FILTERED = frozenset({"too small", "too long", "too narrow"})  # causes of images that were left out as asked for
_LARGEST = 2**31 - 1  # pixels a side: what an index holds

Size = tuple[int, int]  # (width, height)


@dataclasses.dataclass(frozen=True, slots=True)
class Resize:
    """How large images may be.

    Attributes:
        mode: "shorter", "longer" or "fit".
        width, height: pixels; for the first two, both are the side.
    """

    mode: str
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Resize":
        """Read ``shorter=256``, ``longer=512`` or ``fit=640x480``.

        Raises:
            ConfigError: the text is none of these.
        """
        match = re.fullmatch(r"(shorter|longer)=(\d{1,10})|(fit)=(\d{1,10})x(\d{1,10})", text)
        if match:
            width = int(match[2] or match[4])
            height = int(match[2] or match[5])
            if 1 <= width <= _LARGEST and 1 <= height <= _LARGEST:
                return cls(match[1] or match[3], width, height)
        raise ConfigError(f"resize is {text!r}, expected shorter=256, longer=512 or fit=640x480 (width x height)")

    def __str__(self) -> str:
        return f"fit={self.width}x{self.height}" if self.mode == "fit" else f"{self.mode}={self.width}"

    def size(self, width: int, height: int) -> Size:
        """Return the width and height (pixels) that an image of this size gets: its own where it is small enough."""
        if self.mode == "shorter":
            by_width = width <= height
        elif self.mode == "longer":
            by_width = width >= height
        else:
            by_width = width * self.height >= height * self.width  # the width is what is too large, if anything is
        if by_width:
            return (self.width, _scaled(height, self.width, width)) if width > self.width else (width, height)
        return (_scaled(width, self.height, height), self.height) if height > self.height else (width, height)


def _scaled(length: int, numerator: int, denominator: int) -> int:
    """Return length × numerator / denominator, rounded, halves up, in integers: the same on every machine."""
    return max(1, (2 * length * numerator + denominator) // (2 * denominator))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageRules:
    """What a build does to images; the module's text says what each rule means.

    Attributes:
        resize: the size that images may have, or None.
        quality: of JPEG and WebP, 1 to 100; None is `DEFAULT_QUALITY`.
        orientation: "keep" or "apply".
        colour: "keep" or "rgb".
        min_side, max_side: the least shorter and the greatest longer side (pixels), or None.
        min_pixels: the least width × height, or None.
        max_aspect: the greatest longer side over shorter side, or None.
    """

    resize: Resize | None = None
    quality: int | None = None
    orientation: str = "keep"
    colour: str = "keep"
    min_side: int | None = None
    max_side: int | None = None
    min_pixels: int | None = None
    max_aspect: float | None = None

    def __post_init__(self) -> None:
        if self.orientation not in ("keep", "apply"):
            raise ConfigError(f"orientation is {self.orientation!r}, expected 'keep' or 'apply'")
        if self.colour not in ("keep", "rgb"):
            raise ConfigError(f"colour is {self.colour!r}, expected 'keep' or 'rgb'")
        if self.quality is not None:
            if not 1 <= self.quality <= 100:
                raise ConfigError(f"quality is {self.quality}, expected an integer from 1 to 100")
            if not self.rewrites:
                raise ConfigError(
                    f"quality is {self.quality}, but nothing encodes images anew, and they pass byte for byte; give "
                    "resize, orientation 'apply' or colour 'rgb', too"
                )
        for name in ("min_side", "max_side", "min_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.max_aspect is not None and not 1 <= self.max_aspect < math.inf:
            raise ConfigError(f"max_aspect is {self.max_aspect}, expected a number of at least 1")
        if self.min_side is not None and self.max_side is not None and self.min_side > self.max_side:
            raise ConfigError(f"min_side is {self.min_side} and max_side {self.max_side}, which leaves no image")

    @property
    def rewrites(self) -> bool:
        """Whether some images may be encoded anew."""
        return self.resize is not None or self.orientation == "apply" or self.colour == "rgb"

    def settings(self) -> dict[str, Any] | None:
        """Return the rules for a manifest, as JSON types; None where there are none."""
        if self == ImageRules():
            return None
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["resize"] = str(self.resize) if self.resize else None
        if self.rewrites:
            settings["quality"] = self.quality or DEFAULT_QUALITY
        return settings


NO_RULES = ImageRules()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to become of one image.

    Attributes:
        size: the width and height that the stored image is scaled to, before it is turned (pixels).
        turn: the orientation that is applied; 1 for none.
        keep: the orientation that the new image says; 1 for none.
        rgb: make it RGB.
        nearest: scale by nearest neighbour and keep the mode; else by Lanczos.
        quality: of JPEG and WebP.
    """

    size: Size
    turn: int
    keep: int
    rgb: bool
    nearest: bool
    quality: int


class _Pixels(Protocol):
    """The part of `feeder.shards.images.pixels` that is used here; that module needs Pillow."""

    def rewrite(self, data: bytes, header: ImageHeader, change: Change) -> bytes | None: ...


def apply(
    rules: ImageRules, data: bytes, header: ImageHeader, *, interpolation: str = "lanczos"
) -> tuple[bytes, ImageHeader]:
    """Apply the rules to one image.

    Args:
        rules: the rules.
        data: an encoded image.
        header: what `feeder.shards.images.headers.check_image` says of it.
        interpolation: "lanczos"; or "nearest" for masks, whose colours stay what they are, and whose size is not held
            against the filters.

    Returns:
        The image and its header: the very same objects where nothing is to be done.

    Raises:
        BadImageError: a filter leaves it out (cause in `FILTERED`), or it cannot be decoded.
        ConfigError: the installed Pillow lacks what the image's format needs.
        MissingPackageError: no Pillow is installed, and an image is to be changed.
    """
    nearest = interpolation == "nearest"
    if not nearest:
        _filter(rules, header)
    if not rules.rewrites:
        return data, header
    return _rewrite(data, header, _change(rules, data, header, nearest=nearest))


def apply_to_sample(
    rules: ImageRules, images: Mapping[str, bytes], headers: Mapping[str, ImageHeader]
) -> tuple[dict[str, bytes], dict[str, ImageHeader]]:
    """Apply the rules to the image fields of one sample, of which ``image`` is one; return the new ones.

    Raises:
        BadImageError: as `apply`; the reason names the field where it is another than ``image``.
    """
    data, header = images["image"], headers["image"]
    _filter(rules, header)
    if not rules.rewrites:
        return dict(images), dict(headers)
    lead = _change(rules, data, header, nearest=False)
    new_images, new_headers = {}, {}
    for field, other in images.items():
        if field == "image":
            new_images[field], new_headers[field] = _rewrite(data, header, lead)
            continue
        change = _following(rules, other, headers[field], header, lead)
        try:
            new_images[field], new_headers[field] = _rewrite(other, headers[field], change)
        except BadImageError as error:
            raise BadImageError(error.cause, f"its {field}: {error.reason}") from error
    return new_images, new_headers


def _filter(rules: ImageRules, header: ImageHeader) -> None:
    """Raise BadImageError for an image that the filters leave out."""
    if not header.format:  # kept though its header cannot be read: of unknown size
        return
    _, width, height = header
    shorter, longer = sorted((width, height))
    if rules.min_side is not None and shorter < rules.min_side:
        raise BadImageError("too small", f"it has {width}×{height} pixels, its shorter side less than {rules.min_side}")
    if rules.min_pixels is not None and width * height < rules.min_pixels:
        raise BadImageError("too small", f"it has {width}×{height} pixels, fewer than {rules.min_pixels}")
    if rules.max_side is not None and longer > rules.max_side:
        raise BadImageError("too long", f"it has {width}×{height} pixels, its longer side more than {rules.max_side}")
    if rules.max_aspect is not None and longer > rules.max_aspect * shorter:
        raise BadImageError(
            "too narrow", f"it has {width}×{height} pixels, one side more than {rules.max_aspect:g} times the other"
        )


def _change(rules: ImageRules, data: bytes, header: ImageHeader, *, nearest: bool) -> Change:
    """Return what the rules make of an image for itself."""
    said = orientation(data, header.format)
    turn = said if rules.orientation == "apply" else UPRIGHT
    size = (header.width, header.height)
    if rules.resize is not None:
        size = _swapped(rules.resize.size(*_swapped(size, turn)), turn)
    return Change(
        size=size,
        turn=turn,
        keep=UPRIGHT if rules.orientation == "apply" else said,
        rgb=rules.colour == "rgb" and not nearest,
        nearest=nearest,
        quality=rules.quality or DEFAULT_QUALITY,
    )


def _following(rules: ImageRules, data: bytes, header: ImageHeader, image: ImageHeader, lead: Change) -> Change:
    """Return what becomes of another field of a sample whose ``image`` has this header and undergoes ``lead``."""
    own = _change(rules, data, header, nearest=header.format != "jpeg")
    if own.nearest and own.turn == UPRIGHT and header[1:] == image[1:]:
        return dataclasses.replace(own, size=lead.size, turn=lead.turn)
    return own


def _swapped(size: Size, turn: int) -> Size:
    """Return the size of an image after the turn; or, which is the same, before it."""
    return (size[1], size[0]) if swaps_sides(turn) else size


def _rewrite(data: bytes, header: ImageHeader, change: Change) -> tuple[bytes, ImageHeader]:
    """Return the changed image and its header, or the given ones where nothing changes."""
    if not header.format or (
        change.size == (header.width, header.height) and change.turn == UPRIGHT and not change.rgb
    ):
        return data, header
    if header.width * header.height > MAX_PIXELS:
        raise BadImageError("too large", f"it has {header.width}×{header.height} pixels, more than {MAX_PIXELS}")
    new = _pixels().rewrite(data, header, change)
    return (data, header) if new is None else (new, read_header(new))


def _pixels() -> _Pixels:
    load("pillow")  # says what to install where it is missing
    return cast(_Pixels, import_module("feeder.shards.images.pixels"))
