"""Building datasets: what comes out, and that nothing comes out when it must not."""

import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feeder.errors import ConfigError
from feeder.shards.errors import DestinationError, SourceError
from feeder.shards.reading import open_dataset
from feeder.shards.writing import BuildOptions, build
from tests.images import encoded

SMALL = BuildOptions(shard_samples=5)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_without_shuffling_the_order_is_that_of_the_names(image_folder: Path, tmp_path: Path) -> None:
    report = build(image_folder, tmp_path / "out", BuildOptions(shuffle=False))
    manifest = report.datasets[0].manifest
    assert (manifest.shuffled, manifest.shuffle_seed) == (False, None)
    keys = open_dataset(tmp_path / "out").describe(np.arange(36)).keys
    assert keys == sorted(keys)


def test_seeds_change_the_order_and_nothing_else(image_folder: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1, -5):
        build(image_folder, tmp_path / str(seed), BuildOptions(seed=seed))
        orders.append(open_dataset(tmp_path / str(seed)).describe(np.arange(36)).keys)
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_the_bytes_are_pinned(tmp_path: Path) -> None:
    """The same input gives the same dataset on every machine, and in every later version."""
    source = tmp_path / "source"
    for number, name in enumerate(("a/1.ppm", "a/2.ppm", "b/3 x.ppm")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"P6 2 1 255\n" + bytes(range(number, number + 6)))
    shards = build(source, tmp_path / "out").datasets[0].manifest.shards
    assert shards.digests == ["59bec84ad4e797bff85f0b718083c37f"]


def test_shards_keep_to_their_size(image_folder: Path, tmp_path: Path) -> None:
    limit = 12_000
    report = build(image_folder, tmp_path / "out", BuildOptions(shard_bytes=limit))
    sizes = report.datasets[0].manifest.shards.size_bytes
    assert sizes.max() <= limit
    assert len(sizes) > 3
    tiny = build(image_folder, tmp_path / "tiny", BuildOptions(shard_bytes=1))
    assert tiny.datasets[0].manifest.shards.samples.tolist() == [1] * 36


def bad_images(folder: Path) -> dict[str, str]:
    """Write one bad image of each kind into a folder; return causes by name."""
    good = encoded(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"<html>not found</html>")
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "header only.jpg").write_bytes(good[:30])
    huge = bytearray(encoded(1, format="PNG"))
    huge[16:24] = struct.pack(">II", 50_000, 50_000)
    (folder / "huge.png").write_bytes(bytes(huge))
    (folder / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "io-error.jpg").symlink_to("/proc/self/mem")
    with open(folder / "vast.jpg", "wb") as file:
        file.truncate(3 << 30)  # a hole: it takes no space
    return {
        "bad/cut.jpg": "truncated", "bad/dangling.jpg": "unreadable", "bad/empty.jpg": "empty",
        "bad/header only.jpg": "truncated", "bad/huge.png": "too large", "bad/io-error.jpg": "unreadable",
        "bad/pipe.jpg": "unreadable", "bad/text.jpg": "not an image", "bad/vast.jpg": "too large",
    }  # fmt: skip


def test_bad_images_are_set_aside_and_listed(image_folder: Path, tmp_path: Path) -> None:
    good = build(image_folder, tmp_path / "good", BuildOptions(shuffle=False)).datasets[0].manifest
    causes = bad_images(image_folder / "bad")
    report = build(image_folder, tmp_path / "out", BuildOptions(shuffle=False))
    assert {image.source: image.cause for image in report.bad} == causes
    assert report.bad_by_cause == {"truncated": 2, "unreadable": 3, "empty": 1, "too large": 2, "not an image": 1}
    assert report.bad_path == tmp_path / "out" / "bad-images.jsonl"
    lines = [json.loads(line) for line in report.bad_path.read_text().splitlines()]
    assert lines[0] == {
        "source": "bad/cut.jpg",
        "cause": "truncated",
        "reason": f"its {(image_folder / 'bad' / 'cut.jpg').stat().st_size} bytes lack the end of the jpeg image",
    }
    assert [line["source"] for line in lines] == sorted(causes)
    reasons = {line["source"]: line["reason"] for line in lines}
    assert reasons["bad/dangling.jpg"] == "it cannot be read: No such file or directory"
    assert reasons["bad/vast.jpg"] == "it has 3221225472 bytes, more than the 2147479552 allowed"
    assert reasons["bad/pipe.jpg"] == "it cannot be read: not a regular file"
    assert report.num_samples == 36
    assert report.datasets[0].manifest.classes == ("ant", "bad", "bee", "cat")
    assert good.num_samples == 36


def test_a_build_with_too_many_bad_images_stops(image_folder: Path, tmp_path: Path) -> None:
    for number in range(11):
        (image_folder / "bee" / f"z{number:02d}.jpg").write_bytes(b"broken")
    with pytest.raises(SourceError) as caught:
        build(image_folder, tmp_path / "out", BuildOptions(shuffle=False))
    assert str(caught.value) == (
        f"too many bad images: 11 of 47 so far (11 not an image), such as {image_folder}/bee/z00.jpg: its first bytes "
        "(62 72 6f 6b 65 6e) are of no known image format; repair the source, or allow more than 10 with "
        "--max-bad-fraction (now 0.01)"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert build(image_folder, tmp_path / "out", BuildOptions(shuffle=False, max_bad_fraction=0.3)).num_samples == 36


def test_not_one_bad_image_is_allowed_if_the_fraction_is_zero(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "bee" / "z.jpg").write_bytes(b"broken")
    with pytest.raises(SourceError, match="^too many bad images: 1 of 37 so far"):
        build(image_folder, tmp_path / "out", BuildOptions(max_bad_fraction=0))


@pytest.mark.parametrize("workers", [1, 2])
def test_on_error_fail_stops_at_a_bad_image(image_folder: Path, tmp_path: Path, workers: int) -> None:
    (image_folder / "bee" / "z.jpg").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        build(image_folder, tmp_path / "out", BuildOptions(on_error="fail", shard_samples=5), workers=workers)
    assert str(caught.value) == (
        f"bad image {image_folder}/bee/z.jpg: it has no bytes; repair or remove it, or set bad images aside with "
        "--on-error skip"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    bad_images(tmp_path / "source" / "bad")
    with pytest.raises(SourceError) as caught:
        build(tmp_path / "source", tmp_path / "out")
    assert str(caught.value) == (
        f"no good image in {tmp_path}/source: all 9 are bad, 3 unreadable, 2 too large, 2 truncated, 1 empty, 1 not "
        "an image"
    )
    assert not (tmp_path / "out").exists()


def test_nothing_but_bad_images_in_one_split(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source / "train")
    for path in (source / "train" / "ant" / "bad.jpg", source / "val" / "ant" / "bad.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(SourceError) as caught:
        build(source, tmp_path / "out")
    assert str(caught.value) == f"no good image in {source}/val: all 1 are bad, 1 empty"


def test_files_that_differ_in_their_extension_alone_are_refused(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "ant" / "ant-00.png").write_bytes(encoded(1, format="PNG"))
    with pytest.raises(SourceError) as caught:
        build(image_folder, tmp_path / "out")
    assert str(caught.value) == (
        f"ant/ant-00.jpg and ant/ant-00.png in {image_folder} would both have the key 'ant/ant-00', because a key has "
        "no extension; rename or remove one of them"
    )
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_refused(image_folder: Path, tmp_path: Path) -> None:
    last = image_folder / "cat" / "cat-11.jpg"

    def start(total: int) -> Callable[[int], None]:
        last.write_bytes(last.read_bytes() + b"more")
        return lambda samples, size_bytes: None

    with pytest.raises(SourceError, match=r"cat-11.jpg changed while it was read: it had \d+ bytes and now"):
        build(image_folder, tmp_path / "out", start=start)
    assert not (tmp_path / "out").exists()


def test_a_file_that_vanishes_meanwhile_is_no_bad_image(image_folder: Path, tmp_path: Path) -> None:
    def start(total: int) -> Callable[[int], None]:
        (image_folder / "cat" / "cat-11.jpg").unlink()
        return lambda samples, size_bytes: None

    with pytest.raises(SourceError) as caught:
        build(image_folder, tmp_path / "out", start=start)
    assert str(caught.value) == (
        f"{image_folder}/cat/cat-11.jpg vanished while it was read; run the command again when the source is at rest"
    )
    assert not (tmp_path / "out").exists()


def test_destinations_that_cannot_be_used(image_folder: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("")
    link = tmp_path / "link"
    link.symlink_to(image_folder)
    same = f"source and destination are the same folder, {image_folder}; choose another destination"
    sentences = {
        image_folder: same,
        f"{image_folder}/../images/": same,
        link: same,
        image_folder / "ant" / "out": f"destination {image_folder}/ant/out is inside the source {image_folder}; choose "
        "one outside of it",
        tmp_path: f"source {image_folder} is inside the destination {tmp_path}; choose another destination",
        tmp_path / "file": f"destination {tmp_path}/file is a file, expected a folder that is empty or does not exist",
        full: f"destination {full} is not empty: it holds thesis.tex; choose another destination, or empty the folder "
        "yourself",
        "/proc/1/out": "cannot write /proc/1/out: No such file or directory; check its space and permissions, or "
        "choose another destination",
        "/dev/null/out": "cannot write /dev/null/out: Not a directory; check its space and permissions, or choose "
        "another destination",
    }
    for dest, sentence in sentences.items():
        before = files_of(tmp_path)
        with pytest.raises(DestinationError) as caught:
            build(image_folder, dest)
        assert str(caught.value) == sentence
        assert files_of(tmp_path) == before


def test_a_finished_dataset_is_never_overwritten(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(DestinationError) as caught:
        build(image_folder, tmp_path / "out")
    assert str(caught.value) == (
        f"destination {tmp_path}/out is not empty: it holds a finished dataset; choose another destination, or empty "
        "the folder yourself"
    )
    assert files_of(tmp_path / "out") == before


def test_options_that_cannot_be() -> None:
    for options in ({"shard_bytes": 0}, {"shard_samples": 0}, {"max_pixels": 0}, {"on_error": "x"}, {"seed": 2**63}):
        with pytest.raises(ConfigError):
            BuildOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="^max_bad_fraction is 1.5, expected a number from 0 to 1$"):
        BuildOptions(max_bad_fraction=1.5)


def test_tar_members_are_as_plain_as_can_be(image_folder: Path, tmp_path: Path) -> None:
    shutil.copy(image_folder / "bee" / "bee-00.jpg", image_folder / "bee" / "Bee (1).JPEG")
    (image_folder / "ant" / "really-a-png.jpg").write_bytes(encoded(1, format="PNG"))
    build(image_folder, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        members = archive.getmembers()
    assert len(members) == 76
    for member in members:
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert member.mode == 0o444
        assert not member.pax_headers
    names = [member.name for member in members]
    assert [name.rsplit(".", 1)[1] for name in names[::2]] == ["cls"] * 38
    assert "ant/really-a-png.png" in names
