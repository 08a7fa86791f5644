"""``feeder inspect`` from the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.dataset.manifest import encode_manifest, load_manifest, save_manifest, sealed
from feeder.shards.dataset.shard_table import shard_table
from feeder.tools.main import main
from tests.images import encoded, write_image_folder
from tests.tables import write_table


def test_a_dataset_is_described(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "bee" / "one more.png").write_bytes(encoded(1, size=(10, 200), format="PNG"))
    digest = build(image_folder, tmp_path / "out", BuildOptions(seed=5)).datasets[0].manifest.digest
    assert main(["inspect", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        f"dataset  {tmp_path}/out",
        "format   tar",
        "samples  37",
        "shards   1",
        "fields   image (image), label (int64)",
        "order    shuffled with seed 5",
        f"digest   {digest}",
        "formats  36 jpeg, 1 png",
        "classes  3",
        "most frequent classes:",
        "    1  bee         13  ########################################",
        "    0  ant         12  #####################################",
    ):
        assert line in lines
    (width,) = (line for line in lines if line.startswith("width"))
    assert width.endswith("all from 10 to 103")


def test_the_folder_of_splits_is_described_split_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(tmp_path / "source" / "train")
    write_image_folder(tmp_path / "source" / "val", classes=("bee",), per_class=3)
    build(tmp_path / "source", tmp_path / "out", BuildOptions(shard_samples=4, shuffle=False))
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    train, val = map(json.loads, capsys.readouterr().out.splitlines())
    assert (train["split"], train["samples"], train["shards"], train["class_counts"]) == ("train", 36, 9, [12, 12, 12])
    assert (val["split"], val["classes"], val["class_counts"]) == ("val", ["ant", "bee", "cat"], [0, 3, 0])
    assert main(["inspect", str(tmp_path / "out" / "train"), "--json", "--max-shards", "2"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert part["looked_at"] == {"shards": 2, "samples": 8}
    assert main(["inspect", str(tmp_path / "out" / "train"), "--max-shards", "2"]) == 0
    assert "from 2 of 9 shards, 8 samples:" in capsys.readouterr().out


def test_a_plain_folder_is_described(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "ant" / "broken.jpg").write_bytes(b"broken")
    assert main(["inspect", str(image_folder)]) == 0
    out = capsys.readouterr().out
    assert "format   plain folder of images\n" in out
    assert "formats  36 jpeg, 1 unreadable\n" in out


def test_what_is_no_dataset_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: no manifest at {tmp_path}/none/manifest.json: expected")
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"feeder: no images in {tmp_path}")


def test_looking_into_no_shard_is_refused(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(image_folder), "--max-shards", "0"]) == 2
    assert capsys.readouterr().err == "feeder: max_shards is 0, expected at least 1\n"


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """A dataset with every type of field, in shards of seven samples."""
    options = BuildOptions(shard_samples=7, shuffle=False)
    build_tables([write_table(tmp_path / "source")], tmp_path / "rich", options)
    return tmp_path / "rich"


def test_other_fields_are_described(rich: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(rich)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "caption  string, absent in 5, such as 'Ein Bild № 1', 'Ein Bild № 2', 'Ein Bild № 3'",
        "score    float64, absent in 1, from 0 to 3.28571",
        "safe     bool, absent in 8, such as True, False",
        "1 sample without a label",
    ):
        assert line in lines
    assert any(line.startswith("mask     image, absent in 6, 18 png, bytes: median ") for line in lines)
    assert main(["inspect", str(rich), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["other_fields"]["votes"] == {
        "type": "int64",
        "absent": 12,
        "examples": [-10, -8, -6],
        "lowest": -10,
        "highest": 12,
        "formats": {},
        "sizes": [],
    }
    assert (document["unlabelled"], document["segments"], document["dropped"], document["origin"]) == (1, 4, 0, None)
    assert document["generations"] == [
        {"generation": 0, "digest": document["digest"], "parent": None, "samples": 24, "shards": 4}
    ]


def test_generations_are_listed(rich: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_manifest(rich)
    (rich / "generations").mkdir()
    (rich / "generations" / "000000.json").write_bytes(b'{"version": 1, "purged_by": 2}\n')
    second = sealed(dataclasses.replace(first, generation=1, parent=first.digest))
    (rich / "generations" / "000001.json").write_bytes(encode_manifest(second))
    records = [dataclasses.replace(first.shards.record(0), dropped=2)]
    changes = {"generation": 2, "parent": second.digest, "shards": shard_table(records), "columns": {}}
    save_manifest(sealed(dataclasses.replace(first, **changes)), rich)
    assert main(["inspect", str(rich)]) == 0
    out = capsys.readouterr().out
    third = load_manifest(rich).digest
    assert "dropped     2 samples that shards still hold\n" in out
    assert "generation  2 (earlier ones: URL/generations/…)\n" in out
    table = out.partition("generations:\n")[2].splitlines()
    assert [line.split() for line in table] == [
        ["generation", "samples", "shards", "digest"],
        ["0", "purged", "by", "generation", "2"],
        ["1", "24", "4", second.digest],
        ["2", "7", "1", third],
    ]
    assert main(["inspect", str(rich / "generations" / "000001.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24


def test_samples_are_listed(rich: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(rich), "--list", "--limit", "9"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    size = str((rich.parent / "source" / "image" / "8").stat().st_size)
    assert lines[8] == ["birds/08", "cat", size, "28x30", "jpeg", "shard-000001.tar"]
    assert lines[7][:2] == ["birds/07", "-1"]
    assert len(lines) == 9
    assert main(["inspect", str(rich), "--list", "--shard", "shard-000003.tar", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["key"], one["class"], one["label"]) for one in listed] == [
        ("birds/21", "ant", 0),
        ("birds/22", "bee", 1),
        ("birds/23", "cat", 2),
    ]


def test_a_list_may_be_cut_off_by_its_reader(rich: Path) -> None:
    command = f"{sys.executable} -m feeder.tools.main inspect {rich} --list | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")


def test_a_sample_is_written_into_files(rich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    assert main(["inspect", str(rich), "--extract", "birds/08", "--to", str(out)]) == 0
    names = ["08.jpg", "08.mask.png", "08.npy", "08.cls", "08.txt", "08.json"]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    for name, field in (("08.jpg", "image"), ("08.mask.png", "mask"), ("08.npy", "boxes")):
        assert (out / name).read_bytes() == (source / field / "8").read_bytes()
    assert (out / "08.cls").read_bytes() == b"2"
    assert (out / "08.txt").read_text() == "Ein Bild № 8"
    assert json.loads((out / "08.json").read_text()) == {"safe": None, "score": 8 / 7, "votes": -2}
    one = tmp_path / "one.bin"
    assert main(["inspect", str(rich), "--extract", "birds/07", "--to", str(one), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"key": "birds/07", "files": [str(one)]}
    assert one.read_bytes() == (source / "image" / "7").read_bytes()


def test_a_sample_of_a_plain_folder_is_written_under_its_name(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["inspect", str(image_folder), "--extract", "bee/bee-03.jpg", "--to", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["bee-03.cls", "bee-03.jpg"]
    assert (out / "bee-03.jpg").read_bytes() == (image_folder / "bee" / "bee-03.jpg").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--limit", "3"], "--limit says something about --list; give that too"),
        (["--to", "x"], "--to says something about --extract; give that too"),
        (["--list", "--extract", "x"], "--list and --extract exclude each other; give one of them"),
        (["--list", "--limit", "-1"], "--limit is -1, expected a number from 0"),
        (["--extract", "x", "--to", "none/"], "--to none/ cannot be written: its folder does not exist; make it first"),
    ],
)
def test_contradictions_are_refused(
    options: list[str], sentence: str, rich: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(rich), *options]) == 2
    assert capsys.readouterr() == ("", f"feeder: {sentence}\n")
