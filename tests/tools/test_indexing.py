"""``feeder index`` from the command line."""

import json
from pathlib import Path

import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.reading.opening import open_dataset
from feeder.tools.main import main
from tests.images import encoded, write_image_folder
from tests.tar_archives import write_tar


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two archives with six labelled samples, one with a broken image and one without an image."""
    members = [
        member
        for n in range(6)
        for member in ((f"{n}.jpg", encoded(n) if n else b"broken"), (f"{n}.cls", b"%d" % (n % 2)))
    ]
    write_tar(tmp_path / "data" / "a-0.tar", members[:6])
    write_tar(tmp_path / "data" / "a-1.tar", [*members[6:], ("6.cls", b"1")])
    return tmp_path / "data"


def test_archives_are_adopted_and_what_was_found_is_said(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["index", str(tars / "a-{0..1}.tar"), str(out)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    digest = open_dataset(out).manifest.digest
    size = sum(path.stat().st_size for path in tars.iterdir())
    assert lines[:9] == [
        f"dataset        {out}",
        f"data           {tars}",
        "samples        6",
        "classes        2",
        "fields         image, label",
        f"shards         2, tar, {size / 1000:.1f} kB",
        "bad headers    1, replaced in training",
        "without image  1, left out",
        f"digest         {digest}",
    ]
    assert lines[9].startswith("indexed in ")
    assert lines[-1] == f"next: feeder stream {out}"
    assert main(["verify", str(out), "--level", "full"]) == 0
    assert main(["inspect", str(out)]) == 0


def test_archives_named_one_by_one_and_json(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(path) for path in sorted(tars.iterdir())]
    assert main(["index", *names, str(tmp_path / "out"), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    dataset = document["datasets"][0]
    assert (document["surveyed"], document["kept"]) == (2, 0)
    assert {key: dataset[key] for key in ("samples", "shards", "unreadable", "without_image", "format", "fields")} == {
        "samples": 6,
        "shards": 2,
        "unreadable": 1,
        "without_image": 1,
        "format": "tar",
        "fields": {"image": "image", "label": "int64"},
    }


def test_labels_in_runs_bring_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(write_image_folder(tmp_path / "images"), tmp_path / "built", BuildOptions(shuffle=False))
    assert main(["index", str(tmp_path / "built" / "shard-000000.tar"), str(tmp_path / "out"), "-q"]) == 0
    assert capsys.readouterr().err == (
        f"feeder: warning: the labels of {tmp_path}/out come in runs, though it is taken as shuffled: training "
        "shuffles within a window of shards; rewrite it in random order with 'feeder convert', or train with "
        "window_shards='all'\n"
    )


def test_mistakes_are_one_sentence(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tars)]) == 2
    assert capsys.readouterr().err == (
        f"feeder: only '{tars}' was given; expected what to adopt, then where its manifest goes\n"
    )
    assert main(["index", str(tars), str(tmp_path / "out"), "--replace"]) == 2
    assert "--replace goes with --for" in capsys.readouterr().err
    assert main(["index", str(tars / "b.tar"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"feeder: no tar archive is at {tars}/b.tar: there is no {tars}/b.tar; check the path\n"
    )
    assert not (tmp_path / "out").exists()


def test_index_files_of_others_go_beside_the_shards_of_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_image_folder(tmp_path / "images" / split, per_class=4)
    build(tmp_path / "images", tmp_path / "built", BuildOptions(shard_samples=6))
    capsys.readouterr()
    assert main(["index", "--for", "dali", str(tmp_path / "built"), "-q"]) == 0
    assert capsys.readouterr().out == "wrote 4 files for dali: 24 samples in 4 archives\n"
    assert (tmp_path / "built" / "train" / "shard-000000.idx").read_text().startswith("v1.2 6\n")
    assert main(["index", "--for", "energon", str(tmp_path / "built"), "-q"]) == 0
    assert capsys.readouterr().out == "wrote 7 files for energon: 24 samples in 4 archives\n"
    info = json.loads((tmp_path / "built" / ".nv-meta" / ".info.json").read_text())
    assert info["shard_counts"]["val/shard-000001.tar"] == 6
    assert main(["index", "--for", "dali", str(tmp_path / "built" / "val"), "-q"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote 0 files for dali: 12 samples in 2 archives"
    assert main(["verify", str(tmp_path / "built"), "--level", "full"]) == 0


def test_index_files_of_others_go_beside_any_archives(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--for", "dali", str(tars / "a-{0,1}.tar"), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] == [str(tars / "a-0.idx"), str(tars / "a-1.idx")]
    assert document["samples"] == {str(tars / "a-0.tar"): 3, str(tars / "a-1.tar"): 4}
    (tars / "a-0.idx").write_text("mine")
    assert main(["index", "--for", "dali", str(tars / "a-0.tar"), "-q"]) == 2
    assert "exists and says something else" in capsys.readouterr().err
    assert main(["index", "--for", "dali", str(tars / "a-0.tar"), "-q", "--replace"]) == 0


def test_other_loaders_read_tar_alone(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(image_folder, tmp_path / "arrow", BuildOptions(format="arrow"))
    assert main(["index", "--for", "dali", str(tmp_path / "arrow"), "-q"]) == 2
    assert capsys.readouterr().err == (
        f"feeder: the shards of {tmp_path}/arrow are of the format 'arrow', and other loaders read tar; make tar "
        "shards with 'feeder convert --format tar'\n"
    )
    assert main(["index", "--for", "energon", "s3://bucket/a.tar", "-q"]) == 2
    assert capsys.readouterr().err == (
        "feeder: s3://bucket/a.tar is behind a URL, and index files go beside local archives; copy or mount it first\n"
    )
