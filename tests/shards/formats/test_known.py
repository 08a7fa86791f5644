"""Every format keeps the contract; what Arrow's own readers see in Arrow shards; and that formats agree."""

import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from feeder import ImageDataset, RandomHorizontalFlip, RandomResizedCrop
from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import ShardError
from feeder.shards.formats import arrow
from feeder.shards.formats.arrow import ROWS_A_BATCH, check_rows, index_columns
from feeder.shards.formats.index import encode_index
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import load_index, open_dataset
from feeder.shards.storage import LocalFolder
from tests.contracts.formats import FormatContract, files_of, shard_of
from tests.images import encoded


class TestTar(FormatContract):
    format = "tar"


class TestArrow(FormatContract):
    format = "arrow"

    @pytest.fixture
    def shard(self, image_folder: Path, tmp_path: Path) -> Path:
        """A shard of 37 samples, so of three record batches."""
        (image_folder / "bee" / "one more.png").write_bytes(encoded(1, size=(10, 200), format="PNG"))
        build(image_folder, tmp_path / "one", BuildOptions(format="arrow"))
        return tmp_path / "one" / "shard-000000.arrow"

    def test_pyarrow_reads_what_we_read(self, shard: Path) -> None:
        reader = open_dataset(shard.parent)
        rows, images = reader.read(np.arange(37))
        with pa.ipc.open_file(shard.read_bytes()) as file:
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        assert [batch.num_rows for batch in batches] == [ROWS_A_BATCH, ROWS_A_BATCH, 37 - 2 * ROWS_A_BATCH]
        table = pa.Table.from_batches(batches)
        named = zip(rows.keys, rows.formats, strict=True)
        assert table.to_pydict() == {
            "key": rows.keys,
            "source": ["bee/one more.png" if kind == "png" else f"{key}.jpg" for key, kind in named],
            "label": rows.labels.tolist(),
            "image.width": rows.widths.tolist(),
            "image.height": rows.heights.tolist(),
            "image.format": rows.formats,
            "image.crc32c": [google_crc32c.value(image) for image in images],
            "image": images,
        }

    def test_a_mapped_shard_is_read_without_copies(self, shard: Path) -> None:
        with pa.memory_map(str(shard)) as mapped:
            start, size = mapped.read_buffer(mapped.size()).address, mapped.size()
            mapped.seek(0)
            before = pa.total_allocated_bytes()
            table = pa.ipc.open_file(mapped).read_all()
            images = table.column("image")
            for chunk in images.chunks:
                buffer = chunk.buffers()[2]
                assert start <= buffer.address <= buffer.address + buffer.size <= start + size
            first = memoryview(images[0].as_buffer())
            assert bytes(first) == open_dataset(shard.parent).read(np.array([0]))[1][0]
            assert pa.total_allocated_bytes() == before

    def test_the_index_can_be_made_again_from_the_shard(self, shard: Path) -> None:
        columns = index_columns(shard_of(shard.read_bytes()), load_manifest(shard.parent).fields)
        index = encode_index(columns, load_manifest(shard.parent).shards.digests[0])
        assert index == shard.with_name("shard-000000.idx.arrow").read_bytes()

    def test_batches_of_large_images_have_fewer_rows(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrow, "_BYTES_A_BATCH", 5000)
        build(image_folder, tmp_path / "out", self.options(shard_samples=36))
        with pa.ipc.open_file((tmp_path / "out" / self.name(0)).read_bytes()) as file:
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        assert len(batches) > 36 // ROWS_A_BATCH + 1
        assert max(sum(map(len, batch.column("image").to_pylist())) for batch in batches) <= 5000
        assert len(open_dataset(tmp_path / "out").read(np.arange(36))[1]) == 36

    def test_other_processes_write_the_same_bytes(self, dataset: Path, image_folder: Path, tmp_path: Path) -> None:
        command = ["build", str(image_folder), str(tmp_path / "again"), "--format", "arrow"]
        options = ["--shard-samples", "5", "--no-shuffle", "--workers", "1", "-q"]
        subprocess.run([sys.executable, "-m", "feeder.tools.main", *command, *options], check=True, capture_output=True)
        assert files_of(tmp_path / "again") == files_of(dataset)

    def test_what_contradicts_the_index_is_named(self, dataset: Path) -> None:
        manifest = load_manifest(dataset)
        fields, index = manifest.fields, load_index(LocalFolder(str(dataset)), manifest, 1)
        data = (dataset / self.name(1)).read_bytes()
        with pa.ipc.open_file(data) as file:
            table = file.read_all()

        def problems(changed: pa.Table) -> list[str]:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, changed.schema) as writer:
                writer.write_table(changed)
            return list(check_rows(shard_of(sink.getvalue().to_pybytes()), index, fields, dropped=0))

        def with_column(name: str, values: list[object]) -> pa.Table:
            field = table.schema.field(name)
            return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))

        assert problems(table) == []
        assert problems(table.slice(1)) == ["here holds 4 samples, but its index has 5"]
        assert problems(with_column("label", [0, 0, 1, 0, 0])) == [
            "here holds 1 as label of sample 2 where its index has 0"
        ]
        assert problems(with_column("image.format", ["jpeg", "png", "jpeg", "jpeg", "none"])) == [
            "here holds 1 as image.format of sample 1 where its index has 0"
        ]
        (problem,) = problems(table.drop_columns(["key"]))
        assert problem == (
            "here has the columns 'source', 'label', 'image.width', 'image.height', 'image.format', 'image.crc32c', "
            "'image', which are not those of a shard; build it again"
        )
        with pytest.raises(ShardError, match=r"^here is not a whole Arrow file \(.*\); copy it again from its origin$"):
            index_columns(shard_of(data[:-1]), fields)


def test_formats_hold_the_same_samples_and_give_the_same_pixels(image_folder: Path, tmp_path: Path) -> None:
    ids = np.arange(36)
    found = []
    for name in WRITTEN_FORMATS:
        options = BuildOptions(format=name, shard_bytes=20_000, seed=3)
        manifest = build(image_folder, tmp_path / name, options).datasets[0].manifest
        assert len(manifest.shards) > 3
        rows, images = open_dataset(tmp_path / name).read(ids)
        transform = [RandomResizedCrop(16), RandomHorizontalFlip()]
        batches = list(ImageDataset(tmp_path / name, batch_size=8, seed=5, transform=transform))
        found.append(
            {
                "samples of shards": manifest.shards.samples.tolist(),
                "keys": rows.keys,
                "numbers": [rows.labels.tolist(), rows.widths.tolist(), rows.heights.tolist(), rows.formats],
                "images": images,
                "ids": [np.asarray(batch["id"]).tolist() for batch in batches],
                "pixels": [np.asarray(batch["image"]).tobytes() for batch in batches],
            }
        )
    for other in found[1:]:
        assert other == found[0]
    digests = {load_manifest(tmp_path / name).digest for name in WRITTEN_FORMATS}
    assert len(digests) == len(WRITTEN_FORMATS)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="^format is 'zip', expected 'tar' or 'arrow'$"):
        BuildOptions(format="zip")
