"""Changes of datasets among files of others: what fails or is killed removes what it wrote, and nothing else."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feeder.shards.adoption.adopting import adopt
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.dropping import drop
from feeder.shards.changing.generations import Change, change_dataset
from feeder.shards.changing.journal import JOURNAL_NAME, Journal
from feeder.shards.dataset.contents import list_files
from feeder.shards.dataset.manifest import MANIFEST_NAME, load_manifest, save_manifest, sealed
from feeder.shards.destinations.lease import Lease
from feeder.shards.errors import DestinationError, ManifestError, SourceError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.storage import LocalFolder
from tests.images import write_image_folder
from tests.servers.s3_server import S3Bucket
from tests.shards.changing.test_generations import files_of


@pytest.fixture
def archives(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of tars of which two are adopted in place; all else belongs to its user, whatever it is called."""
    build(image_folder, tmp_path / "built", BuildOptions(shard_samples=9))
    folder = tmp_path / "archives"
    (folder / "columns").mkdir(parents=True)
    for number in range(4):
        shutil.copy(tmp_path / "built" / f"shard-{number:06d}.tar", folder)
    adopt(str(folder / "shard-{000000..000001}.tar"), folder)
    shutil.copytree(tmp_path / "built", folder / "nested")
    drop(folder / "nested", ["ant/ant-00"])
    mine = (
        "shard-000000.g000001.tar",
        "shard-000000.g000009.idx.arrow",
        "shard-000002.g000001.idx.arrow",
        "shard-000002.idx.arrow",
        "shard-000007.bad.jsonl",
        "bad-images.g000001.jsonl",
        "columns/mine.01234567.arrow",
        "columns/column-mine.tmp",
        "other/shard-000000.g000001.idx.arrow",
    )
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine")
    return folder


def fail(folder: Path) -> None:
    with pytest.raises(SourceError, match="^1 of 1 keys are of no sample of "):
        drop(folder, ["nobody"])


def fail_late(folder: Path) -> None:
    def never(*_: object, **__: object) -> None:
        raise DestinationError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Change, "commit", never)
        with pytest.raises(DestinationError, match="^no space$"):
            annotate(folder, pa.table({"key": ["ant/ant-01"], "x": [1]}))
        with pytest.raises(DestinationError, match="^no space$"):
            drop(folder, open_dataset(folder).describe(np.array([0, 12])).keys)


def stopped(folder: Path, *names: str) -> None:
    """Begin a change, let others write files, and fail."""
    with change_dataset(folder):
        for name in names:
            (folder / name).write_bytes(b"mine")
        raise ZeroDivisionError


@pytest.mark.parametrize("change", [fail, fail_late])
def test_a_change_that_fails_leaves_the_files_of_others(archives: Path, change: Callable[[Path], None]) -> None:
    before = files_of(archives)
    change(archives)
    assert files_of(archives) == before


def test_an_adopted_folder_keeps_archives_that_come_meanwhile(archives: Path) -> None:
    before = files_of(archives)
    with pytest.raises(ZeroDivisionError):
        stopped(archives, "shard-000004.tar", "shard-000001.g000001.tar")
    assert files_of(archives) == {**before, "shard-000004.tar": b"mine", "shard-000001.g000001.tar": b"mine"}


# Changes folders, each in a process of its own, which kills itself at the next step; prints whether it did.
KILLED = """
    import os, signal, sys
    import numpy as np
    import pyarrow as pa
    from feeder.shards.changing.annotating import annotate
    from feeder.shards.changing.dropping import drop
    from feeder.shards.reading.opening import open_dataset
    scenario, *folders = sys.argv[1:]
    def counted(function):
        def call(*arguments, **options):
            global steps
            steps -= 1
            if steps < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
    for steps, folder in enumerate(folders):
        if (child := os.fork()) == 0:
            keys = open_dataset(folder).describe(np.array([0, 12])).keys
            if scenario == "drop":
                drop(folder, keys)
            else:
                annotate(folder, pa.table({"key": keys, "x": [1, 2]}))
            os._exit(0)
        print(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("scenario", ["drop", "annotate"])
def test_a_change_killed_at_any_step_is_cleaned_up_and_nothing_else(
    archives: Path, tmp_path: Path, scenario: str
) -> None:
    before = files_of(archives)
    folders = [shutil.copytree(archives, tmp_path / f"killed-{step}") for step in range(30)]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), scenario, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    killed = done.stdout.split()
    assert killed == sorted(killed, reverse=True)
    assert 10 < killed.count("True") < 30
    for folder in folders:
        uncommitted = load_manifest(folder).generation == 0
        fail(folder)
        left = files_of(folder)
        assert ".changing" not in left
        assert JOURNAL_NAME not in left
        if uncommitted:
            assert left == before
        else:
            assert {name: left[name] for name in before if name != MANIFEST_NAME} == {
                name: data for name, data in before.items() if name != MANIFEST_NAME
            }


def test_files_of_others_are_not_advised_to_be_removed(archives: Path) -> None:
    """What verification takes for ours among archives of others is only what carries a generation or a digest."""
    for note in verify(archives).notes:
        assert ".tar " not in note
        assert "/shard-000002.idx.arrow" not in note
        assert "bad" not in note


def test_a_killed_change_without_a_note_takes_only_what_carries_its_generation(archives: Path) -> None:
    before = files_of(archives)
    for name in (".changing", "shard-000000.g000001.idx.arrow", "manifest.json.tmp"):
        (archives / name).write_bytes(b"x")
    fail(archives)
    assert files_of(archives) == before


def test_datasets_below_are_not_walked_into(archives: Path) -> None:
    assert not any(name.startswith("nested/") for name in list_files(LocalFolder(str(archives))))


def test_a_note_that_was_cut_is_none(tmp_path: Path) -> None:
    journal = Journal(generation=3, before=frozenset({"b", "a"}), first_shard=7, new_shards=2, purged=("c",))
    assert Journal.parse(journal.encoded()) == journal
    for data in (b"", b"[]", b"{}", journal.encoded()[:-9], journal.encoded().replace(b"3", b'"x"', 1)):
        assert Journal.parse(data) is None


def test_an_earlier_generation_that_cannot_be_read_stops_a_purge_alone(image_folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(shard_samples=9))
    drop(dataset, ["ant/ant-00"])
    drop(dataset, ["ant/ant-01"])
    (dataset / "generations" / "000000.json").write_bytes(b"{")
    before = files_of(dataset)
    with pytest.raises(ManifestError, match="000000.json is not whole JSON"):
        drop(dataset, ["ant/ant-02"], purge=True)
    assert files_of(dataset) == before
    with pytest.raises(ZeroDivisionError):
        stopped(dataset, "shard-000001.g000003.idx.arrow")
    assert files_of(dataset) == before
    assert drop(dataset, ["ant/ant-02"]).manifest.generation == 3


@pytest.fixture
def remote(image_folder: Path, tmp_path: Path, s3_bucket: S3Bucket) -> str:
    import fsspec

    build(image_folder, tmp_path / "local", BuildOptions(shard_samples=9))
    files, _ = fsspec.core.url_to_fs(s3_bucket.url)
    files.put(f"{tmp_path}/local/", f"{s3_bucket.url}/dataset/", recursive=True)
    return f"{s3_bucket.url}/dataset"


def test_who_lost_the_lease_neither_commits_nor_cleans_up(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    files, _ = fsspec.core.url_to_fs(remote)
    leases: list[Lease] = []
    take = Lease.take

    def taken(lease: Lease) -> bool:
        leases.append(lease)
        return take(lease)

    def lose() -> None:
        with change_dataset(remote) as change:
            marker = json.loads(files.cat_file(f"{remote}/.changing"))
            files.pipe_file(f"{remote}/.changing", json.dumps({**marker, "owner": "another"}).encode())
            files.pipe_file(f"{remote}/shard-000000.g000001.idx.arrow", b"of the winner")
            leases[0].renew()
            change.commit(change.parent.shards)

    monkeypatch.setattr(Lease, "take", taken)
    with pytest.raises(DestinationError, match="was taken over by another"):
        lose()
    files.invalidate_cache()
    assert files.cat_file(f"{remote}/shard-000000.g000001.idx.arrow") == b"of the winner"
    assert files.exists(f"{remote}/.changing")
    assert not files.exists(f"{remote}/generations/000000.json")
    assert load_manifest(remote).generation == 0


def test_of_two_commits_behind_a_url_one_wins(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other put its manifest between the last look and the request."""
    import fsspec

    files, _ = fsspec.core.url_to_fs(remote)
    looks = []

    def check() -> None:
        looks.append(1)
        if len(looks) == 2:  # after the digest was compared
            files.pipe_file(f"{remote}/{MANIFEST_NAME}", files.cat_file(f"{remote}/{MANIFEST_NAME}") + b" ")

    def lose() -> None:
        with change_dataset(remote) as change:
            monkeypatch.setattr(change, "check", check)
            change.commit(change.parent.shards)

    with pytest.raises(DestinationError) as caught:
        lose()
    assert str(caught.value).startswith(f"dataset {remote} was changed by another process meanwhile: its digest is ")
    assert load_manifest(remote).generation == 0
    drop(remote, ["ant/ant-00"])
    assert load_manifest(remote).generation == 1


LIMITED = """
    import resource, sys
    import pyarrow as pa
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    from feeder.shards.changing.annotating import annotate
    from feeder.shards.changing.appending import append
    from feeder.shards.changing.dropping import drop
    from feeder.shards.sources import open_source
    from feeder.shards.building.writing import build
    dataset, more, out = sys.argv[1:]
    annotate(dataset, pa.table({"key": ["ant/ant-00"], "x": [1]}))
    append(dataset, open_source(more)[0])
    drop(dataset, ["ant/ant-01", "bee/bee-20", "cat/cat-03"])
    drop(dataset, ["ant/ant-02", "bee/bee-05"], purge=True)
    build(dataset, out)
"""


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """With consolidated columns and without."""
    write_image_folder(tmp_path / "images", per_class=27)
    more = write_image_folder(tmp_path / "more", classes=("dog",), per_class=2)
    build(tmp_path / "images", tmp_path / "built", BuildOptions(shard_samples=1))
    plain = shutil.copytree(tmp_path / "built", tmp_path / "plain")
    save_manifest(sealed(dataclasses.replace(load_manifest(plain), columns={})), plain)
    for dataset in (tmp_path / "built", plain):
        out = tmp_path / f"converted-{dataset.name}"
        command = [sys.executable, "-c", textwrap.dedent(LIMITED), *map(str, (dataset, more, out))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert load_manifest(out).num_samples == 81 + 2 - 5
