"""``feeder stream``: digests, states, the JSON object, and refusals."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feeder import ImageDataset, presets
from feeder.tools import measuring
from feeder.tools.main import main

Stream = Callable[..., dict[str, Any]]

_SMALL = ("--transform", "imagenet-train:16", "--batch-size", "5")  # of the 36 images of `image_folder`


@pytest.fixture
def stream(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> Stream:
    """Run ``feeder stream --json`` on the image folder and return the object."""

    def run(*options: str) -> dict[str, Any]:
        assert main(["stream", str(image_folder), "--json", *_SMALL, *options]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def refusal(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``feeder stream``, expect a refusal, and return its sentence."""

    def run(*options: str) -> str:
        assert main(["stream", str(image_folder), *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.removeprefix("feeder: ").removesuffix("\n")

    return run


def test_digests_are_those_of_the_batches(stream: Stream, image_folder: Path) -> None:
    dataset = ImageDataset(
        image_folder, batch_size=5, transform=presets.imagenet_train(16), views=2, seed=3, arrays="numpy"
    )
    ids, pixels = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for batch in dataset:
        ids.update(batch["id"].astype("<i8").tobytes())
        pixels.update(batch["id"].astype("<i8").tobytes() + batch["image"].tobytes())
    (epoch,) = stream("--seed", "3", "--views", "2", "--digest", "pixels")["epochs"]
    assert epoch["digests"] == {"ids": ids.hexdigest(), "pixels": pixels.hexdigest()}
    dataset.close()


def test_workers_and_threads_make_no_difference(stream: Stream) -> None:
    pytest.importorskip("torch")
    options = ("--epochs", "2", "--digest", "pixels")
    runs = [
        stream(*options, *more)
        for more in (("--threads", "1"), ("--threads", "4"), ("--workers", "2"), ("--workers", "3", "--threads", "1"))
    ]
    digests = [[epoch["digests"] for epoch in run["epochs"]] for run in runs]
    assert all(other == digests[0] for other in digests)
    assert digests[0][0] != digests[0][1]
    assert [run["workers"] for run in runs] == [0, 0, 2, 3]
    assert [run["start_method"] is None for run in runs] == [True, True, False, False]


def test_the_object_says_everything(stream: Stream, image_folder: Path) -> None:
    result = stream("--epochs", "2", "--rank", "1", "--world-size", "2", "--threads", "1")
    assert set(result) == {
        *("schema", "dataset", "order", "engine", "transform", "views", "workers", "start_method", "threads"),
        *("rank", "world_size", "global_batch", "epochs", "images", "seconds", "images_per_s", "cpu_ms_per_image"),
        "state",
    }
    assert result["schema"] == "feeder.stream/1"
    assert result["dataset"]["source"] == str(image_folder)
    assert (result["dataset"]["images"], result["dataset"]["classes"]) == (36, 3)
    assert (result["rank"], result["world_size"], result["global_batch"], result["threads"]) == (1, 2, 10, 1)
    assert result["images"] == 30
    assert result["cpu_ms_per_image"] > 0
    first, second = result["epochs"]
    assert (first["epoch"], first["position"], first["steps"], first["images"]) == (0, 0, 3, 15)
    assert second["epoch"] == 1
    assert result["state"]["epoch"] == 1
    assert result["state"]["position"] == 30
    assert result["state"]["order"] == result["order"]


def test_padding_counts_as_no_image(stream: Stream) -> None:
    result = stream("--no-shuffle")
    assert (result["images"], result["epochs"][0]["steps"]) == (36, 8)  # of 40 rows


def test_a_saved_state_goes_on_where_it_was_saved(stream: Stream, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    whole = stream("--seed", "5", "--epochs", "2")
    head = stream("--seed", "5", "--epochs", "2", "--steps", "3", "--save-state", str(state))
    assert [epoch["steps"] for epoch in head["epochs"]] == [3]
    assert json.loads(state.read_text()) == head["state"]
    tail = stream("--state", str(state), "--epochs", "2")  # the seed comes from the state
    assert [(e["epoch"], e["position"], e["steps"]) for e in tail["epochs"]] == [(0, 15, 4), (1, 0, 7)]
    assert tail["epochs"][1]["digests"] == whole["epochs"][1]["digests"]
    by_hand = stream("--seed", "5", "--epoch", "0", "--position", "15")
    assert by_hand["epochs"][0]["digests"] == tail["epochs"][0]["digests"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["state.json"]


def test_the_step_limit_counts_over_epochs(stream: Stream) -> None:
    result = stream("--epochs", "3", "--steps", "9")
    assert [(epoch["epoch"], epoch["steps"]) for epoch in result["epochs"]] == [(0, 7), (1, 2)]
    nothing = stream("--steps", "0")
    assert (nothing["epochs"], nothing["images"], nothing["state"]) == ([], 0, None)


def test_shuffle_options_reach_the_order(stream: Stream) -> None:
    order = stream("--lanes", "4", "--window-shards", "2", "--no-sticky", "--steps", "1")["order"]
    assert (order["lanes"], order["sticky"], order["window"] is None) == (4, False, False)
    assert stream("--window-shards", "all", "--steps", "1")["order"]["window"] is None
    assert stream("--no-shuffle", "--steps", "1")["order"]["shuffle"] is False


def test_plain_output(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", str(image_folder), *_SMALL, "--digest", "pixels", "--quiet"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert [line[0] for line in lines] == [
        *("dataset", "order", "rank", "batches", "pixels"),
        *("epoch", "ids", "pixels", "in"),
    ]
    assert " ".join(lines[3]) == "batches global batch 5, 7 steps an epoch"
    assert captured.err == ""


def test_refusals(refusal: Callable[..., str], tmp_path: Path) -> None:
    both = refusal("--batch-size", "3", "--global-batch-size", "4")
    assert both == (
        "both of batch_size (3, per rank) and global_batch_size (4, of all ranks) is given; give exactly one"
    )
    assert refusal("--rank", "2", "--world-size", "2") == ("rank is 2 and world_size is 2; rank must be from 0 to 1")
    assert refusal("--no-shuffle", "--lanes", "2") == (
        "--lanes says how to shuffle, and --no-shuffle not to; give one of them"
    )
    assert refusal("--start-method", "fork") == (
        "--start-method fork is for worker processes, and there are none; add --workers"
    )
    assert refusal("--state", "x", "--epoch", "1") == (
        "--state says where to start, and so do --epoch and --position; give one or the other"
    )
    assert refusal("--position", "36", "--batch-size", "5") == (
        "--position 36 leaves no step of epoch 0: there are 36 samples, and the global batch is 5"
    )
    assert refusal("--save-state", f"{tmp_path}/no/state.json") == (
        f"--save-state {tmp_path}/no/state.json cannot be written: its folder does not exist; make it first"
    )
    assert refusal("--save-state", str(tmp_path)) == (
        f"--save-state {tmp_path} cannot be written: it is a folder; give the name of a file"
    )
    assert refusal("--steps", "9" * 20) == (
        f"argument --steps: {'9' * 20} is more than anything can count to; write a smaller one"
        " (see 'feeder stream --help')"
    )
    assert refusal("--epoch", str(2**62)) == f"the state has {2**62} at epoch; it must be from 0 to 2**62 - 1"
    assert refusal("--state", f"{tmp_path}/none.json") == f"No such file or directory: {tmp_path}/none.json"
    (tmp_path / "no.json").write_text("{")
    assert refusal("--state", f"{tmp_path}/no.json") == (
        f"{tmp_path}/no.json holds no state: it is not JSON; write one with 'feeder stream --save-state'"
    )


def test_an_error_in_a_worker_is_the_sentence_it_was_there(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    good = image_folder / "ant" / "ant-00.jpg"
    good.write_bytes(good.read_bytes()[:200])
    arguments = ["stream", str(image_folder), *_SMALL, "--on-error", "raise", "-q"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("feeder: sample 0 ('ant/ant-00.jpg') cannot be decoded as JPEG: ")
    assert error.count("\n") == 1
    # A process of its own: where failed workers are left to the garbage collector, torch waits five seconds for them.
    command = [sys.executable, "-m", "feeder.tools.main", *arguments, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, error)


def test_images_have_their_channels_last() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.arange(2 * 3 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 3)
    tensor = torch.from_numpy(pixels).movedim(-1, -3)
    batch = {"id": np.arange(2), "image": tensor, "small": tensor[..., :2]}
    found = measuring.image_arrays(batch)
    assert len(found) == 2
    assert np.array_equal(found[0], pixels)
    assert np.array_equal(found[1], pixels[:, :, :, :2])
    assert measuring.image_arrays({"image": pixels})[0] is pixels


def test_a_selection_is_streamed(stream: Stream) -> None:
    found = stream("--where", "label in [0, 1]", "--limit", "10", "--batch-size", "2", "--workers", "1")
    assert found["images"] == 10
    assert found["order"]["copies"] is not None
    assert stream("--balance", "label", "--no-shuffle")["images"] == 36


def test_a_file_of_keys_that_is_not_there_is_said(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = str(tmp_path / "keys.txt")
    assert refusal(*_SMALL, "--exclude", path) == (
        f"expression {path!r} cannot be read at character 1 (invalid syntax); expected a condition such as label in"
        " [3, 7] and width >= 256; nor is there a file of that name, whose keys --exclude would leave out"
    )
