"""A dataset in an S3 bucket streams as the local one does, from a real server."""

import numpy as np
import pytest

from feeder import ImageDataset, RandomResizedCrop
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.errors import ManifestError, ShardError


def open_remote(url):
    return ImageDataset(url, batch_size=8, transform=[RandomResizedCrop(32)], threads=2, arrays="numpy")


@pytest.fixture
def built(tmp_path, image_folder):
    """A local dataset of three small shards."""
    build(image_folder, tmp_path / "shards", BuildOptions(shard_samples=12))
    return tmp_path / "shards"


def test_a_dataset_in_a_bucket_gives_the_same_batches(built, s3_bucket):
    filesystem = pytest.importorskip("s3fs").S3FileSystem()
    filesystem.put(f"{built}/", f"{s3_bucket.url}/data/train/", recursive=True)
    url = f"{s3_bucket.url}/data/train"
    remote = list(open_remote(url))
    local = list(open_remote(built))
    assert len(remote) == len(local) == 4
    for ours, theirs in zip(local, remote, strict=True):
        assert np.array_equal(ours["id"], theirs["id"])
        assert np.array_equal(ours["image"], theirs["image"])
        assert ours["state"] == theirs["state"]


def test_what_is_missing_in_a_bucket_is_named(built, s3_bucket):
    filesystem = pytest.importorskip("s3fs").S3FileSystem()
    url = f"{s3_bucket.url}/data/train"
    with pytest.raises(ManifestError, match=f"no manifest at {url}/manifest.json"):
        open_remote(url)
    filesystem.put(f"{built}/", f"{s3_bucket.url}/data/train/", recursive=True)
    filesystem.rm(f"{s3_bucket.url}/data/train/shard-000001.tar")
    with pytest.raises(ShardError, match="shard-000001.tar"):
        list(open_remote(url))
