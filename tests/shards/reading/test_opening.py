"""Reading datasets: rows and bytes by sample id, from threads, after pickles and forks, and damage found on the way."""

import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.errors import ManifestError, ShardsError, StorageError
from feeder.shards.reading.opening import Reader, ShardReader, open_dataset


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    """Eight shards of three classes, in the order of the names."""
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=5, shuffle=False))
    return tmp_path / "dataset"


def test_ids_may_come_in_any_order_and_repeat(dataset: Path, image_folder: Path) -> None:
    reader = open_dataset(dataset)
    everything, _ = reader.read(np.arange(36))
    ids = np.array([35, 0, 7, 7, 20, 0])
    rows, images = reader.read(ids)
    assert rows.keys == [everything.keys[i] for i in ids]
    assert rows.labels.tolist() == everything.labels[ids].tolist() == [2, 0, 0, 0, 1, 0]
    assert (rows.labels.dtype, rows.widths.dtype, rows.heights.dtype) == (np.int64, np.int32, np.int32)
    assert rows.formats == ["jpeg"] * 6
    assert images == [(image_folder / f"{key}.jpg").read_bytes() for key in rows.keys]
    described = reader.describe(ids)
    assert (described.keys, described.widths.tolist()) == (rows.keys, rows.widths.tolist())
    nothing, no_images = reader.read(np.zeros(0, np.int64))
    assert (nothing.keys, no_images, nothing.labels.shape) == ([], [], (0,))


@pytest.mark.parametrize("wrong", [-1, 36, 2**40])
def test_ids_outside_the_dataset_are_refused(dataset: Path, wrong: int) -> None:
    with pytest.raises(IndexError, match=f"^sample id {wrong} is outside the dataset: expected 0 to 35$"):
        open_dataset(dataset).read(np.array([0, wrong]))


def keys_and_bytes(reader: Reader, ids: list[int]) -> tuple[list[str], list[bytes]]:
    rows, images = reader.read(np.array(ids))
    return rows.keys, images


def test_a_reader_travels_to_other_processes(dataset: Path) -> None:
    reader = open_dataset(dataset)
    expected = keys_and_bytes(reader, [3, 30])
    assert keys_and_bytes(pickle.loads(pickle.dumps(reader)), [3, 30]) == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:  # the parent's descriptors and lock are inherited
        assert pool.starmap(keys_and_bytes, [(reader, [3, 30])] * 4) == [expected] * 4


def test_a_reader_works_in_a_child_forked_while_its_lock_is_held(dataset: Path) -> None:
    reader = open_dataset(dataset)
    assert isinstance(reader, ShardReader)
    reader.read(np.array([0]))
    with reader._open._of_process[1]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if len(reader.read(np.array([0, 35]))[1]) == 2 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_descriptors_are_bounded_and_given_back(dataset: Path) -> None:
    reader = open_dataset(dataset)
    assert isinstance(reader, ShardReader)
    before = len(os.listdir("/proc/self/fd"))
    reader._open.capacity = 3
    reader.read(np.arange(36))
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3  # a shard and its mapped index each
    reader.close()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert reader._open.capacity == max(2, min(512, limit // 8))


def test_a_storage_error_is_named(dataset: Path) -> None:
    (dataset / "shard-000000.tar").unlink()
    (dataset / "shard-000000.tar").symlink_to("shard-000000.tar")
    with pytest.raises(StorageError) as caught:
        open_dataset(dataset).read(np.array([0]))
    assert str(caught.value) == (
        f"cannot read {dataset}/shard-000000.tar: Too many levels of symbolic links; check the path, its permissions "
        "and the storage behind it"
    )


def test_shards_without_their_manifest_are_not_taken_for_an_image_folder(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    with pytest.raises(ManifestError) as caught:
        open_dataset(dataset)
    assert str(caught.value).startswith(f"{dataset} holds shards, such as shard-00000")
    assert str(caught.value).endswith(
        "but no manifest, so it is not a whole dataset; copy manifest.json from its origin, or build it again"
    )


def test_what_is_no_dataset(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=f"^no manifest at {tmp_path}/none/manifest.json: expected a dataset"):
        open_dataset(tmp_path / "none")
    with pytest.raises(ManifestError, match=r"^no manifest at .*/shard-000000.tar/manifest.json: expected a dataset"):
        open_dataset(dataset / "shard-000000.tar")
    (dataset / ".building").touch()
    open_dataset(dataset)  # whole, and about to get a new generation
    (dataset / "manifest.json").unlink()
    with pytest.raises(ManifestError) as caught:
        open_dataset(dataset)
    assert str(caught.value) == (
        f"{dataset} is the destination of a build that has not finished; wait for it, or if it was interrupted, run "
        "the same 'feeder build' again"
    )
    (dataset / ".building").unlink()
    shutil.rmtree(dataset)
    dataset.mkdir()
    with pytest.raises(ShardsError, match=f"^no images in {dataset}"):
        open_dataset(dataset)


def test_the_manifest_may_be_named_itself(dataset: Path) -> None:
    assert open_dataset(dataset / "manifest.json").manifest == open_dataset(f"file://{dataset}").manifest


def test_more_shards_than_descriptors(image_folder: Path, tmp_path: Path) -> None:
    """Each pass over all indexes, and each read, holds few of them open."""
    build(image_folder, tmp_path / "many", BuildOptions(shard_samples=1))
    script = """
        import resource, sys
        import numpy as np
        from feeder.shards.dataset.loading import load_index
        from feeder.shards.reading.opening import open_dataset
        from feeder.shards.sources import open_source
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        reader = open_dataset(sys.argv[1])
        indexes = [load_index(reader._folder, reader.manifest, number) for number in range(36)]
        print(len(reader.read(np.arange(36))[1]), len(open_source(sys.argv[1])[0]), len(indexes))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "many")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "36 36 36\n"
