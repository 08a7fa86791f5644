"""The README's code for training, run as it stands there but for its paths, batch sizes and device."""

import json
import re
from pathlib import Path

import pytest

from feeder import ImageDataset, presets
from feeder.shards.building.writing import BuildOptions, build_tables
from feeder.shards.sources.lists import scan_list
from feeder.shards.sources.options import SourceOptions
from tests.images import encoded
from tests.peers import torchvision_transforms

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Samples with all that the README's lines speak of."""
    folder = tmp_path_factory.mktemp("readme")
    lines = []
    for number in (123, 456, *range(22)):
        size = (256 + number % 7, 230)
        (folder / f"{number:06}.jpg").write_bytes(encoded(number, size=size))
        (folder / f"{number:06}.png").write_bytes(encoded(number, size=size, mode="L", format="PNG"))
        line = {"path": f"{number:06}.jpg", "mask": f"{number:06}.png", "label": f"class {number % 3}", "score": 0.5}
        lines.append(json.dumps({**line, "caption": f"caption {number}", "url": f"http://pictures/{number}"}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    tables = scan_list(str(folder / "list.jsonl"), SourceOptions(image_columns={"mask": "mask"}))
    shards = tmp_path_factory.mktemp("shards") / "small"
    build_tables(tables, shards, BuildOptions())
    return str(shards)


@pytest.fixture
def run_section(shards, monkeypatch, tmp_path):
    """Run the blocks of a section of "Use it"; return their variables."""
    monkeypatch.chdir(tmp_path)

    def run(name, variables):
        section = README.read_text().split(f"\n### {name}\n")[1].split("\n### ")[0]
        code = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
        for text, small in (
            (r'"/data/[a-z0-9-]+"', repr(shards)),
            (r"\bbatch_size=\d+", "batch_size=2"),
            ('device="cuda"', "device=None"),
            (r"loader\.epoch, 90", "loader.epoch, 2"),
        ):
            code = re.sub(text, small, code)
        exec(compile(code, "README.md", "exec"), variables)
        return variables

    return run


def test_training(run_section, shards):
    shapes = []
    found = run_section("Train", {"saved": None, "step": lambda images, labels: shapes.append(tuple(images.shape))})
    assert shapes == [(2, 3, 224, 224)] * 24
    assert found["checkpoint"]["data"]["position"] == 24
    again = run_section("Train", {"saved": found["checkpoint"], "step": lambda images, labels: pytest.fail("went on")})
    assert again["loader"].epoch == 2


def test_transforms(run_section, shards):
    torchvision_transforms()
    found = run_section("Transforms", {"presets": presets})
    ours = next(iter(ImageDataset(shards, batch_size=2, transform=found["transform"])))
    theirs = next(iter(ImageDataset(shards, batch_size=2, transform=found["pipeline"])))
    assert ours["image"].shape == theirs["image"].shape == next(iter(found["train"]))["image"].shape == (2, 3, 224, 224)


def test_samples_and_fields(run_section, capsys):
    found = run_section("Samples and fields", {"ImageDataset": ImageDataset, "presets": presets, "tokenize": len})
    assert "fields      url, caption, mask" in capsys.readouterr().out
    (batch,) = found["train"]
    assert batch["mask"].shape == (2, 224, 224)
    assert batch["caption"].tolist() == [len(f"caption {int(key)}") for key in batch["key"]]


def test_views(run_section):
    found = run_section("Views", {"ImageDataset": ImageDataset, "RandomResizedCrop": presets.RandomResizedCrop})
    assert found["batch"]["global"].shape == (2, 2, 3, 224, 224)
    assert found["batch"]["local"].shape == (2, 8, 3, 96, 96)


def test_mixtures(run_section, shards):
    from feeder import Loader

    datasets = {
        name: ImageDataset(shards, batch_size=2, transform=presets.imagenet_train(32))
        for name in ("photos", "drawings")
    }
    found = run_section("Mixtures", {"Loader": Loader, **datasets})
    counts = found["train"].counts(found["batch"]["state"])
    assert sum(seen.samples for seen in counts.values()) == 48
    assert next(iter(counts.values())).samples in (33, 34)
