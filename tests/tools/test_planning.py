"""``feeder plan``: a table, or JSON, and sentences for what does not go together."""

import json
from pathlib import Path

import pytest

from feeder.shards.building.writing import BuildOptions, build
from feeder.tools.main import main

UNBUILT = ["--samples", "45500000", "--shards", "80000", "--nodes", "125", "--gpus-per-node", "8"]


def test_a_dataset_gets_a_table_and_a_suggestion(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(image_folder, tmp_path / "dataset", BuildOptions(shard_samples=2))
    assert main(["plan", str(tmp_path / "dataset"), "--nodes", "1", "--gpus-per-node", "2", "--batch-size", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("36 samples in 18 shards of ")
    assert "1 x 2 GPUs (nodes x GPUs of one), global batch 6\n6 steps and 36 samples an epoch\n" in out
    assert "suggested: feeder.Shuffle(window_shards=8, lanes=1)" in out


def test_a_dataset_that_is_not_there_yet_is_described_by_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *UNBUILT, "--batch-size", "256", "--cache", "200GB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["suggested"]["shuffle"] == {"window_shards": 8, "sticky_shards": True, "lanes": 1000}
    assert (document["steps"], document["cache_bytes"], document["job"]["nodes"]) == (177, 200_000_000_000, 125)
    assert main(["plan", *UNBUILT, "--global-batch-size", "256000", "--sorted", "--shard-size", "32MiB"]) == 0
    assert "window_shards='all'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (UNBUILT, "neither of --batch-size and --global-batch-size is given; give exactly one"),
        (
            ["data", *UNBUILT, "--batch-size", "8"],
            "give either a dataset, or --samples and --shards of one that is not",
        ),
        (["--nodes", "1", "--batch-size", "8"], "give either a dataset, or --samples and --shards of one that is not"),
        (["--nodes", "1", "--batch-size", "8", "--samples", "99"], "neither a dataset nor its samples and shards are"),
        (["/no/such", "--nodes", "1", "--batch-size", "8"], "no manifest at /no/such/manifest.json"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: {sentence}")
