"""What is wrong with the shards of a dataset, and what can be saved of each. Nothing is written here.

Of a shard that is damaged, the samples are right whose every content has the CRC-32C that the index says. Where the
index is lost, too, an Arrow shard still holds the CRC of each content; in a tar nothing is left to check contents
against, so that samples before the damage are kept whose images begin and end as their formats do.

Samples that were dropped do not come back: where the index of a shard is lost that some were dropped from, the
consolidated column ``key`` says which, or else the whole shard is left out.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from feeder.shards.adoption.again import adopted_indexes
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.errors import BadImageError, ShardError, ShardsError, StorageError
from feeder.shards.fields import ABSENT, Field
from feeder.shards.formats.index import ShardIndex, encode_index, index_columns
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.images.headers import check_image
from feeder.shards.reading.opening import load_column, load_index
from feeder.shards.repairing.content_check import ContentCheck
from feeder.shards.repairing.findings import Columns, ShardFinding, lost_samples
from feeder.shards.repairing.index_rebuilding import RebuiltIndex, rebuild_index
from feeder.shards.storage import Folder, open_folder

_SPELLINGS = ("jpg", "jpeg", "JPEG", "JPG")  # how the source may have spelled the extension of a JPEG


class Diagnosis:
    """Examines the shards of a dataset whose manifest is known, one after another, from several threads.

    Args:
        folder, manifest: of the dataset.
        fields: what its shards hold: those of the manifest, but columns that were added later.
    """

    def __init__(self, folder: Folder, manifest: Manifest, fields: Mapping[str, Field]) -> None:
        self._folder = folder
        self._data = folder if manifest.origin is None else open_folder(manifest.origin)
        self._manifest = manifest
        self._fields = fields
        self._columns: dict[str, Any] = {}
        shard_format = SHARD_FORMATS[manifest.format]
        self._files = shard_format.files
        self._ours = shard_format.writer is not None and not manifest.adopted

    def __call__(self, number: int) -> ShardFinding:
        """Return what is wrong with a shard."""
        try:
            return self._examine(number)
        except StorageError as error:
            return self._finding(number, action="leave", sentence=str(error))

    def _examine(self, number: int) -> ShardFinding:
        record = self._manifest.shards.record(number)
        try:
            index = load_index(self._folder, self._manifest, number)
        except ShardError:
            index = None
        if self._files:
            return self._examine_files(number, index)
        contents = None if index is None else ContentCheck(index)
        try:
            shard = SequentialShard(self._data, record.name, contents.take if contents else _pass_by)
            digest = shard.finish()
        except FileNotFoundError:
            return self._remove(number, self._keys(number, index), "is missing", "its shard is missing")
        if digest == record.digest:
            return self._finding(number) if index is not None else self._make_index_again(number)
        if index is None or contents is None:
            return self._save_without_index(number)
        wrong = sorted(contents.finish())
        return self._save(number, index, wrong, digest, shard.size_bytes)

    def _finding(self, number: int, **found: Any) -> ShardFinding:
        record = self._manifest.shards.record(number)
        found.setdefault("kept", np.ones(record.samples, np.bool_))
        return ShardFinding(record=record, **found)

    # shards that are damaged

    def _save(self, number: int, index: ShardIndex, wrong: list[int], digest: str, size_bytes: int) -> ShardFinding:
        """Keep the samples of a damaged shard that its index knows to be right."""
        record = self._manifest.shards.record(number)
        keys = [index.keys[row] for row in range(index.num_samples)]
        if len(wrong) == index.num_samples:
            return self._remove(number, keys, "holds no sample that is whole", "its bytes are cut or altered")
        kept = np.ones(index.num_samples, np.bool_)
        kept[wrong] = False
        rows = pa.array(np.flatnonzero(kept))
        columns = {name: index.column(name).take(rows) for name in index.names}
        lost = tuple(lost_samples(record, [keys[row] for row in wrong], "its bytes are cut or altered"))
        share = f"{len(rows)} of its {index.num_samples} samples are right"
        if self._ours:
            return self._finding(
                number,
                kept=kept,
                action="rewrite",
                sentence=f"shard {record.name} was cut or altered: {share}, and go into a new shard",
                columns=columns,
                lost=lost,
            )
        return self._finding(
            number,
            kept=kept,
            action="index",
            sentence=(
                f"shard {record.name} is not as it was adopted: {share}, and get a new index; a whole copy would be "
                "better than that"
            ),
            data=encode_index(columns, digest),
            columns=columns,
            digest=digest,
            size_bytes=size_bytes,
            dropped=record.dropped + len(wrong),
            lost=lost,
        )

    def _save_without_index(self, number: int) -> ShardFinding:
        """Keep the samples of a damaged shard that can be found in it without an index."""
        record = self._manifest.shards.record(number)
        if not self._ours:
            return self._finding(
                number,
                action="leave",
                sentence=(
                    f"shard {record.name}, which was adopted, and its index are both damaged; copy one of them again "
                    "from its origin"
                ),
            )
        rebuilt = self._rebuild(record.name)
        rows = self._places_by_key(number, rebuilt)
        if rows is None:
            return self._remove_dropped_from(number)
        right = np.zeros(len(rebuilt), np.bool_)
        right[self._right_rows(record.name, rebuilt)] = True
        right &= rows >= 0
        kept = np.zeros(record.samples, np.bool_)
        kept[rows[right]] = True
        all_keys = self._keys(number, None)
        if all_keys is None:
            found = dict(zip(rows.tolist(), rebuilt.columns["key"].to_pylist() if rebuilt.columns else [], strict=True))
            all_keys = [found.get(row) for row in range(record.samples)]
        gone = [all_keys[row] for row in np.flatnonzero(~kept).tolist()]
        reason = "its shard and its index are damaged"
        if not right.any():
            return self._remove(number, gone, "and its index are damaged: no whole sample is left", reason)
        columns, notes = self._completed(number, rebuilt, rows)
        columns = {name: column.filter(pa.array(right)) for name, column in columns.items()}
        checked = "" if self._manifest.format == "arrow" else "; nothing is left to check their bytes against"
        return self._finding(
            number,
            kept=kept,
            action="rewrite",
            sentence=(
                f"shard {record.name} and its index were cut or altered: {int(right.sum())} of {record.samples} "
                f"samples before the damage go into a new shard{checked}{notes}"
            ),
            columns=columns,
            lost=tuple(lost_samples(record, gone, reason)),
        )

    def _rebuild(self, name: str) -> RebuiltIndex:
        return rebuild_index(SequentialShard(self._data, name), self._manifest.format, self._fields)

    def _right_rows(self, name: str, rebuilt: RebuiltIndex) -> list[int]:
        """Return the rows whose contents are right, as far as that can be told without an index."""
        if not rebuilt.columns:
            return []
        index = ShardIndex(pa.record_batch(list(rebuilt.columns.values()), names=list(rebuilt.columns)))
        if self._manifest.format == "arrow":
            contents = ContentCheck(index)
            SequentialShard(self._data, name, contents.take).finish()
            wrong = contents.finish()
            return [row for row in range(len(rebuilt)) if row not in wrong]
        images = [index.stored(field) for field in index.stored_fields if f"{field}.format" in index]
        return [
            row
            for row in range(len(rebuilt))
            if all(
                one.sizes[row] == ABSENT
                or _is_image(self._data.read_ranges([(name, one.offsets[row], one.sizes[row])])[0])
                for one in images
            )
        ]

    def _remove(self, number: int, keys: list[Any] | None, what: str, reason: str) -> ShardFinding:
        """Leave a shard out."""
        record = self._manifest.shards.record(number)
        keys = [None] * record.samples if keys is None else keys
        return self._finding(
            number,
            kept=np.zeros(record.samples, np.bool_),
            action="remove",
            sentence=f"shard {record.name} {what}: it leaves the dataset",
            lost=tuple(lost_samples(record, keys, reason)),
        )

    def _remove_dropped_from(self, number: int) -> ShardFinding:
        what = "lost its index, the only record of which of its samples were dropped, and none of those may come back"
        return self._remove(number, None, what, "the index that knew which samples were dropped is lost")

    # indexes that are damaged

    def _make_index_again(self, number: int) -> ShardFinding:
        """Return what becomes of an index that is lost, where its shard is whole."""
        record = self._manifest.shards.record(number)
        name = self._manifest.shards.index(number)
        if not self._ours:
            return self._adopt_again(number)
        rebuilt = self._rebuild(record.name)
        rows = self._places_by_key(number, rebuilt)
        if rebuilt.damage:
            return self._finding(
                number,
                action="leave",
                sentence=f"index {name} is lost and cannot be made again from its shard: {rebuilt.damage}",
            )
        if rows is None:
            return self._remove_dropped_from(number)
        columns, notes = self._completed(number, rebuilt, rows)
        there = pa.array(rows >= 0)
        columns = {name: column.filter(there) for name, column in columns.items()}
        extensions = [extension for extension, row in zip(rebuilt.extensions, rows.tolist(), strict=False) if row >= 0]
        for candidate in (columns, *self._spelled(columns, extensions)):
            data = encode_index(candidate, record.digest)
            if xxhash.xxh3_128_hexdigest(data) == record.index_digest:
                return self._finding(
                    number,
                    action="restore",
                    sentence=f"index {name} is lost or damaged: it is made again from its shard, byte for byte",
                    data=data,
                )
        return self._finding(
            number,
            action="index",
            sentence=f"index {name} is lost or damaged: a new one is made from its shard{notes}",
            data=encode_index(columns, record.digest),
            columns=columns,
            digest=record.digest,
            size_bytes=record.size_bytes,
            dropped=int((rows < 0).sum()),
        )

    def _adopt_again(self, number: int) -> ShardFinding:
        """Return what becomes of the lost index of adopted data: only the same index will do."""
        name = self._manifest.shards.index(number)
        reason = "the adopted data give another one"
        try:
            for data in adopted_indexes(self._data, self._manifest, number):
                if xxhash.xxh3_128_hexdigest(data) == self._manifest.shards.index_digests[number]:
                    sentence = f"index {name} is lost or damaged: it is made again from the adopted data, byte for byte"
                    return self._finding(number, action="restore", sentence=sentence, data=data)
        except (ShardsError, FileNotFoundError) as error:
            reason = str(error)
        return self._finding(
            number,
            action="leave",
            sentence=(
                f"index {name} is lost and cannot be made again ({reason}); copy it from the dataset's origin, or"
                " adopt the data again with 'feeder index'"
            ),
        )

    def _completed(self, number: int, rebuilt: RebuiltIndex, rows: NDArray[np.int64]) -> tuple[Columns, str]:
        """Return the columns of a rebuilt index with those that the shard does not hold, and what was lost of them."""
        columns = dict(rebuilt.columns)
        lost = []
        for name in ("source", *(name for name, field in self._fields.items() if not field.stored)):
            if name in columns:
                continue
            column = self._consolidated(name, number)
            if column is not None:
                columns[name] = column.take(pa.array(np.maximum(rows, 0)))
            elif name == "source":
                columns[name] = pa.array(_sources(columns["key"].to_pylist(), rebuilt.extensions, "jpg"))
                lost.append("the paths of the sources are lost, and their names in the shard stand for them")
            else:
                columns[name] = pa.nulls(len(rebuilt))
                lost.append(f"the values of {name} are lost")
        arrays = {
            name: pa.array(column.to_pylist()) if name == "source" else column for name, column in columns.items()
        }
        return index_columns(self._fields, _typed(arrays, self._fields)), "".join(f"; {one}" for one in lost)

    def _spelled(self, columns: Columns, extensions: list[str]) -> Iterator[Columns]:
        """Yield the columns of a tar's index with guesses at how the source spelled its names."""
        if extensions:
            keys = columns["key"].to_pylist()
            for spelling in _SPELLINGS:
                yield columns | {"source": pa.array(_sources(keys, extensions, spelling))}

    # what else is known of the samples

    def _consolidated(self, name: str, number: int) -> pa.Array | None:
        """Return the rows of a shard in a consolidated column; None if there is none, or it is damaged."""
        if name not in self._columns and name in self._manifest.columns:
            with contextlib.suppress(ShardsError):
                self._columns[name] = load_column(self._folder, self._manifest, name)
        column = self._columns.get(name)
        if column is None:
            return None
        first, last = self._manifest.first_ids[number : number + 2].tolist()
        return pa.array(column.slice(first, last - first).to_pylist(), column.type)

    def _keys(self, number: int, index: ShardIndex | None) -> list[Any] | None:
        """Return the keys of a shard's rows, from its index or else the consolidated column; None if both are lost."""
        if index is not None:
            return index.values("key")
        column = self._consolidated("key", number)
        return None if column is None else list(column.to_pylist())

    def _places_by_key(self, number: int, rebuilt: RebuiltIndex) -> NDArray[np.int64] | None:
        """Return the row in the lost index of each sample found, −1 where it was dropped; None if that is not known."""
        if not rebuilt.columns:
            return np.zeros(0, np.int64)
        record = self._manifest.shards.record(number)
        keys = self._consolidated("key", number)
        if keys is not None:
            return np.asarray(pc.fill_null(pc.index_in(rebuilt.columns["key"], value_set=keys), -1), np.int64)
        if record.dropped:
            return None
        rows = np.arange(len(rebuilt))
        return np.where(rows < record.samples, rows, -1)

    # files that were adopted

    def _examine_files(self, number: int, index: ShardIndex | None) -> ShardFinding:
        """Return what is wrong with a group of files."""
        record = self._manifest.shards.record(number)
        if index is None:
            return self._adopt_again(number)
        paths = index.strings("path")
        kept = np.zeros(index.num_samples, np.bool_)
        digest, size_bytes = xxhash.xxh3_128(), 0
        for row in range(index.num_samples):
            try:
                data = self._data.read(paths[row])
            except FileNotFoundError:
                continue
            if len(data) == index.image.sizes[row] and google_crc32c.value(data) == index.image.crcs[row]:
                kept[row] = True
                digest.update(data)
                size_bytes += len(data)
        if kept.all():
            return self._finding(number)
        keys = index.values("key")
        gone = [key for key, right in zip(keys, kept.tolist(), strict=True) if not right]
        if not kept.any():
            return self._remove(number, gone, "holds no file that is whole", "its file is missing or altered")
        columns = {name: index.column(name).filter(pa.array(kept)) for name in index.names}
        return self._finding(
            number,
            kept=kept,
            action="index",
            sentence=(
                f"{len(gone)} of the {index.num_samples} files of {record.name} are missing or altered: a new index "
                "leaves them out"
            ),
            data=encode_index(columns, digest.hexdigest()),
            columns=columns,
            digest=digest.hexdigest(),
            size_bytes=max(1, size_bytes),
            dropped=record.dropped + len(gone),
            lost=tuple(lost_samples(record, gone, "its file is missing or altered")),
        )


def _pass_by(start: int, piece: bytes) -> None:
    """Take the bytes of a shard that nothing is known to be in."""


def _is_image(data: bytes) -> bool:
    try:
        check_image(data)
    except BadImageError:
        return False
    return True


def _sources(keys: list[str], extensions: list[str], spelling: str) -> list[str]:
    """Return names that sources may have had: that of the member, but for how it spelled ``jpg``."""
    upper = spelling.isupper()
    spelled = {extension: extension.upper() if upper else extension for extension in set(extensions)}
    spelled["jpg"] = spelling
    return [f"{key}.{spelled[extension]}" for key, extension in zip(keys, extensions, strict=True)]


def _typed(columns: Columns, fields: Mapping[str, Field]) -> Columns:
    """Return columns in which those that hold nulls alone have the type of their field."""
    return {
        name: index_columns(fields, {name: column.to_pylist()})[name] if pa.types.is_null(column.type) else column
        for name, column in columns.items()
    }
