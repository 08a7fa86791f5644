"""Random samples of a dataset as they are stored, on a contact sheet: the image, and other image fields beside it."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from feeder.errors import ConfigError
from feeder.keyed import derive_key, permute
from feeder.shards.reading.listing import ids_with_label
from feeder.shards.reading.opening import open_dataset
from feeder.shards.reading.rows import Reader
from feeder.tools import console, contact_sheet
from feeder.tools.contact_sheet import Tile

_TILE = 224  # pixels: of the square that each image is fitted into
_PAPER = (255, 255, 255)
_SPREAD_BELOW = 64  # masks whose values are all lower are nearly black; theirs are spread over all greys


def show_stored(source: str, count: int, *, seed: int, class_name: str | None, output: Path) -> int:
    """Draw samples of a dataset at random, each at most once, and say where the sheet is.

    Raises:
        ConfigError: there is no such class, or it has no samples.
        ShardError, StorageError: the samples cannot be read.
    """
    reader = open_dataset(source)
    ids, of_what = _candidates(reader, class_name)
    places = permute(derive_key("show.random", seed), len(ids), np.arange(min(count, len(ids))))
    tiles = _tiles(reader, ids[places])
    manifest = reader.manifest
    fields = ", ".join(name for name, field in manifest.fields.items() if field.type == "image")
    title = [
        f"{len(tiles)} of {console.format_count(len(ids), 'sample')}{of_what} as stored, seed {seed}",
        f"{fields}, dataset {manifest.digest}",
    ]
    contact_sheet.save_sheet(contact_sheet.draw_sheet(title, tiles), output)
    print(f"{output}: {len(tiles):,} of {console.format_count(len(ids), 'sample')}{of_what}, seed {seed}")
    reader.close()
    return 0


def _candidates(reader: Reader, class_name: str | None) -> tuple[NDArray[np.int64], str]:
    """Return the ids to draw from, and what tells them from all others."""
    classes = reader.manifest.classes
    if class_name is None:
        return np.arange(reader.manifest.num_samples), ""
    if class_name not in classes:
        known = f"such as {classes[0]!r}" if classes else "it has none"
        raise ConfigError(f"{reader.url} has no class {class_name!r} ({known}); 'feeder inspect' shows its classes")
    ids = ids_with_label(reader, classes.index(class_name))
    if not len(ids):
        raise ConfigError(f"{reader.url} has no sample of the class {class_name!r}")
    return ids, f" of class {console.printable(class_name)}"


def _tiles(reader: Reader, ids: NDArray[np.int64]) -> list[Tile]:
    """Return a tile a sample."""
    names = [name for name, field in reader.manifest.fields.items() if field.type == "image"]
    read = {name: reader.read(ids, name) for name in names}
    rows = read["image"][0]
    classes = reader.manifest.classes
    tiles = []
    for row, (key, label) in enumerate(zip(rows.keys, rows.labels.tolist(), strict=True)):
        views = [_view(read[name][1][row]) for name in names]
        size = f"{rows.widths[row]} x {rows.heights[row]} {rows.formats[row]}"
        label_text = f"{classes[label]} ({label}), {size}" if 0 <= label < len(classes) else size
        tiles.append(
            Tile(
                views=np.stack([_blank() if view is None else view for view in views]),
                captions=(console.printable(key), console.printable(label_text)),
                mark="cannot be decoded" if views[0] is None else None,
            )
        )
    return tiles


def _blank() -> NDArray[np.uint8]:
    return np.full((_TILE, _TILE, 3), _PAPER, np.uint8)


def _view(data: bytes) -> NDArray[np.uint8] | None:
    """Return an image fitted into a square of paper; blank where there is none, None where it cannot be decoded."""
    if not data:
        return _blank()
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (_TILE, _TILE))
        image.load()
    except Exception:  # noqa: BLE001 - decoders raise what they like, and a sheet shows which fail
        return None
    return np.asarray(ImageOps.pad(_coloured(image), (_TILE, _TILE), Image.Resampling.BILINEAR, color=_PAPER))


def _coloured(image: Image.Image) -> Image.Image:
    """Return an image as RGB; of greys of few low values, such as class numbers, so that they can be told apart."""
    if image.mode in ("I;16", "I", "F"):
        values = np.asarray(image, np.float64)
        image = Image.fromarray((values * (255 / max(1.0, float(values.max())))).clip(0, 255).astype(np.uint8))
    elif image.mode == "L" and 0 < int(np.asarray(image).max()) < _SPREAD_BELOW:
        image = ImageOps.autocontrast(image)
    return image.convert("RGB")
