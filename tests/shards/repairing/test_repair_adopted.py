"""Of adopted data, indexes are made again and damaged samples leave; not a byte of the data is ever written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.adoption.adopting import adopt
from feeder.shards.changing.dropping import drop
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import ManifestError
from feeder.shards.reading.opening import load_index, open_dataset
from feeder.shards.repairing.repair import repair
from feeder.shards.repairing.verify import verify
from feeder.shards.storage import LocalFolder
from tests.contracts.formats import files_of, flip
from tests.images import encoded, write_image_folder
from tests.mds_sets import write_mds
from tests.tar_archives import write_tar


def tars(folder: Path) -> Path:
    """Three archives, of which only the second one has masks."""
    for number in range(3):
        members = []
        for row in range(8):
            key = f"{number}{row:03d}"
            members += [(f"{key}.jpg", encoded(number * 8 + row)), (f"{key}.cls", b"%d" % (row % 3))]
            members += [(f"{key}.txt", f"Bild {row}".encode())] * (row != 5)
            members += [(f"{key}.mask.png", encoded(row, format="PNG"))] * (number == 1)
        write_tar(folder / f"part-{number:03d}.tar", members, ("gnu", "pax", "ustar")[number])
    return folder


def twins(folder: Path) -> Path:
    """Two archives whose samples have the same keys."""
    for name in ("a", "b"):
        members = [(f"{row}.jpg", encoded(row + 10 * (name == "b"))) for row in range(8)]
        write_tar(folder / f"{name}.tar", members)
    return folder


def mds(folder: Path) -> Path:
    samples = [{"x": encoded(row), "y": row % 2, "name": f"n{row}"} for row in range(24)]
    return write_mds(folder, {"x": "jpeg", "y": "int", "name": "str"}, samples, per_shard=8)


def images(folder: Path) -> Path:
    return write_image_folder(folder, per_class=8)


KINDS = [tars, twins, mds, images]
ARCHIVES = KINDS[:3]


@pytest.fixture
def data(tmp_path: Path, make: Callable[[Path], Path]) -> Path:
    return make(tmp_path / "data")


@pytest.fixture
def dataset(data: Path, tmp_path: Path) -> Path:
    adopt(data, tmp_path / "dataset")
    return tmp_path / "dataset"


def samples(dataset: Path) -> list[tuple[str, bytes, int]]:
    reader = open_dataset(dataset)
    rows, contents = reader.read(np.arange(reader.manifest.num_samples))
    return list(zip(rows.keys, contents, rows.labels.tolist(), strict=True))


def assert_whole(dataset: Path) -> None:
    assert verify(dataset, "full").problems == []
    assert repair(dataset, write=True).sentences == []


@pytest.mark.parametrize("make", KINDS)
def test_indexes_come_back_byte_for_byte(dataset: Path, data: Path) -> None:
    before, untouched = files_of(dataset), files_of(data)
    indexes = sorted(dataset.rglob("*.idx.arrow"))
    for path in indexes[:-1]:
        path.unlink()
    flip(indexes[-1], 800)
    report = repair(dataset, write=True)
    assert len(report.sentences) == len(indexes)
    for sentence in report.sentences:
        assert sentence.endswith(" is lost or damaged: it is made again from the adopted data, byte for byte")
    assert files_of(dataset) == before
    assert files_of(data) == untouched
    assert_whole(dataset)


@pytest.mark.parametrize("make", ARCHIVES)
def test_damaged_samples_leave_the_index(dataset: Path, data: Path) -> None:
    held = samples(dataset)
    manifest = load_manifest(dataset)
    index = load_index(LocalFolder(str(dataset)), manifest, 1)
    path = data / manifest.shards.names[1]
    flip(path, index.image.offsets[2] + 40)
    damaged = files_of(data)
    report = repair(dataset, write=True)
    assert report.sentences == [
        (
            f"shard {path.name} is not as it was adopted: 7 of its 8 samples are right, and get a new index; a whole "
            "copy would be better than that"
        )
    ]
    assert [sample.key for sample in report.lost] == [held[10][0]]
    assert samples(dataset) == held[:10] + held[11:]
    assert files_of(data) == damaged
    after = load_manifest(dataset)
    assert (after.generation, after.shards.dropped, after.origin) == (1, {1: 1}, manifest.origin)
    assert_whole(dataset)


@pytest.mark.parametrize("make", ARCHIVES)
def test_cut_and_missing_shards(dataset: Path, data: Path) -> None:
    held = samples(dataset)
    names = load_manifest(dataset).shards.names
    index = load_index(LocalFolder(str(dataset)), load_manifest(dataset), 0)
    os.truncate(data / names[0], index.image.offsets[5] + 10)
    (data / names[1]).unlink()
    report = repair(dataset, write=True)
    assert sum(sample.samples for sample in report.lost) == 11
    assert samples(dataset) == held[:5] + held[16:]
    assert_whole(dataset)


@pytest.mark.parametrize("make", [images])
def test_files_that_are_gone_or_altered_leave_the_index(dataset: Path, data: Path) -> None:
    held = samples(dataset)
    (data / "ant" / "ant-03.jpg").unlink()
    flip(data / "bee" / "bee-01.jpg", 100)
    report = repair(dataset, write=True)
    assert report.sentences == ["2 of the 24 files of files-000000 are missing or altered: a new index leaves them out"]
    assert samples(dataset) == [one for one in held if one[0] not in {sample.key for sample in report.lost}]
    assert len(report.lost) == 2
    assert_whole(dataset)


@pytest.mark.parametrize("make", [tars, mds])
def test_what_is_beyond_repair_is_left(dataset: Path, data: Path) -> None:
    manifest = load_manifest(dataset)
    flip(data / manifest.shards.names[1], 3000)
    (dataset / manifest.shards.index(1)).unlink()
    (dataset / manifest.shards.index(0)).unlink()
    report = repair(dataset, write=True)
    assert len(report.sentences) == 2
    assert report.beyond == [
        (
            f"shard {manifest.shards.names[1]}, which was adopted, and its index are both damaged; copy one of them "
            "again from its origin"
        )
    ]
    assert [problem.split(" is ")[0] for problem in verify(dataset).problems] == [
        f"index {dataset}/{manifest.shards.index(1)}"
    ]


@pytest.mark.parametrize("make", [tars, mds])
def test_the_index_of_a_shard_that_samples_were_dropped_from(dataset: Path) -> None:
    """Nothing else tells which: no other index takes its place, and with a copy of it all is as before."""
    drop(dataset, [samples(dataset)[1][0]])
    held = samples(dataset)
    path = dataset / load_manifest(dataset).shards.index(0)
    data = path.read_bytes()
    path.unlink()
    report = repair(dataset, write=True)
    assert report.beyond == report.sentences
    assert report.beyond[0].startswith(f"index {path.name} is lost and cannot be made again (the adopted data give ")
    path.write_bytes(data)
    assert samples(dataset) == held
    assert_whole(dataset)


@pytest.mark.parametrize("make", ARCHIVES)
def test_a_manifest_comes_back_or_is_refused(dataset: Path) -> None:
    path = dataset / "manifest.json"
    whole = path.read_bytes()
    flip(path, whole.index(b'"num_samples"') + 20)
    assert len(repair(dataset, write=True).sentences) == 1
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-200])
    with pytest.raises(ManifestError, match=r"adopted in place; adopt them again with 'feeder index'$"):
        repair(dataset, write=True)
    path.unlink()
    with pytest.raises(ManifestError, match=r"no shard to make one from"):
        repair(dataset, write=True)


@pytest.mark.parametrize("make", [tars])
def test_data_that_moved_away(dataset: Path, data: Path) -> None:
    shutil.move(data, data.with_name("elsewhere"))
    before = files_of(dataset)
    with pytest.raises(Exception, match="no sample of .* is whole"):
        repair(dataset, write=True)
    assert files_of(dataset) == before
