"""Samples are listed and found from indexes alone, whatever the dataset is made of."""

from pathlib import Path

import numpy as np
import pytest

from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.listing import ListedSample, find_sample, ids_with_label, list_samples, shard_columns
from feeder.shards.reading.opening import open_dataset
from feeder.shards.reading.summary import summarise
from tests.tables import write_table


@pytest.mark.parametrize("format", [*WRITTEN_FORMATS, "folder"])
def test_samples_are_listed_in_order(image_folder: Path, tmp_path: Path, format: str) -> None:
    place = image_folder
    if format != "folder":
        place = tmp_path / "dataset"
        build(image_folder, place, BuildOptions(format=format, shard_samples=8, shuffle=False))
        for path in place.glob(f"shard-??????.{format}"):
            path.unlink()  # indexes are enough
    reader = open_dataset(place)
    listed = list(list_samples(reader))
    paths = sorted(image_folder.rglob("*.jpg"))
    suffix = ".jpg" if format == "folder" else ""
    assert [one.key for one in listed] == [f"{path.parent.name}/{path.stem}{suffix}" for path in paths]
    assert [one.size_bytes for one in listed] == [path.stat().st_size for path in paths]
    shards = reader.manifest.shards
    assert listed[13] == ListedSample(
        key=f"bee/bee-01{suffix}",
        label=1,
        size_bytes=paths[13].stat().st_size,
        width=40 + 13 * 37 % 64,
        height=40 + 13 * 23 % 64,
        format="jpeg",
        shard=shards.names[min(1, len(shards) - 1)],
    )
    assert find_sample(reader, f"bee/bee-01{suffix}") == 13
    assert ids_with_label(reader, 2).tolist() == list(range(24, 36))
    with pytest.raises(ConfigError, match=r"has no sample with the key 'bee/none'; 'feeder inspect --list' prints"):
        find_sample(reader, "bee/none")
    with pytest.raises(ConfigError, match="has no shard 'none'; its shards are called like '"):
        next(list_samples(reader, "none"))
    summary = summarise(reader, 100)
    assert (summary.samples_read, summary.class_counts.tolist(), summary.formats) == (36, [12, 12, 12], {"jpeg": 36})
    assert summary.sizes[0] == min(one.size_bytes for one in listed)
    assert summary.sizes[-1] == max(one.size_bytes for one in listed)


def test_one_shard_is_listed(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=8, shuffle=False))
    reader = open_dataset(tmp_path / "dataset")
    assert [one.key for one in list_samples(reader, "shard-000004.tar")] == [f"cat/cat-{n:02d}" for n in range(8, 12)]
    assert len(shard_columns(reader, 4)["key"]) == 4


@pytest.mark.parametrize("format", WRITTEN_FORMATS)
def test_all_fields_are_summarised(tmp_path: Path, format: str) -> None:
    table = write_table(tmp_path / "source")
    build_tables([table], tmp_path / "dataset", BuildOptions(format=format, shard_samples=7, shuffle=False))
    summary = summarise(open_dataset(tmp_path / "dataset"), 100)
    assert summary.unlabelled == 1
    assert summary.class_counts.tolist() == [8, 7, 8]
    fields = summary.fields
    assert list(fields) == ["mask", "boxes", "caption", "score", "votes", "safe"]
    assert (fields["mask"].type, fields["mask"].absent, fields["mask"].formats) == ("image", 6, {"png": 18})
    assert (fields["boxes"].type, fields["boxes"].absent) == ("bytes", 2)
    assert (fields["boxes"].sizes[0], fields["boxes"].sizes[-1]) == (1, 23)
    assert (fields["caption"].absent, fields["caption"].examples) == (5, [f"Ein Bild № {n}" for n in (1, 2, 3)])
    assert (fields["score"].absent, fields["score"].lowest, fields["score"].highest) == (1, 0, 23 / 7)
    assert (fields["votes"].absent, fields["votes"].lowest, fields["votes"].highest) == (12, -10, 12)
    assert (fields["safe"].absent, fields["safe"].examples) == (8, [True, False])


def test_a_few_shards_stand_for_all(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=4, shuffle=False))
    summary = summarise(open_dataset(tmp_path / "dataset"), 3)
    assert (summary.shards_read, summary.samples_read, summary.class_counts.tolist()) == (3, 12, [4, 4, 4])
    assert np.all(np.diff(summary.widths) >= 0)
