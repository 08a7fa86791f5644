"""Adding samples to a dataset."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feeder import ImageDataset, presets
from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.changing.annotating import annotate
from feeder.shards.changing.appending import append
from feeder.shards.changing.dropping import drop
from feeder.shards.dataset.manifest import load_manifest
from feeder.shards.errors import SourceError
from feeder.shards.images.rules import ImageRules, Resize
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import SourceOptions, open_source, scan_source
from feeder.shards.table import SampleTable
from tests.images import write_image_folder


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=7, seed=5))
    return tmp_path / "dataset"


def table(folder: Path) -> SampleTable:
    (only,) = scan_source(folder)
    return only


def test_new_shards_are_numbered_on_and_are_those_of_a_build(dataset: Path, tmp_path: Path) -> None:
    more = write_image_folder(tmp_path / "more", classes=("ant", "bee", "cat"), per_class=8, first=50)
    for path in sorted(more.rglob("*.jpg")):
        path.rename(path.with_name("new-" + path.name))
    report = append(dataset, table(more))
    assert (report.samples, report.shards, report.classes, report.skipped, report.bad) == (24, 4, [], 0, [])
    manifest = load_manifest(dataset)
    assert manifest == report.manifest
    assert manifest.shards.names == [f"shard-{number:06d}.tar" for number in range(10)]
    alone = build(more, tmp_path / "alone", BuildOptions(shard_samples=7, seed=5)).datasets[0].manifest
    assert manifest.shards.digests[6:] == alone.shards.digests
    assert (manifest.num_samples, manifest.generation) == (60, 1)
    assert verify(dataset, "full").problems == []


def test_new_classes_get_numbers_at_the_end(dataset: Path, tmp_path: Path) -> None:
    report = append(
        dataset,
        table(write_image_folder(tmp_path / "more", classes=("aardvark", "bee2", "cat"), first=40, per_class=13)),
        skip_existing=True,
    )
    assert report.classes == ["aardvark", "bee2"]
    assert report.manifest.classes == ("ant", "bee", "cat", "aardvark", "bee2")
    assert report.skipped == 12
    rows = open_dataset(dataset).describe(np.arange(36, report.manifest.num_samples))
    assert {key.split("/")[0]: int(label) for key, label in zip(rows.keys, rows.labels, strict=True)} == {
        "aardvark": 3, "bee2": 4, "cat": 2,
    }  # fmt: skip
    assert verify(dataset, "full").problems == []


def test_keys_that_are_there_are_refused_or_skipped(dataset: Path, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        append(dataset, table(image_folder))
    assert str(caught.value) == (
        f"36 of the 36 samples of {image_folder} have keys that {dataset} has already: 'ant/ant-00' (ant/ant-00.jpg), "
        "'ant/ant-01' (ant/ant-01.jpg), 'ant/ant-02' (ant/ant-02.jpg), …; rename them, or leave them out with "
        "--skip-existing"
    )
    report = append(dataset, table(image_folder), skip_existing=True)
    assert (report.samples, report.shards, report.skipped, report.manifest.generation) == (0, 0, 36, 0)
    drop(dataset, ["ant/ant-00"])
    assert append(dataset, table(image_folder), skip_existing=True).samples == 1
    assert verify(dataset, "full").problems == []


def test_columns_of_an_annotation_are_missing(dataset: Path, tmp_path: Path) -> None:
    annotate(dataset, pa.table({"key": ["ant/ant-00"], "score": [1.0], "caption": ["x"]}))
    append(dataset, table(write_image_folder(tmp_path / "more", classes=("dog",))))
    reader = open_dataset(dataset)
    for field, value in (("score", 1.0), ("caption", "x")):
        found = reader.values(np.arange(48), field)
        assert [one for one in found if one is not None] == [value]
        assert found[36:] == [None] * 12
    annotate(dataset, pa.table({"key": ["dog/dog-03"], "score": [2.0]}), replace=True)
    assert sorted(filter(None, open_dataset(dataset).values(np.arange(48), "score"))) == [2.0]


def test_other_fields_are_refused(dataset: Path, tmp_path: Path) -> None:
    flat = write_image_folder(tmp_path / "flat", classes=("",))
    with pytest.raises(SourceError) as caught:
        append(dataset, table(flat))
    assert str(caught.value) == (
        f"{flat} has the fields image (image), but the shards of {dataset} have image (image), label (int64): they "
        "differ in 'label'; append samples with the same fields"
    )


def test_bad_images_are_set_aside_and_listed(dataset: Path, tmp_path: Path) -> None:
    more = write_image_folder(tmp_path / "more", classes=("dog",))
    (more / "dog" / "bad.jpg").write_bytes(b"bad")
    report = append(dataset, table(more))
    assert report.bad_name == "bad-images.g000001.jsonl"
    assert report.bad_by_cause == {"not an image": 1}
    assert b"dog/bad.jpg" in (dataset / report.bad_name).read_bytes()
    assert sorted(path.name for path in dataset.iterdir() if "bad" in path.name) == [report.bad_name]
    drop(dataset, ["dog/dog-00"])
    assert (dataset / report.bad_name).exists()


def test_a_source_with_nothing_good_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "dog").mkdir(parents=True)
    (tmp_path / "more" / "dog" / "bad.jpg").write_bytes(b"bad")
    before = {path.name for path in dataset.rglob("*")}
    with pytest.raises(SourceError, match="^no good image in .*: all 1 are bad, 1 not an image$"):
        append(dataset, table(tmp_path / "more"))
    assert {path.name for path in dataset.rglob("*")} == before


def test_the_image_rules_of_the_build_hold(image_folder: Path, tmp_path: Path) -> None:
    rules = ImageRules(resize=Resize.parse("longer=48"), min_side=50)
    build(image_folder, tmp_path / "dataset", BuildOptions(images=rules))
    more = write_image_folder(tmp_path / "more", classes=("dog",))
    append(tmp_path / "dataset", table(more))
    build(more, tmp_path / "alone", BuildOptions(images=rules))
    alone = open_dataset(tmp_path / "alone")
    reader = open_dataset(tmp_path / "dataset")
    first, total = reader.manifest.num_samples - alone.manifest.num_samples, reader.manifest.num_samples
    assert 0 < total - first < 12
    assert reader.read(np.arange(first, total))[1] == alone.read(np.arange(total - first))[1]
    assert max(reader.describe(np.arange(total)).widths) <= 48


def test_several_processes_write_the_same(dataset: Path, image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "other", BuildOptions(shard_samples=7, seed=5))
    more = write_image_folder(tmp_path / "more", classes=("dog",), per_class=48)
    with pytest.raises(ConfigError, match="^workers is 0, expected at least 1$"):
        append(dataset, table(more), workers=0)
    assert append(dataset, table(more), workers=2).manifest == append(tmp_path / "other", table(more)).manifest
    assert not (dataset / ".changing").exists()


def test_an_order_over_the_new_generation(dataset: Path, tmp_path: Path) -> None:
    old = ImageDataset(str(dataset), batch_size=6, transform=presets.imagenet_eval(32), seed=1)
    before = old.batch(epoch=0, step=2)
    append(dataset, table(write_image_folder(tmp_path / "more", classes=("dog",))))
    new = ImageDataset(str(dataset), batch_size=6, transform=presets.imagenet_eval(32), seed=1)
    seen = [new.batch(epoch=0, step=step) for step in range(8)]
    assert sorted(int(i) for batch in seen for i in batch["id"]) == list(range(48))
    assert 3 in {int(label) for batch in seen for label in batch["label"]}
    again = old.batch(epoch=0, step=2)
    assert (np.asarray(again["image"]) == np.asarray(before["image"])).all()


def listed(folder: Path, name: str, text: str, options: SourceOptions | None = None) -> SampleTable:
    (folder / name).write_text(text)
    (only,) = open_source(folder / name, options)
    return only


def test_equal_keys_within_the_source_are_refused(dataset: Path, image_folder: Path) -> None:
    """With keys to skip, too: only the first of two would be recognised."""
    twice = "path,label,key\nant/ant-00.jpg,ant,ant/ant-00\nbee/bee-00.jpg,bee,ant/ant-00\n"
    for skip in (False, True):
        with pytest.raises(SourceError) as caught:
            append(dataset, listed(image_folder, "list.csv", twice), skip_existing=skip)
        assert str(caught.value) == (
            f"ant/ant-00.jpg and bee/bee-00.jpg in {image_folder} would both have the key 'ant/ant-00', because a key "
            "has no extension; rename or remove one of them"
        )
    assert load_manifest(dataset).generation == 0


def test_numbered_classes_are_not_those_with_names(dataset: Path, image_folder: Path, tmp_path: Path) -> None:
    numbers = "path,label,key\nant/ant-00.jpg,0,new-0\nbee/bee-00.jpg,2,new-1\n"
    names = "path,label,key\nant/ant-00.jpg,ant,new-0\nbee/bee-00.jpg,cat,new-1\n"
    with pytest.raises(SourceError) as caught:
        append(dataset, listed(image_folder, "numbers.csv", numbers))
    assert str(caught.value) == (
        f"the labels of {image_folder} are numbers (0, 1, 2), but the classes of {dataset} have names (ant, bee, cat); "
        "give names instead, or a file with the name of each number with --classes"
    )
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    report = append(
        dataset,
        listed(image_folder, "numbers.csv", numbers, SourceOptions(classes_file=str(tmp_path / "classes.txt"))),
    )
    assert (report.samples, report.classes) == (2, [])
    build_tables([listed(image_folder, "numbers.csv", numbers)], tmp_path / "numbered")
    with pytest.raises(SourceError) as caught:
        append(tmp_path / "numbered", listed(image_folder, "names.csv", names))
    assert str(caught.value) == (
        f"the classes of {image_folder} have names (ant, cat), but those of {tmp_path}/numbered are numbers (0, 1, 2); "
        "give the numbers instead"
    )
    more = numbers.replace("new", "more").replace(",2,", ",4,")
    assert append(tmp_path / "numbered", listed(image_folder, "more.csv", more)).classes == ["3", "4"]
