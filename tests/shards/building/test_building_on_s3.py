"""Builds whose destination is a real S3 server, also one that dies in the middle of an upload and comes back."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.destinations import remote
from feeder.shards.errors import DestinationError, ResumeError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.tools.main import main
from tests.images import write_image_folder
from tests.servers.cut_connection import Relay, relay
from tests.servers.s3_server import S3Bucket, S3Server

OPTIONS = BuildOptions(shard_samples=6)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def objects_of(url: str) -> dict[str, bytes]:
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def uploads_of(url: str) -> list[Any]:
    files, root = fsspec.url_to_fs(url)
    return list(files.list_multipart_uploads(root.split("/")[0]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two splits and a bad image."""
    write_image_folder(tmp_path / "images" / "train")
    write_image_folder(tmp_path / "images" / "val", per_class=2)
    (tmp_path / "images" / "val" / "bee" / "z.jpg").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.mark.parametrize("format", ["tar", "arrow"])
def test_the_objects_are_the_files_of_a_local_build(
    source: Path, tmp_path: Path, s3_bucket: S3Bucket, format: str
) -> None:
    options = BuildOptions(shard_samples=6, format=format)
    build(source, tmp_path / "local", options)
    url = f"{s3_bucket.url}/some/out"
    report = build(source, url, options, workers=2)
    assert objects_of(url) == files_of(tmp_path / "local")
    assert [dataset.path for dataset in report.datasets] == [f"{url}/train", f"{url}/val"]
    assert report.bad_path == f"{url}/bad-images.jsonl"
    assert verify(f"{url}/train", "full").problems == []
    assert open_dataset(f"{url}/train").describe(np.arange(36)).keys
    with pytest.raises(DestinationError, match=f"^destination {url} is not empty: it holds "):
        build(source, url, options)


def test_the_command_writes_to_urls(source: Path, s3_bucket: S3Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{s3_bucket.url}/out"
    assert main(["build", str(source), url, "--dry-run", "-q"]) == 0
    assert f"dataset  {url}/train" in capsys.readouterr().out.splitlines()
    assert objects_of(url) == {}
    assert main(["build", str(source), url, "--shard-samples", "6", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"dataset  {url}/train" in lines
    assert f"1 bad image was set aside, listed in {url}/bad-images.jsonl:" in lines
    assert lines[-1] == f"next: feeder stream {url}/train"


def test_a_killed_build_is_gone_on_with(source: Path, tmp_path: Path, s3_bucket: S3Bucket) -> None:
    build(source, tmp_path / "local", OPTIONS)
    url = f"{s3_bucket.url}/out"
    script = """
        import os, signal, sys
        from feeder.shards.building.writing import BuildOptions, build
        left = int(sys.argv[3])
        def advance(samples, *, size_bytes):
            global left
            left -= samples
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        build(sys.argv[1], sys.argv[2], BuildOptions(shard_samples=6), start=lambda total: advance)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(source), url]
    for samples in ("20", "3"):
        assert subprocess.run([*command, samples], check=False).returncode == -signal.SIGKILL
    assert "manifest.json" not in objects_of(f"{url}/train")
    with pytest.raises(ResumeError, match="holds an interrupted build with other options: seed was 0, now it is 1"):
        build(source, url, BuildOptions(shard_samples=6, seed=1))
    assert build(source, url, OPTIONS).resumed_shards == 3
    assert objects_of(url) == files_of(tmp_path / "local")


def test_two_builders_at_one_destination(source: Path, tmp_path: Path, s3_bucket: S3Bucket) -> None:
    url = f"{s3_bucket.url}/out"
    build(source, tmp_path / "local", OPTIONS)

    def start(total: int) -> Callable[..., None]:
        with pytest.raises(DestinationError, match=f"^destination {url} is in use by another process of shardfeed "):
            build(source, url, OPTIONS)
        return lambda samples, size_bytes: None

    build(source, url, OPTIONS, start=start)
    assert objects_of(url) == files_of(tmp_path / "local")


@pytest.fixture
def wire(s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """What ``s3://`` URLs go through from here on; without the many repetitions that a dead server costs."""
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with relay(int(s3_server.endpoint_url.rpartition(":")[2])) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        fsspec.filesystem("s3").clear_instance_cache()
        yield between
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Nine images of 2 MB each."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(9):
        noise = np.random.default_rng(number).bytes(840 * 840 * 3)
        (folder / f"{number}.ppm").write_bytes(b"P6 840 840 255\n" + noise)
    return folder


@pytest.mark.parametrize("cut_at_mb", [0.001, 3, 9.5, 12, 19.0825])
def test_a_server_that_dies_in_an_upload_and_comes_back(
    large: Path, tmp_path: Path, s3_bucket: S3Bucket, wire: Relay, monkeypatch: pytest.MonkeyPatch, cut_at_mb: float
) -> None:
    """Three shards of 6.3 MB, each in two parts; the wire is cut at various places."""
    monkeypatch.setattr(remote, "PART_BYTES", 5 << 20)
    options = BuildOptions(shard_samples=3)
    build(large, tmp_path / "local", options)
    url = f"{s3_bucket.url}/out"
    wire.cut_after(int(cut_at_mb * 1e6))
    with pytest.raises(DestinationError) as caught:
        build(large, url, options)
    assert str(caught.value).startswith(f"cannot write {url}")
    assert str(caught.value).endswith("; check the connection and the permissions there, or choose another destination")
    if cut_at_mb > 1:
        assert caught.value.__notes__ == ["what was finished is kept: run the same command again to go on"]
    wire.mend()
    if cut_at_mb < 19:
        assert "manifest.json" not in objects_of(url)
    report = build(large, url, options)
    assert report.resumed_shards == int(cut_at_mb / 6.36)
    assert uploads_of(url) == []
    assert objects_of(url) == files_of(tmp_path / "local")
