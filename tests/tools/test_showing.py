"""``feeder show``: the batch on the sheet is the batch that was asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feeder import ImageDataset, presets
from feeder.shards.building.writing import BuildOptions, build_tables
from feeder.tools import contact_sheet
from feeder.tools.main import main
from feeder.tools.measuring import BatchDigests
from tests.images import encoded
from tests.tables import write_table

_SMALL = ("--transform", "imagenet-train:112", "--batch-size", "5")


Drawn = list[tuple[list[str], list[contact_sheet.Tile]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What was drawn, in the order of the calls."""
    calls: Drawn = []
    draw = contact_sheet.draw_sheet

    def record(title: list[str], tiles: list[contact_sheet.Tile]) -> Image.Image:
        calls.append((title, tiles))
        return draw(title, tiles)

    monkeypatch.setattr(contact_sheet, "draw_sheet", record)
    return calls


def test_the_sheet_shows_the_batch(
    image_folder: Path, tmp_path: Path, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.png"
    which = ["--epoch", "2", "--step", "1", "--rank", "1", "--world-size", "2", "--seed", "4"]
    assert main(["show", str(image_folder), *_SMALL, *which, "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 5 of 5 images, epoch 2, position 10\n"
    dataset = ImageDataset(
        image_folder, batch_size=5, seed=4, transform=presets.imagenet_train(112), arrays="numpy", rank=1, world_size=2
    )
    batch = dataset.batch(epoch=2, step=1)
    (title, tiles), digest = drawn[0], dataset.manifest.digest
    assert title == [
        "epoch 2, step 1, rank 1 of 2, seed 4",
        f"5 images of 112 by 112 pixels, dataset {digest}",
    ]
    assert np.array_equal(np.concatenate([tile.views for tile in tiles]), batch["image"])
    assert [tile.captions[0] for tile in tiles] == batch["key"]
    assert [tile.captions[1] for tile in tiles] == [f"{dataset.classes[i]} ({i})" for i in batch["label"]]
    with Image.open(output) as sheet:
        assert sheet.format == "PNG"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.png"]
    dataset.close()


def test_a_state_shows_the_batch_that_comes_next(image_folder: Path, tmp_path: Path, drawn: Drawn) -> None:
    state = tmp_path / "state.json"
    stream = ["stream", str(image_folder), *_SMALL, "--seed", "4", "--steps", "2", "--save-state", str(state)]
    assert main([*stream, "-q"]) == 0
    output = str(tmp_path / "a.png")
    assert main(["show", str(image_folder), *_SMALL, "--state", str(state), "-o", output]) == 0
    assert main(["show", str(image_folder), *_SMALL, "--seed", "4", "--step", "2", "-o", output]) == 0
    assert drawn[0][0] == drawn[1][0]
    assert [tile.captions for tile in drawn[0][1]] == [tile.captions for tile in drawn[1][1]]
    larger = ["--transform", "imagenet-train:112", "--batch-size", "7"]
    assert main(["show", str(image_folder), *larger, "--state", str(state), "-o", output]) == 0
    assert drawn[2][0][0] == "epoch 0, position 10, rank 0 of 1, seed 4"


def test_a_late_batch_of_one_rank_of_many_is_drawn_again_with_the_same_digests(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 1,207 of rank 5 of 8: eight ranks run up to it, and one process draws it from the state that one saved."""
    folder = tmp_path / "many" / "ant"
    folder.mkdir(parents=True)
    small = encoded(3, size=(9, 7))
    for number in range(1210 * 8):
        (folder / f"{number:05}.jpg").write_bytes(small + number.to_bytes(2, "big"))  # bytes behind the image's end
    crop = presets.imagenet_train(8)
    ranks = [
        ImageDataset(folder, batch_size=1, seed=9, transform=crop, arrays="numpy", rank=rank, world_size=8, threads=1)
        for rank in range(8)
    ]
    start = ranks[0].state_dict() | {"epoch": 2, "position": 1204 * 8}
    streams = []
    for dataset in ranks:
        dataset.load_state_dict(start)
        streams.append(iter(dataset))
    steps = [[next(stream) for stream in streams] for _ in range(4)]
    state = tmp_path / "state.json"
    state.write_text(json.dumps(steps[2][5]["state"]))
    assert all(batch["state"] == steps[2][5]["state"] for batch in steps[2])  # behind step 1,206
    expected = BatchDigests()
    expected.add(steps[-1][5])
    assert len({int(batch["id"][0]) for batch in steps[-1]}) == 8

    where = ["--rank", "5", "--world-size", "8", "--batch-size", "1", "--transform", "imagenet-train:8", "--digest"]
    output = tmp_path / "a.png"
    assert main(["show", str(folder), "--state", str(state), *where, "-o", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 1 of 1 images, epoch 2, position {1207 * 8}",
        f"ids     {expected.ids}",
        f"pixels  {expected.pixels}",
    ]
    again = ["--seed", "9", "--epoch", "2", "--step", "1207", *where, "-o", str(output)]
    assert main(["show", str(folder), *again]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"ids     {expected.ids}", f"pixels  {expected.pixels}"]
    assert main(["show", str(folder), *again, "--rank", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[1] != f"ids     {expected.ids}"
    stream = ["--state", str(state), *where[:-1], "--steps", "1", "--digest", "pixels", "--json", "-q"]
    assert main(["stream", str(folder), *stream]) == 0
    (epoch,) = json.loads(capsys.readouterr().out)["epochs"]
    assert epoch["digests"] == {"ids": expected.ids, "pixels": expected.pixels}
    for dataset in ranks:
        dataset.close()


def test_padding_and_bad_samples_are_marked(image_folder: Path, tmp_path: Path, drawn: Drawn) -> None:
    bad = image_folder / "cat" / "cat-11.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    options = ["--no-shuffle", "--step", "7", "-o", str(tmp_path / "a.png")]
    assert main(["show", str(image_folder), *_SMALL, *options]) == 0
    (_, tiles) = drawn[0]
    assert [tile.mark for tile in tiles] == ["cannot be decoded", *["padding"] * 4]
    assert tiles[0].captions == ("cat/cat-11.jpg", "")


def test_views_and_limit(image_folder: Path, tmp_path: Path, drawn: Drawn) -> None:
    options = ["--views", "3", "--images", "2", "-o", str(tmp_path / "a.png")]
    assert main(["show", str(image_folder), *_SMALL, *options]) == 0
    (title, tiles) = drawn[0]
    assert [np.shape(tile.views) for tile in tiles] == [(3, 112, 112, 3)] * 2
    assert title[1].startswith("2 of 5 images of 112 by 112 pixels")


def test_names_in_any_script(tmp_path: Path, image_folder: Path, drawn: Drawn) -> None:
    (image_folder / "ant").rename(image_folder / "蟻 \x1b")
    options = ["--transform", "imagenet-eval:16", "--no-shuffle", "--batch-size", "36", "-o", str(tmp_path / "a.png")]
    assert main(["show", str(image_folder), *options]) == 0
    assert drawn[0][1][-1].captions == ("蟻 \\x1b/ant-11.jpg", "蟻 \\x1b (2)")


def test_images_without_labels(image_folder: Path, tmp_path: Path, drawn: Drawn) -> None:
    assert main(["show", str(image_folder / "bee"), *_SMALL, "-o", str(tmp_path / "a.png")]) == 0
    assert {tile.captions[1] for tile in drawn[0][1]} == {"no label"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--state", "x", "--step", "1"],
            "--state says which batch, and so do --epoch and --step; give one or the other",
        ),
        (["--images", "0"], "--images is 0; a sheet shows at least 1 image"),
        (["-o", "sheet.jpg"], "--output sheet.jpg is no name for a PNG; let it end in .png"),
        (
            [*_SMALL, "--step", "7"],
            "there is no step 7 of epoch 0; steps count from 0 to 6 at global batch 5",
        ),
    ],
)
def test_refusals(options: list[str], sentence: str, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(image_folder), *options]) == 2
    assert capsys.readouterr() == ("", f"feeder: {sentence}\n")


def test_a_folder_that_is_missing(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "none" / "a.png"
    assert main(["show", str(image_folder), *_SMALL, "-o", str(output)]) == 2
    assert capsys.readouterr().err == (
        f"feeder: --output {output} cannot be written: its folder does not exist; make it first\n"
    )


def test_random_samples_are_shown_as_they_are_stored(
    tmp_path: Path, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tables([write_table(tmp_path / "source")], tmp_path / "rich", BuildOptions(shard_samples=7, shuffle=False))
    output = tmp_path / "a.png"
    command = ["show", str(tmp_path / "rich"), "--random", "5", "-o", str(output)]
    for seed in ("3", "3", "4"):
        assert main([*command, "--seed", seed]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{output}: 5 of 24 samples, seed 3"
    captions = [[tile.captions for tile in tiles] for _, tiles in drawn]
    assert captions[0] == captions[1] != captions[2]
    assert drawn[0][0][0] == "5 of 24 samples as stored, seed 3"
    for tile in drawn[0][1]:
        number = int(tile.captions[0].removeprefix("birds/"))
        name = ("ant (0), ", "bee (1), ", "cat (2), ")[number % 3] if number != 7 else ""
        assert tile.captions[1] == f"{name}{20 + number} x 30 jpeg"
        assert tile.views.shape == (2, 224, 224, 3)  # the mask stands beside the image
        assert (tile.views[1] == 255).all() == (number % 4 == 1)  # where there is one
    with Image.open(output) as sheet:
        assert sheet.format == "PNG"
    assert main([*command, "--class", "bee"]) == 0
    assert {tile.captions[1][:3] for tile in drawn[3][1]} == {"bee"}
    assert main(["show", str(tmp_path / "rich"), "--random", "500", "-o", str(output)]) == 0
    assert len(drawn[4][1]) == 24


def test_random_samples_of_a_plain_folder(image_folder: Path, tmp_path: Path, drawn: Drawn) -> None:
    (image_folder / "cat" / "cat-00.jpg").write_bytes(b"no image")
    options = ["--random", "12", "--class", "cat", "-o", str(tmp_path / "a.png")]
    assert main(["show", str(image_folder), *options]) == 0
    marks = {tile.captions[0]: tile.mark for tile in drawn[0][1]}
    assert marks == {f"cat/cat-{n:02d}.jpg": None if n else "cannot be decoded" for n in range(12)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--random", "3", "--digest"],
            "--digest is of a batch, and --random draws samples of none; give one of them",
        ),
        (["--class", "cat"], "--class says which samples --random draws; give that too"),
        (
            ["--random", "3", "--step", "1"],
            "--random draws at least 1 sample, of no batch: without --state, --epoch and --step",
        ),
    ],
)
def test_refusals_of_random_samples(
    options: list[str], sentence: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(image_folder), *options]) == 2
    assert capsys.readouterr() == ("", f"feeder: {sentence}\n")
    assert main(["show", str(image_folder), "--random", "3", "--class", "dog"]) == 2
    assert capsys.readouterr().err == (
        f"feeder: {image_folder} has no class 'dog' (such as 'ant'); 'feeder inspect' shows its classes\n"
    )


def test_views_of_several_sizes_stand_side_by_side(image_folder, tmp_path, capsys):
    sheet = tmp_path / "dino.png"
    assert main(["show", str(image_folder), "--transform", "dino:32", "--batch-size", "2", "-o", str(sheet)]) == 0
    assert sheet.read_bytes()[:4] == b"\x89PNG"
