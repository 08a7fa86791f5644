"""``feeder inspect --shuffle`` from the command line."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.tools.main import main
from tests.images import encoded
from tests.servers.s3_server import S3Bucket

CLASSES, PER_CLASS = 12, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of very small images."""
    root = tmp_path_factory.mktemp("images")
    image = encoded(0, size=(8, 8))
    for label in range(CLASSES):
        (root / f"class-{label:02}").mkdir()
        for number in range(PER_CLASS):
            (root / f"class-{label:02}" / f"{number:03}.jpg").write_bytes(image)
    return root


@pytest.fixture(scope="module")
def sorted_shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 10 samples in the order of class folders."""
    dest = tmp_path_factory.mktemp("sorted") / "out"
    build(folder, dest, BuildOptions(shard_samples=10, shuffle=False))
    return dest


@pytest.fixture(scope="module")
def shuffled_shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("shuffled") / "out"
    build(folder, dest, BuildOptions(shard_samples=10))
    return dest


def reported(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_shuffled_build_is_as_good_as_a_full_shuffle(
    shuffled_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = reported(capsys, shuffled_shards, "--shuffle", "--batch-size", 12, "--world-size", 4)
    lines = out.splitlines()
    assert lines[:4] == [
        f"dataset    {shuffled_shards}, 480 samples",
        "order      seed 0, 1 lane, window 80 samples, same shards in every epoch",
        "batches    48 samples a step on 4 ranks",
        "looked at  10 of 10 steps in each of 2 epochs",
    ]
    assert lines[5] == (
        "class balance of global batches: within 3σ of a full shuffle; of ranks' batches: within 3σ of a full shuffle"
    )
    assert lines[7].split() == ["measured", "predicted", "full", "shuffle"]
    assert [line[:12] for line in lines[8:14]] == ["global batch"] * 3 + ["rank's batch"] * 3
    assert [line.split()[0] for line in lines[17:]] == ["1", "2", "4", "8", "16", "32", "all"]
    assert lines[17].endswith("#" * 30)


def test_sorted_labels_are_found_and_the_window_that_mends_them_is_named(
    sorted_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = reported(capsys, sorted_shards, "--shuffle", "--batch-size", 12, "--world-size", 4, "--window-shards", 2)
    (judgement,) = (line for line in out.splitlines() if line.startswith("labels look sorted"))
    assert "two samples of one shard share their class" in judgement
    assert "a window of 20 samples leaves class counts of global batches with" in judgement
    assert judgement.endswith("use --window-shards all (1.00 times)")
    whole = reported(capsys, sorted_shards, "--shuffle", "--batch-size", 48)  # "all" is the default for such shards
    assert "window the whole lane" in whole
    assert "class balance of global batches: within 3σ of a full shuffle\n" in whole


def test_the_json_object(sorted_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--global-batch-size", 48, "--world-size", 3, "--seed", 5, "--epochs", 1, "--lanes", 3, "--no-sticky"]
    found = json.loads(reported(capsys, sorted_shards, "--shuffle", *options, "--window-shards", 1, "--json"))
    assert found["schema"] == "feeder.shuffle/1"
    assert (found["global_batch"], found["world_size"], found["steps"], found["epochs"]) == (48, 3, 10, 1)
    assert found["order"]["seed"] == 5
    assert (found["order"]["lanes"], found["order"]["window"], found["order"]["sticky"]) == (3, 10, False)
    assert found["global_batches"]["balance"]["z"] > 3
    assert found["rank_batches"]["samples"] == 16
    assert found["concordance"]["same_segment"] == 1
    assert [one["window_shards"] for one in found["outlook"]] == [1, 2, 4, 8, 16, 32, "all"]
    assert found["buffered_segments"] == 12
    assert 0 < found["buffered_bytes"] < found["outlook"][-1]["buffered_bytes"]
    assert found["judgement"].startswith("labels look sorted")


def test_images_without_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = reported(capsys, folder / "class-00", "--shuffle", "--batch-size", 8)
    assert "there are no labels of several classes, so that class balance is left out\n" in out
    assert "variance of class counts" not in out
    assert "global batch  pairs that meet again" in out


def test_a_plain_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = reported(capsys, folder, "--shuffle", "--batch-size", 48)
    assert "class balance of global batches: within 3σ of a full shuffle\n" in out


def test_the_drawing(sorted_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "mixing.svg"
    out = reported(capsys, sorted_shards, "--shuffle", "--batch-size", 12, "--world-size", 4, "--plot", plot)
    assert out.endswith(f"\n{plot}: the same as a drawing\n")
    root = ET.fromstring(plot.read_text())
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 3 * 2 * 2  # three figures, of global batches and those of ranks, predicted and measured


def test_a_dataset_in_a_bucket(
    sorted_shards: Path,
    s3_bucket: S3Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    filesystem = pytest.importorskip("s3fs").S3FileSystem()
    filesystem.put(f"{sorted_shards}/", f"{s3_bucket.url}/data/train/", recursive=True)
    options = ["--shuffle", "--batch-size", 48, "--json"]
    local = json.loads(reported(capsys, sorted_shards, *options))
    remote = json.loads(reported(capsys, f"{s3_bucket.url}/data/train", *options))
    assert remote | {"dataset": ""} == local | {"dataset": ""}


def test_splits_are_reported_one_by_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, name in (("train", "class-00"), ("val", "class-01")):
        (tmp_path / "source" / split).mkdir(parents=True)
        (tmp_path / "source" / split / name).symlink_to(folder / name)
    build(tmp_path / "source", tmp_path / "out")
    out = reported(capsys, tmp_path / "out", "--shuffle", "--batch-size", 8)
    assert out.count("dataset    ") == 2
    assert main(["inspect", str(tmp_path / "out"), "--shuffle", "--plot", str(tmp_path / "a.svg")]) == 2
    assert capsys.readouterr().err == (
        f"feeder: --plot draws one dataset, and {tmp_path}/out holds several; name {tmp_path}/out/train or"
        f" {tmp_path}/out/val\n"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lanes", "2"], "--lanes says something about --shuffle; give that too"),
        (["--no-sticky"], "--sticky says something about --shuffle; give that too"),
        (["--shuffle", "--list"], "--list and --shuffle exclude each other; give one of them"),
        (["--shuffle", "--plot", "a.png"], "--plot a.png is no name for a drawing; let it end in .svg"),
        (["--shuffle", "--epochs", "0"], "--epochs is 0, expected at least 1"),
        (
            ["--shuffle", "--batch-size", "4", "--global-batch-size", "8"],
            "--batch-size and --global-batch-size exclude each other; give one of them",
        ),
        (
            ["--shuffle", "--batch-size", "37"],
            (
                "the global batch is 37 on 1 ranks, and {folder} has 36 samples; expected from 1 sample a rank to all"
                " of them"
            ),
        ),
        (
            ["--shuffle", "--lanes", "40", "--batch-size", "2"],
            (
                "the order has 40 lanes and 36 samples an epoch; lanes must be from 1 to the number of samples: lower"
                " Shuffle(lanes=)"
            ),
        ),
    ],
)
def test_refusals(options: list[str], sentence: str, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(image_folder), *options]) == 2
    assert capsys.readouterr() == ("", f"feeder: {sentence.format(folder=image_folder)}\n")
