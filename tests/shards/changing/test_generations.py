"""Generations of a dataset: claimed, committed, killed, purged."""

import dataclasses
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.appending import append
from feeder.shards.changing.dropping import drop
from feeder.shards.changing.generations import change_dataset
from feeder.shards.dataset.manifest import MANIFEST_NAME, encode_manifest, load_manifest, sealed
from feeder.shards.errors import DestinationError, ManifestError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import scan_source
from tests.images import write_image_folder
from tests.servers.s3_server import S3Bucket

KEYS = ["ant/ant-00", "bee/bee-03", "cat/cat-11"]


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7))
    return tmp_path / "dataset"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def content(dataset: str | Path) -> list[tuple[str, bytes]]:
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    reader.close()
    return list(zip(rows.keys, images, strict=True))


def test_a_generation_names_its_parent_and_older_ones_stay_readable(dataset: Path) -> None:
    contents = [content(dataset)]
    manifests = [load_manifest(dataset)]
    for key in KEYS:
        drop(dataset, [key])
        manifests.append(load_manifest(dataset))
        contents.append(content(dataset))
    assert [manifest.generation for manifest in manifests] == [0, 1, 2, 3]
    assert [manifest.parent for manifest in manifests] == [None, *(manifest.digest for manifest in manifests[:3])]
    for number in range(3):
        older = dataset / "generations" / f"{number:06d}.json"
        assert load_manifest(older) == manifests[number]
        assert content(older) == contents[number]
        assert verify(older, "full").problems == []
    assert verify(dataset, "full").problems == []
    assert [len(one) for one in contents] == [36, 35, 34, 33]
    assert contents[3] == [(key, image) for key, image in contents[0] if key not in KEYS]


def test_a_reader_keeps_the_generation_that_it_opened(dataset: Path) -> None:
    reader = open_dataset(dataset)
    before = content(dataset)
    drop(dataset, KEYS)
    rows, images = reader.read(np.arange(36))  # opens shards only now
    assert list(zip(rows.keys, images, strict=True)) == before


def test_no_file_of_a_generation_ever_changes(dataset: Path, tmp_path: Path) -> None:
    before = files_of(dataset)
    drop(dataset, KEYS)
    (tmp_path / "scores.csv").write_text("key,score\nant/ant-01,1\n")
    annotate(dataset, tmp_path / "scores.csv")
    append(dataset, scan_source(write_image_folder(tmp_path / "more", classes=("dog",)))[0])
    after = files_of(dataset)
    assert {name: after[name] for name in before if name != MANIFEST_NAME} == {
        name: data for name, data in before.items() if name != MANIFEST_NAME
    }
    assert after["generations/000000.json"] == before[MANIFEST_NAME]
    assert ".changing" not in after


def test_two_changes_at_once(dataset: Path) -> None:
    with change_dataset(dataset), pytest.raises(DestinationError) as caught:
        drop(dataset, KEYS)
    assert str(caught.value) == f"dataset {dataset} is being changed by another process; wait until it has finished"
    drop(dataset, KEYS)
    assert load_manifest(dataset).generation == 1


def test_a_manifest_that_changed_meanwhile_is_not_overwritten(dataset: Path) -> None:
    """Who copies a manifest into the folder holds no claim."""
    other = sealed(dataclasses.replace(load_manifest(dataset), split="other"))
    with change_dataset(dataset) as change:
        (dataset / MANIFEST_NAME).write_bytes(encode_manifest(other))
        with pytest.raises(DestinationError) as caught:
            change.commit(change.parent.shards)
    assert str(caught.value) == (
        f"dataset {dataset} was changed by another process meanwhile: its digest is {other.digest}, expected "
        f"{change.parent.digest}; run the command again"
    )
    assert load_manifest(dataset) == other


def test_an_earlier_generation_is_never_changed(dataset: Path) -> None:
    drop(dataset, KEYS)
    older = dataset / "generations" / "000000.json"
    with pytest.raises(ManifestError) as caught:
        drop(older, ["ant/ant-01"])
    assert str(caught.value) == f"{older} is an earlier generation, which never changes; name the dataset {dataset}"


def test_where_there_is_no_dataset_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="^no manifest at"):
        drop(tmp_path / "empty", KEYS)
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_error_removes_what_was_written(dataset: Path) -> None:
    def change_and_fail() -> None:
        with change_dataset(dataset) as change:
            assert change.reserve_shards(2) == 6
            for name in ("shard-000007.tar", "shard-000001.g000001.idx.arrow", "columns/x.01234567.arrow"):
                change.out.put(name, b"x")
            raise ZeroDivisionError

    before = files_of(dataset)
    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert files_of(dataset) == before


def test_files_of_others_stay(dataset: Path) -> None:
    (dataset / "README.md").write_text("mine")
    (dataset / "columns" / "notes.txt").write_text("mine")
    with pytest.raises(ZeroDivisionError), change_dataset(dataset):
        raise ZeroDivisionError
    drop(dataset, KEYS, purge=True)
    assert (dataset / "README.md").read_text() == (dataset / "columns" / "notes.txt").read_text() == "mine"


def test_a_purge_leaves_nothing_of_what_was_dropped(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("key,caption\n" + "".join(f"{key},the secret of {key}\n" for key in KEYS))
    annotate(dataset, tmp_path / "captions.csv")
    images = dict(content(dataset))
    drop(dataset, KEYS[:1])
    drop(dataset, KEYS[1:2])
    report = drop(dataset, KEYS[2:], purge=True)
    assert report.gone == [0, 1, 2, 3]
    for data in files_of(dataset).values():
        for key in KEYS:
            assert key.encode() not in data
            assert images[key] not in data
            assert f"the secret of {key}".encode() not in data
    assert verify(dataset, "full").problems == []
    assert dict(content(dataset)) == {key: image for key, image in images.items() if key not in KEYS}
    with pytest.raises(ManifestError) as caught:
        open_dataset(dataset / "generations" / "000001.json")
    assert str(caught.value) == (
        f"{dataset}/generations/000001.json is gone: generation 4 removed samples of it for good; open the dataset "
        "itself, or a later generation"
    )


def test_a_purge_spares_what_it_does_not_concern(image_folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(shard_samples=12, shuffle=False))
    append(dataset, scan_source(write_image_folder(tmp_path / "more", classes=("dog",)))[0])
    before = files_of(dataset)
    report = drop(dataset, ["dog/dog-03"], purge=True)
    assert (report.rewritten, report.gone) == (1, [1])
    assert content(dataset / "generations" / "000000.json") == content(dataset)[:36]
    after = files_of(dataset)
    assert {name for name in before if name.startswith("shard-") and name not in after} == {
        "shard-000003.tar",
        "shard-000003.idx.arrow",
    }
    assert {name for name in after if name not in before and not name.startswith("columns/")} == {
        "generations/000001.json",  # the note that it is gone
        "shard-000003.g000002.tar",
        "shard-000003.g000002.idx.arrow",
    }


def test_a_shard_that_is_left_empty_goes_with_a_purge_of_its_own(image_folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(shard_samples=12, shuffle=False))
    drop(dataset, [f"bee/bee-{number:02d}" for number in range(12)])
    assert load_manifest(dataset).shards.names == ["shard-000000.tar", "shard-000002.tar"]
    assert verify(dataset, "full").problems == []
    assert (dataset / "shard-000001.tar").exists()
    report = drop(dataset, [], purge=True)
    assert (report.dropped, report.rewritten, report.gone) == (0, 0, [0])
    assert load_manifest(dataset).generation == 1
    assert not (dataset / "shard-000001.tar").exists()
    assert len(content(dataset)) == 24


# Each scenario changes a dataset, in a process of its own for each folder, which kills itself at a given step. Steps
# are calls of fsync, rename and unlink, and of a progress function. Prints the steps left, −1 where it was killed.
KILLED = """
    import os, signal, sys
    from feeder.shards.changing.annotating import annotate
    from feeder.shards.changing.appending import append
    from feeder.shards.changing.dropping import drop
    from feeder.shards.sources import scan_source
    scenario, more, *places = sys.argv[1:]
    def step(*_, **__):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def counted(function):
        def call(*arguments, **options):
            step()
            return function(*arguments, **options)
        return call
    os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
    for place in places:
        dataset, _, steps = place.rpartition(":")
        steps = int(steps)
        if (child := os.fork()) == 0:
            {"append": lambda: append(dataset, scan_source(more)[0], start=lambda total: step),
             "annotate": lambda: annotate(dataset, more + ".csv"),
             "purge": lambda: drop(dataset, ["ant/ant-01", "bee/bee-05"], purge=True),
             "drop": lambda: drop(dataset, ["ant/ant-01", "bee/bee-05"])}[scenario]()
            print(steps, flush=True)
            os._exit(0)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            print(-1, flush=True)
"""


def run_killed(scenario: str, more: Path, places: dict[Path, int]) -> list[int]:
    """Run a scenario in folders, each with the number of steps that it has left; return how many were left over."""
    arguments = [f"{folder}:{steps}" for folder, steps in places.items()]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), scenario, str(more), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("scenario", ["append", "annotate", "drop", "purge"])
def test_a_change_killed_at_any_step_leaves_a_whole_dataset_and_the_next_cleans_up(
    tmp_path: Path, scenario: str
) -> None:
    start, more = tmp_path / "start", tmp_path / "more"
    write_image_folder(tmp_path / "images", per_class=6)
    write_image_folder(more, classes=("dog",), per_class=3)
    (tmp_path / "more.csv").write_text("key,score\nant/ant-01,1\n")
    build(tmp_path / "images", start, BuildOptions(shard_samples=5))
    drop(start, ["cat/cat-00"])
    undisturbed = shutil.copytree(start, tmp_path / "undisturbed")
    (left,) = run_killed(scenario, more, {undisturbed: 1000})
    expected = {1: content(start), 2: content(undisturbed)}
    killed = {shutil.copytree(start, tmp_path / f"killed-{step}"): step for step in range(1000 - left)}
    assert run_killed(scenario, more, killed) == [-1] * len(killed)
    again = {}
    for out in killed:
        generation = load_manifest(out).generation
        assert verify(out, "full").problems == []
        assert content(out) == expected[generation]
        if generation == 1:
            again[out] = 1000
        elif scenario == "purge":
            drop(out, [], purge=True)
        else:
            with change_dataset(out):
                pass
    assert -1 not in run_killed(scenario, more, again)
    for out, step in killed.items():
        assert files_of(out) == files_of(undisturbed), f"killed at step {step}"


@pytest.mark.parametrize("format", ["tar", "arrow"])
def test_changes_of_a_dataset_behind_a_url(dataset: Path, s3_bucket: S3Bucket, tmp_path: Path, format: str) -> None:
    import fsspec

    local = tmp_path / format
    build(tmp_path / "images", local, BuildOptions(shard_samples=7, format=format))
    url = f"{s3_bucket.url}/{format}"
    files, _ = fsspec.core.url_to_fs(url)
    files.put(f"{local}/", f"{url}/", recursive=True)
    (tmp_path / "scores.csv").write_text("key,score\nant/ant-01,1\n")
    more = scan_source(write_image_folder(tmp_path / "more", classes=("dog",)))[0]
    for place in (url, local):
        annotate(place, tmp_path / "scores.csv")
        drop(place, KEYS[:1])
        append(place, more)
    assert verify(url, "full").problems == []
    assert load_manifest(url) == load_manifest(local)
    assert content(url) == content(local)
    assert content(f"{url}/generations/000000.json") == content(local / "generations" / "000000.json")
    with (
        change_dataset(url),
        pytest.raises(DestinationError, match=f"^destination {url} is in use by another process of shardfeed"),
    ):
        drop(url, KEYS[1:])
    for place in (url, local):
        drop(place, KEYS[1:], purge=True)
    files.invalidate_cache()
    root = url.removeprefix("s3://") + "/"
    assert {name.removeprefix(root): files.cat(name) for name in files.find(url)} == files_of(local)
