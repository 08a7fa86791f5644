"""A repaired dataset has no problem any more, holds every sample that was whole, and lists every other one."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from feeder import ImageDataset, presets
from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.changing.dropping import drop
from feeder.shards.dataset.manifest import dataset_digest, load_manifest, save_manifest, sealed
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.errors import DestinationError, ManifestError, ShardError
from feeder.shards.formats.known import WRITTEN_FORMATS
from feeder.shards.reading.opening import load_index, open_dataset
from feeder.shards.repairing.repair import repair
from feeder.shards.repairing.verify import verify
from feeder.shards.storage import LocalFolder
from tests.contracts.formats import files_of, flip
from tests.images import encoded
from tests.tables import write_table

TRANSFORM = presets.imagenet_eval(16)

Samples = dict[str, tuple[bytes, int]]


@pytest.fixture(params=WRITTEN_FORMATS)
def dataset(request: pytest.FixtureRequest, image_folder: Path, tmp_path: Path) -> Path:
    """36 samples in six shards."""
    options = BuildOptions(format=request.param, shard_samples=6, shuffle=False)
    build(image_folder, tmp_path / "dataset", options)
    return tmp_path / "dataset"


@pytest.fixture(params=WRITTEN_FORMATS)
def rich(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """24 samples with every type of field, in two shards."""
    options = BuildOptions(format=request.param, shard_samples=12, shuffle=False)
    build_tables([write_table(tmp_path / "source")], tmp_path / "rich", options)
    return tmp_path / "rich"


def shard(dataset: Path, number: int) -> Path:
    return dataset / f"shard-{number:06d}.{load_format(dataset)}"


def load_format(dataset: Path) -> str:
    return "tar" if list(dataset.glob("*.tar")) else "arrow"


def samples(dataset: Path) -> Samples:
    """All samples by key: image and label."""
    reader = open_dataset(dataset)
    rows, images = reader.read(np.arange(reader.manifest.num_samples))
    return dict(zip(rows.keys, zip(images, rows.labels.tolist(), strict=True), strict=True))


def lost_keys(dataset: Path) -> list[str | None]:
    path = dataset / "lost-samples.jsonl"
    return [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else []


def assert_whole(dataset: Path) -> None:
    """Nothing is wrong, nothing is left to repair, and batches come."""
    assert verify(dataset, "full").problems == []
    files = files_of(dataset)
    again = repair(dataset, write=True)
    assert (again.sentences, again.lost) == ([], [])
    assert files_of(dataset) == files
    batches = list(ImageDataset(dataset, batch_size=4, shuffle=False, transform=TRANSFORM, arrays="numpy"))
    assert sum(int(batch["valid"].sum()) for batch in batches) == load_manifest(dataset).num_samples


def unharmed(dataset: Path, before: dict[str, bytes]) -> None:
    """No file that was there is another now, but the manifest and those that had to be made again."""
    now = files_of(dataset)
    for name, data in before.items():
        if name != "manifest.json":
            assert now[name] == data, name


def test_nothing_to_repair(dataset: Path, rich: Path) -> None:
    for place in (dataset, rich):
        before = files_of(place)
        report = repair(place, write=True)
        assert (report.sentences, report.beyond, report.lost, report.written) == ([], [], [], None)
        assert files_of(place) == before


def test_a_plan_changes_nothing(dataset: Path) -> None:
    os.truncate(shard(dataset, 2), 4000)
    (dataset / "shard-000004.idx.arrow").unlink()
    before = files_of(dataset)
    report = repair(dataset)
    assert len(report.sentences) == 2
    assert report.written is None
    assert files_of(dataset) == before


def test_lost_and_damaged_indexes_come_back_byte_for_byte(dataset: Path, rich: Path) -> None:
    for place in (dataset, rich):
        before = files_of(place)
        (place / "shard-000000.idx.arrow").unlink()
        flip(place / "shard-000001.idx.arrow", 900)
        report = repair(place, write=True)
        assert report.sentences == [
            f"index shard-00000{n}.idx.arrow is lost or damaged: it is made again from its shard, byte for byte"
            for n in (0, 1)
        ]
        assert files_of(place) == before
        assert_whole(place)


def test_what_a_tar_does_not_hold_of_its_index_is_told(image_folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        (image_folder / "bee" / f"one more {number}.jpg").write_bytes(encoded(number))
    dataset = tmp_path / "dataset"
    build(image_folder, dataset, BuildOptions(shard_samples=13, shuffle=False))
    forget_columns(dataset)
    before, held = files_of(dataset), samples(dataset)
    (dataset / "shard-000001.idx.arrow").unlink()
    report = repair(dataset, write=True)
    assert report.sentences == [
        (
            "index shard-000001.idx.arrow is lost or damaged: a new one is made from its shard; the paths of the "
            "sources are lost, and their names in the shard stand for them"
        )
    ]
    assert report.lost == []
    assert samples(dataset) == held
    assert load_manifest(dataset).generation == 1
    del before["shard-000001.idx.arrow"]
    unharmed(dataset, before)
    assert_whole(dataset)


def forget_columns(dataset: Path) -> None:
    """Take the consolidated columns away."""
    shutil.rmtree(dataset / "columns", ignore_errors=True)
    save_manifest(sealed(dataclasses.replace(load_manifest(dataset), columns={})), dataset)


def test_samples_that_are_right_move_into_a_new_shard(dataset: Path, rich: Path) -> None:
    for place in (dataset, rich):
        held = samples(place)
        reader = open_dataset(place)
        index = load_index(LocalFolder(str(place)), reader.manifest, 1)
        flip(shard(place, 1), index.image.offsets[3] + 30)
        flip(shard(place, 1), index.image.offsets[5] + 200)
        before = files_of(place)
        report = repair(place, write=True)
        count = index.num_samples
        assert report.sentences == [
            (
                f"shard {shard(place, 1).name} was cut or altered: {count - 2} of its {count} samples are right, and "
                "go into a new shard"
            )
        ]
        gone = [index.keys[3], index.keys[5]]
        assert [sample.key for sample in report.lost] == gone == lost_keys(place)
        assert samples(place) == {key: sample for key, sample in held.items() if key not in gone}
        manifest = load_manifest(place)
        assert (manifest.generation, manifest.parent) == (1, reader.manifest.digest)
        assert manifest.shards.names[1] == f"shard-000001.g000001.{manifest.format}"
        assert manifest == report.manifest
        unharmed(place, before)
        assert_whole(place)


def test_all_fields_move(rich: Path) -> None:
    before = open_dataset(rich)
    index = load_index(LocalFolder(str(rich)), before.manifest, 1)
    flip(shard(rich, 1), index.image.offsets[0] + 30)
    expected = [number for number in range(24) if number != 12]
    columns = {name: before.values(np.array(expected), name) for name in ("label", "caption", "score", "votes", "safe")}
    (masks, boxes) = (before.read(np.array(expected[:12] + expected[13:]), field)[1] for field in ("mask", "boxes"))
    repair(rich, write=True)
    after = open_dataset(rich)
    assert after.manifest.fields == before.manifest.fields
    for name, values in columns.items():
        assert after.values(np.arange(23), name) == values
    kept = np.array([*range(12), *range(13, 23)])
    assert (after.read(kept, "mask")[1], after.read(kept, "boxes")[1]) == (masks, boxes)


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_a_cut_shard_keeps_what_stands_before_the_cut(rich: Path, tmp_path: Path, index_is_lost: bool) -> None:
    held = samples(rich)
    index = load_index(LocalFolder(str(rich)), load_manifest(rich), 1)
    keys = index.values("key")
    stored = [index.stored(field) for field in index.stored_fields]
    ends = [max(one.offsets[row] + max(one.sizes[row], 0) for one in stored) for row in range(12)]
    size = shard(rich, 1).stat().st_size
    for number, length in enumerate(range(size - 1, 0, -(size // 7))):
        place = tmp_path / f"cut-{number}"
        shutil.copytree(rich, place)
        os.truncate(shard(place, 1), length)
        if index_is_lost:
            (place / "shard-000001.idx.arrow").unlink()
        report = repair(place, write=True)
        whole = [key for key, end in zip(keys, ends, strict=True) if end <= length]
        got = samples(place)
        if index_is_lost:  # the last sample of a tar may lack members, and an Arrow file is read by whole batches
            assert set(got) <= {*whole, *(key for key in held if key not in keys)}
            assert len(whole) - 2 <= len(got) - 12 or load_format(place) == "arrow"
        else:
            assert list(got) == [key for key in held if key not in keys or key in whole]
        assert all(held[key] == sample for key, sample in got.items())
        assert len(got) + sum(sample.samples for sample in report.lost) == 24
        assert_whole(place)


def test_missing_shards_leave(dataset: Path) -> None:
    held = samples(dataset)
    shard(dataset, 0).unlink()
    shard(dataset, 3).unlink()
    (dataset / "shard-000003.idx.arrow").unlink()
    report = repair(dataset, write=True)
    assert report.sentences == [f"shard {shard(dataset, n).name} is missing: it leaves the dataset" for n in (0, 3)]
    assert sum(sample.samples for sample in report.lost) == 12
    assert [sample.key for sample in report.lost][:6] == [f"ant/ant-{n:02d}" for n in range(6)]
    assert samples(dataset) == dict(list(held.items())[6:18] + list(held.items())[24:])
    assert_whole(dataset)


# manifests


def test_a_lost_manifest_is_made_again(dataset: Path, rich: Path) -> None:
    for place in (dataset, rich):
        held = samples(place)
        before = load_manifest(place)
        names = before.classes
        (place / "manifest.json").unlink()
        report = repair(place, write=True, classes=names)
        (sentence,) = report.sentences
        assert sentence.startswith(f"{place}/manifest.json is missing: a new one is made, of {len(held)} samples; ")
        after = load_manifest(place)
        assert (after.classes, after.shards.names) == (names, before.shards.names)
        assert (after.shards.digests, after.shards.index_digests) == (
            before.shards.digests,
            before.shards.index_digests,
        )
        assert (after.generation, after.format) == (0, before.format)
        assert {name: field.type for name, field in after.fields.items()} == {
            name: field.type for name, field in before.fields.items()
        }
        assert samples(place) == held
        assert_whole(place)


def test_class_names_are_the_folders_of_the_sources_where_that_fits(dataset: Path, rich: Path) -> None:
    (dataset / "manifest.json").unlink()
    report = repair(dataset, write=True)
    assert load_manifest(dataset).classes == ("ant", "bee", "cat")
    assert "its class names are lost, and the folders of the sources stand for them" in report.sentences[0]
    (rich / "manifest.json").unlink()
    report = repair(rich, write=True)
    assert load_manifest(rich).classes == ("0", "1", "2")
    assert "its class names are lost; give them with --classes FILE" in report.sentences[0]


def test_a_damaged_manifest_is_made_again_byte_for_byte(dataset: Path) -> None:
    """Whatever byte of a shard's line, of the totals or of the layout is altered; or a cut anywhere behind the head."""
    path = dataset / "manifest.json"
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    begin = whole.index(b'"digest_algorithm"')
    for position in random.integers(begin, len(whole), 25).tolist():
        flip(path, position, int(random.integers(8)))
        assert repair(dataset, write=True).lost == []
        assert path.read_bytes() == whole, position
    for length in random.integers(begin, len(whole), 8).tolist():
        path.write_bytes(whole[:length])
        (sentence,) = repair(dataset, write=True).sentences
        assert sentence == f"{path} cannot be read: it is made again, byte for byte"
        assert path.read_bytes() == whole, length


def test_any_flipped_bit_of_a_manifest_leaves_all_samples(dataset: Path) -> None:
    path = dataset / "manifest.json"
    whole = path.read_bytes()
    held = samples(dataset)
    random = np.random.default_rng(4)
    for position in random.integers(0, whole.index(b'"shards"'), 40).tolist():
        path.write_bytes(whole)
        flip(path, position, int(random.integers(8)))
        report = repair(dataset, write=True, classes=("ant", "bee", "cat"))
        assert (len(report.sentences), report.lost) == (1, []), position
        assert samples(dataset) == held
        assert verify(dataset, "full").problems == []
        shutil.rmtree(dataset / "generations", ignore_errors=True)


def test_text_that_was_laid_out_anew_is_written_as_it_was(dataset: Path) -> None:
    path = dataset / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(json.dumps(json.loads(whole)).encode())
    assert repair(dataset, write=True).sentences == [f"the text of {path} was altered: it is written again"]
    assert path.read_bytes() == whole


def test_a_manifest_of_a_newer_program_is_not_repaired(dataset: Path) -> None:
    document = json.loads((dataset / "manifest.json").read_bytes()) | {"version": 2}
    document["digest"] = dataset_digest(document)
    (dataset / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="upgrade shardfeed"):
        repair(dataset, write=True)


def test_everything_is_damaged_at_once(rich: Path) -> None:
    held = samples(rich)
    index = load_index(LocalFolder(str(rich)), load_manifest(rich), 0)
    flip(shard(rich, 0), index.image.offsets[2] + 20)
    size = shard(rich, 1).stat().st_size
    os.truncate(shard(rich, 1), size * 2 // 3)
    (rich / "shard-000001.idx.arrow").unlink()
    for path in (rich / "columns").glob("*"):
        flip(path, path.stat().st_size // 2)
    flip(rich / "manifest.json", 40)
    os.truncate(rich / "manifest.json", 300)
    report = repair(rich, write=True)
    got = samples(rich)
    assert index.keys[2] not in got
    assert {key: held[key][0] for key in got} == {key: sample[0] for key, sample in got.items()}
    assert len(got) >= (17 if load_format(rich) == "tar" else 11)
    assert report.beyond == []
    assert_whole(rich)


# generations


def test_a_change_and_its_generations_are_repaired(dataset: Path) -> None:
    drop(dataset, ["ant/ant-01", "bee/bee-02"])
    held, before = samples(dataset), files_of(dataset)
    manifest = load_manifest(dataset)
    os.truncate(dataset / "manifest.json", (dataset / "manifest.json").stat().st_size - 100)
    flip(dataset / "generations" / "000000.json", before["generations/000000.json"].index(b'"num_samples"') + 18)
    report = repair(dataset, write=True)
    assert len(report.sentences) == 2
    assert (samples(dataset), files_of(dataset), load_manifest(dataset)) == (held, before, manifest)
    older = dataset / "generations" / "000000.json"
    older.write_bytes(b"nothing of it is left")
    report = repair(dataset, write=True)
    assert report.sentences == [f"{older} cannot be read: it is set aside as generations/000000.json.damaged"]
    assert samples(dataset) == held
    assert_whole(dataset)


@pytest.mark.parametrize("columns", [True, False])
def test_dropped_samples_never_come_back(dataset: Path, columns: bool) -> None:
    if not columns:
        forget_columns(dataset)
    elif "key" not in load_manifest(dataset).columns:
        pytest.skip("this build writes no consolidated columns")
    drop(dataset, ["ant/ant-01", "bee/bee-02"])
    held = samples(dataset)
    for path in dataset.glob("*.g000001.idx.arrow"):
        path.unlink()
    report = repair(dataset, write=True)
    got = samples(dataset)
    if columns:
        assert got == held
    else:
        assert all("the only record of which of its samples were dropped" in one for one in report.sentences)
        assert set(got) == {key for key in held if not key.startswith(("ant/ant-0", "bee/bee-0"))} | {
            key for key in held if key[-2:] in ("06", "07", "08", "09")
        }
    assert_whole(dataset)


def test_dropped_samples_do_not_come_back_with_a_lost_manifest(dataset: Path) -> None:
    drop(dataset, ["ant/ant-01", "bee/bee-02"])
    held = samples(dataset)
    (dataset / "manifest.json").unlink()
    repair(dataset, write=True)
    assert samples(dataset) == held
    manifest = load_manifest(dataset)
    assert (manifest.generation, sum(manifest.shards.dropped.values())) == (1, 2)
    assert_whole(dataset)


def test_repairs_follow_one_another(dataset: Path) -> None:
    held = samples(dataset)
    index = load_index(LocalFolder(str(dataset)), load_manifest(dataset), 1)
    flip(shard(dataset, 1), index.image.offsets[3] + 30)
    repair(dataset, write=True)
    name = load_manifest(dataset).shards.names[1]
    index = load_index(LocalFolder(str(dataset)), load_manifest(dataset), 1)
    flip(dataset / name, index.image.offsets[0] + 30)
    repair(dataset, write=True)
    assert load_manifest(dataset).shards.names[1] == name.replace("g000001", "g000002")
    assert lost_keys(dataset) == ["ant/ant-09", "ant/ant-06"]
    assert samples(dataset) == {key: one for key, one in held.items() if key not in ("ant/ant-09", "ant/ant-06")}
    assert_whole(dataset)


# where and when


def test_a_repair_elsewhere_is_laid_over_the_dataset(dataset: Path, tmp_path: Path) -> None:
    index = load_index(LocalFolder(str(dataset)), load_manifest(dataset), 1)
    flip(shard(dataset, 1), index.image.offsets[3] + 30)
    (dataset / "shard-000004.idx.arrow").unlink()
    before = files_of(dataset)
    report = repair(dataset, out=tmp_path / "out")
    assert report.written == str(tmp_path / "out")
    assert files_of(dataset) == before
    assert "manifest.json" in files_of(tmp_path / "out")
    shutil.copytree(tmp_path / "out", dataset, dirs_exist_ok=True)
    assert load_manifest(dataset) == report.manifest
    assert_whole(dataset)


def test_a_build_that_is_going_on_is_left_alone(dataset: Path) -> None:
    (dataset / "shard-000004.idx.arrow").unlink()
    marker = dataset / ".building"
    marker.touch()
    with open(marker) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        for write in (False, True):
            with pytest.raises(DestinationError, match=f"^dataset {dataset} is being written by a build; wait until"):
                repair(dataset, write=write)
    (dataset / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="is the destination of a build that has not finished"):
        repair(dataset)


def test_a_change_that_is_going_on_is_left_alone(dataset: Path) -> None:
    (dataset / "shard-000004.idx.arrow").unlink()
    marker = dataset / ".changing"
    marker.write_bytes(b"x")
    with open(marker) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(
            DestinationError, match=f"^dataset {dataset} is being changed by another process; wait until"
        ):
            repair(dataset, write=True)
    assert repair(dataset, write=True).written == str(dataset)
    assert_whole(dataset)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(dataset: Path) -> None:
    (dataset / "shard-000004.idx.arrow").unlink()
    dataset.chmod(0o555)
    try:
        assert len(repair(dataset).sentences) == 1
        with pytest.raises(DestinationError, match=r"^cannot write .*: Permission denied"):
            repair(dataset, write=True)
    finally:
        dataset.chmod(0o755)


class Killed(BaseException):
    """Stands for kill -9 as far as files go."""


@pytest.mark.parametrize("step", range(8))
def test_after_a_kill_the_same_command_goes_on(
    dataset: Path, step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files are staged and put in place one by one; the process dies before the one with this number."""
    index = load_index(LocalFolder(str(dataset)), load_manifest(dataset), 1)
    flip(shard(dataset, 1), index.image.offsets[3] + 30)
    shard(dataset, 3).unlink()
    (dataset / "shard-000005.idx.arrow").unlink()
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(dataset, undisturbed)
    repair(undisturbed, write=True)
    replace, left = os.replace, [step]

    def dying(*names: Path) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        patch.setattr(LocalDestination, "remove", lambda self, names: None)  # a dead process cleans nothing up
        with contextlib.suppress(Killed):
            repair(dataset, write=True)
    repair(dataset, write=True)
    assert files_of(dataset) == files_of(undisturbed)
    assert_whole(dataset)


def test_places_without_anything_to_repair(image_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, image_folder, tmp_path / "none"):
        with pytest.raises(
            ManifestError, match=f"^there is no manifest at {place}/manifest.json, and no shard to make"
        ):
            repair(place, write=True)
    assert list(empty.iterdir()) == []


def test_nothing_is_whole(dataset: Path) -> None:
    for number in range(6):
        shard(dataset, number).unlink()
    before = files_of(dataset)
    with pytest.raises(ShardError, match=f"^no sample of {dataset} is whole; copy the dataset again from its origin"):
        repair(dataset, write=True)
    assert files_of(dataset) == before


def test_contradictions_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^write and out exclude each other"):
        repair(dataset, write=True, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="^threads is 0, expected at least 1$"):
        repair(dataset, threads=0)
    drop(dataset, ["ant/ant-01"])
    with pytest.raises(ManifestError, match="is an earlier generation, which never changes; name the dataset"):
        repair(dataset / "generations" / "000000.json")
