"""Files of sources: listed page by page, sizes asked for side by side, and little held of each."""

import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.shards.fields import ABSENT
from feeder.shards.names import PathTable
from feeder.shards.sources import files, folders, open_source
from feeder.shards.sources.files import file_sizes
from feeder.shards.storage import RemoteFolder
from feeder.shards.table import UNREADABLE
from tests.servers.s3_server import S3Bucket

NAMES = ["a-b/1.jpg", "a/2.jpg", "a/deep/3.png", "a/b.jpg", "b/.hidden.jpg", ".no/4.jpg", "b/5.jpg", "b/notes.txt"]


@pytest.fixture
def paged(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder behind S3 whose listing comes two objects a page."""
    files, root = fsspec.url_to_fs(f"{s3_bucket.url}/data")
    for number, name in enumerate(NAMES):
        files.pipe_file(f"{root}/{name}", bytes(number))
    files.pipe_file(f"{root}/b/", b"")  # what some programs make to show a folder
    call = type(files).call_s3

    def small_pages(self: Any, method: str, *args: Any, **arguments: Any) -> Any:
        return call(self, method, *args, **arguments, **({"MaxKeys": 2} if method.startswith("list") else {}))

    monkeypatch.setattr(type(files), "call_s3", small_pages)
    return f"{s3_bucket.url}/data"


def test_a_listing_by_pages_is_that_of_a_local_folder(paged: str, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(number))
    (remote,), (local,) = open_source(paged), open_source(tmp_path)
    assert list(remote.names) == list(local.names) == ["a/2.jpg", "a/b.jpg", "a/deep/3.png", "a-b/1.jpg", "b/5.jpg"]
    assert remote.stored["image"].sizes.tolist() == local.stored["image"].sizes.tolist() == [1, 3, 2, 0, 6]
    assert (remote.labels.tolist(), remote.classes) == (local.labels.tolist(), local.classes)


def test_sizes_come_from_the_pages_of_a_folder(paged: str) -> None:
    wanted = ["a/2.jpg", "a/b.jpg", "a/2.jpg", "a/deep", *(f"a/gone-{number}.jpg" for number in range(6)), "b/5.jpg"]
    assert file_sizes(paged, wanted).tolist() == [1, 3, 1, *[UNREADABLE] * 7, 6]


def test_sizes_are_those_of_files_asked_for_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCAL_FILES", 7)
    paths: list[str | None] = []
    for number in range(100):
        (tmp_path / str(number)).write_bytes(bytes(number))
        paths += [str(number), f"gone-{number}", None, str(tmp_path / str(number)), ".", "zero\0byte"]
    expected = [[number, UNREADABLE, ABSENT, number, UNREADABLE, UNREADABLE] for number in range(100)]
    assert file_sizes(str(tmp_path), iter(paths), absent=ABSENT).tolist() == [size for row in expected for size in row]
    assert file_sizes(str(tmp_path), []).tolist() == []


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["a", "a/b", "a-b", "a/b/c"])
    )
)
def test_paths_are_ordered_folder_by_folder(paths: list[str]) -> None:
    table = PathTable(paths)
    assert list(table.take(table.order())) == sorted(paths, key=lambda path: path.replace("/", "\0").encode())


def test_little_is_held_of_each_object_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """45.5 million objects must fit: fsspec's own listing takes more than a kilobyte of each."""
    count = 50_000

    class Store:
        req_kw = None

        def split_path(self, url: str) -> tuple[str, str, None]:
            return "bucket", "data", None

        def call_s3(self, method: str, *_: object, ContinuationToken: str = "0", **__: object) -> dict[str, Any]:  # noqa: N803 - S3's own spelling
            numbers = range(int(ContinuationToken), min(int(ContinuationToken) + 1000, count))
            page = [{"Key": f"data/class-{n % 100:02d}/image-{n:09d}.jpg", "Size": n} for n in numbers]
            return {"Contents": page, "IsTruncated": numbers.stop < count, "NextContinuationToken": str(numbers.stop)}

    monkeypatch.setattr(RemoteFolder, "filesystem", lambda folder: Store())
    tracemalloc.start()
    (table,) = folders.scan_source("s3://bucket/data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(table), len(table.classes), int(table.stored["image"].sizes.sum())) == (count, 100, sum(range(count)))
    assert peak / count < 300
