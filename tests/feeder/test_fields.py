"""Fields beside image and label: their values, masks that follow their image, and images left as they are."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from feeder import ImageDataset, RandomHorizontalFlip, RandomResizedCrop, Views
from feeder.errors import ConfigError
from feeder.shards.building.writing import BuildOptions, build
from tests.images import encoded, picture
from tests.tar_archives import write_tar

COUNT = 24


def mask_of(number, size):
    """Return a palette mask whose values tell where a pixel stood: column // 8 + 16 * (row // 8)."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    mask = Image.fromarray((columns // 8 + 16 * (rows // 8)).astype(np.uint8), "L")
    mask = mask.copy()
    palette = mask.convert("P")
    palette.frombytes(mask.tobytes())
    palette.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Samples with a mask, a caption, a score that some lack, a count and bytes."""
    folder = tmp_path_factory.mktemp("fields")
    members = []
    for number in range(COUNT):
        size = (64 + number, 48)
        values = {"score": number / 2} if number % 4 else {"score": None}
        members += [
            (f"k{number:02}.jpg", encoded(number, size=size)),
            (f"k{number:02}.mask.png", mask_of(number, size)),
            (f"k{number:02}.txt", f"caption {number}".encode()),
            (f"k{number:02}.json", json.dumps({"n": number, **values}).encode()),
            (f"k{number:02}.cls", str(number % 3).encode()),
            (f"k{number:02}.bin", bytes([number])),
        ]
    source = write_tar(folder / "source.tar", members)
    build(str(source), str(folder / "shards"), BuildOptions(shuffle=False), workers=1)
    return str(folder / "shards")


def open_shards(shards, **changes):
    chosen = {"batch_size": 4, "transform": [RandomResizedCrop(32), RandomHorizontalFlip()], "arrays": "numpy"}
    return ImageDataset(shards, **{**chosen, **changes})


def test_the_fields_are_what_the_tests_think(shards):
    fields = open_shards(shards).manifest.fields
    assert {name: field.type for name, field in fields.items()} == {
        "image": "image", "label": "int64", "mask": "image", "caption": "string", "json": "json", "bin": "bytes",
    }  # fmt: skip


def test_values_belong_to_their_samples(shards):
    for batch in open_shards(shards, fields=["caption", "json", "bin"]):
        numbers = [int(key[1:]) for key in batch["key"]]
        assert batch["caption"] == [f"caption {number}" for number in numbers]
        assert [value["n"] for value in batch["json"]] == numbers
        assert batch["bin"] == [bytes([number]) for number in numbers]


def test_a_mask_has_the_geometry_of_its_image(shards):
    """What stands at a pixel of the mask is where the pixel came from, by the box and the flip of the batch."""
    for batch in open_shards(shards, fields=["mask"], views=2):
        assert batch["mask"].shape == (4, 2, 32, 32)
        assert batch["mask"].dtype == np.uint8
        for row in range(4):
            for view in range(2):
                x0, y0, x1, y1 = batch["crop"][row, view]
                steps = (np.arange(32) + 0.5) / 32
                columns, rows = x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)
                expected = (columns // 8)[None, :] + 16 * (rows // 8)[:, None]
                found = batch["mask"][row, view]
                if batch["flip"][row, view]:
                    found = found[:, ::-1]
                assert np.mean(found == expected) > 0.9  # rounding at borders of the squares


def test_views_have_masks_of_their_own(shards):
    views = Views({"large": ([RandomResizedCrop(32)], 2), "small": ([RandomResizedCrop(16)], 3)})
    batch = next(iter(open_shards(shards, transform=views, fields=["mask"])))
    shapes = {name: value.shape for name, value in batch.items() if isinstance(value, np.ndarray) and value.ndim > 2}
    assert shapes == {
        "large": (4, 2, 32, 32, 3), "small": (4, 3, 16, 16, 3), "large.crop": (4, 2, 4), "small.crop": (4, 3, 4),
        "large.mask": (4, 2, 32, 32), "small.mask": (4, 3, 16, 16),
    }  # fmt: skip


def test_views_of_one_group_are_those_of_a_list(shards):
    alone = next(iter(open_shards(shards, views=2)))
    views = Views({"a": ([RandomResizedCrop(32), RandomHorizontalFlip()], 2), "b": ([RandomResizedCrop(16)], 1)})
    groups = next(iter(open_shards(shards, transform=views)))
    assert np.array_equal(alone["image"], groups["a"])
    assert groups["b"].shape == (4, 16, 16, 3)


def test_numbers_become_arrays_and_missing_ones_are_said(shards, tmp_path):
    from feeder.shards.changing.annotating import annotate

    build(shards, str(tmp_path / "copy"), BuildOptions(shuffle=False), workers=1)
    rows = "key,score,n\n" + "".join(f"k{i:02},{i / 2 if i % 4 else ''},{i if i else ''}\n" for i in range(COUNT))
    (tmp_path / "values.csv").write_text(rows)
    annotate(str(tmp_path / "copy"), str(tmp_path / "values.csv"), on="key")
    seen = 0
    for batch in open_shards(str(tmp_path / "copy"), fields=["score"], shuffle=False):
        numbers = np.array([int(key[1:]) for key in batch["key"]])
        assert batch["score"].dtype == np.float64
        assert np.array_equal(batch["score"], np.where(numbers % 4 == 0, np.nan, numbers / 2), equal_nan=True)
        seen += len(numbers)
    assert seen == COUNT
    with pytest.raises(ConfigError) as caught:
        list(open_shards(str(tmp_path / "copy"), fields=["n"], shuffle=False))
    assert str(caught.value) == (
        "sample 'k00' has no value of 'n', and no number stands for none; leave such samples out with"
        " where='n is not None', or give map_fields={'n': a function that takes None}"
    )


def test_functions_map_values_and_results_are_stacked(shards):
    dataset = open_shards(shards, map_fields={"caption": lambda text: np.array([len(text), int(text.split()[1])])})
    for batch in dataset:
        assert batch["caption"].shape == (4, 2)
        assert batch["caption"][:, 1].tolist() == [int(key[1:]) for key in batch["key"]]


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda text: ([1, 2], [3]), None),
        (lambda text: torch.ones(2, dtype=torch.bfloat16), None),
        (lambda text: np.ones(2, np.longdouble), None),
        (lambda text: {1}, None),
        (lambda text: torch.ones(2, requires_grad=True), torch.float32),
        (lambda text: np.ones(2, ">f4"), torch.float32),
        (lambda text: 1.5, torch.float64),
    ],
)
def test_results_that_no_array_holds_remain_a_list(shards, function, dtype):
    batch = next(iter(open_shards(shards, map_fields={"caption": function}, arrays="torch")))
    assert getattr(batch["caption"], "dtype", None) == dtype
    assert len(batch["caption"]) == 4


def test_fields_and_views_may_begin_with_an_underscore(shards):
    batch = next(iter(open_shards(shards, transform=Views({"_a": ([RandomResizedCrop(8)], 1)}), fields=["mask"])))
    assert batch["_a"].shape == (4, 8, 8, 3)
    assert batch["_a.mask"].shape == (4, 8, 8)
    assert not {"_images", "_params"} & batch.keys()


def test_padded_rows_are_zeros_or_none(shards):
    dataset = open_shards(
        shards, batch_size=7, shuffle=False, fields=["caption", "mask"], map_fields={"json": lambda value: value["n"]}
    )
    last = list(dataset)[-1]
    assert last["valid"].tolist() == [True] * 3 + [False] * 4
    assert last["caption"] == ["caption 21", "caption 22", "caption 23", None, None, None, None]
    assert last["json"].tolist() == [21, 22, 23, 0, 0, 0, 0]
    assert not last["mask"][3:].any()


def test_images_can_be_left_as_they_are(shards):
    dataset = open_shards(shards, transform=None, decode=False, fields=["caption"])
    plain = open_shards(shards)
    for encoded_batch, batch in zip(dataset, plain, strict=True):
        assert encoded_batch["id"].tolist() == batch["id"].tolist()
        assert encoded_batch["size"].tolist() == batch["size"].tolist()
        assert encoded_batch["image"] == [
            encoded(int(key[1:]), size=(64 + int(key[1:]), 48)) for key in encoded_batch["key"]
        ]
        assert "crop" not in encoded_batch


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_samples_batched_elsewhere_are_the_batches(shards, workers):
    chosen = {"arrays": "auto", "fields": ["caption"], "seed": 3}
    loader = DataLoader(open_shards(shards, **chosen).samples(), batch_size=4, num_workers=workers)
    expected = list(open_shards(shards, **chosen))
    found = list(loader)
    assert len(found) == len(expected) == 6
    for batch, own in zip(found, expected, strict=True):
        assert batch["key"] == own["key"]
        assert batch["caption"] == own["caption"]
        assert torch.equal(batch["image"], own["image"])
    assert len(open_shards(shards, **chosen).samples()) == COUNT


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_number_of_samples_is_known(shards, world_size, shuffle):
    for rank in range(world_size):
        dataset = open_shards(
            shards, batch_size=None, global_batch_size=7, shuffle=shuffle, rank=rank, world_size=world_size
        )
        assert len(list(dataset.samples())) == len(dataset.samples())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fields": 3}, "fields is 3; give a list of names, such as ['3']"),
        (
            {"map_fields": ["caption"]},
            "map_fields is ['caption']; give functions by field, as in {{'caption': tokenize}}",
        ),
        (
            {"fields": ["caption"], "transform": Views({"caption": ([RandomResizedCrop(8)], 1)})},
            (
                "fields names 'caption', and batches have another entry of that name; give views another name, or"
                " 'feeder annotate' the dataset with the field's values under another"
            ),
        ),
        (
            {"fields": ["mask"], "transform": [np.copy]},
            (
                "fields names 'mask', an image, which gets the crop that the engine cuts for 'image', and there it cuts"
                " none: begin the transforms with one that it executes, such as feeder.RandomResizedCrop(224), or leave"
                " the field out"
            ),
        ),
        ({"fields": "caption"}, "fields is 'caption'; give a list of names, such as ['caption']"),
        ({"fields": ["label"]}, "fields names 'label', which is in every batch anyway; leave it out"),
        ({"fields": ["text"]}, "{url} has no field 'text'; it has bin, caption, json, mask"),
        (
            {"map_fields": {"mask": len}},
            "map_fields has a function for 'mask', which is an image; map values of other fields",
        ),
        (
            {"decode": False},
            "decode=False gives encoded images, for which there are no transforms; leave transform out",
        ),
        (
            {"decode": False, "transform": None, "fields": ["mask"]},
            "'mask' is an image, and decode=False decodes none; leave it out",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(shards, arguments, sentence):
    with pytest.raises(ConfigError) as caught:
        open_shards(shards, **arguments)
    assert str(caught.value) == sentence.format(url=shards)


def test_a_mask_of_another_size_is_a_bad_sample(tmp_path):
    members = []
    for number in range(8):
        members.append((f"k{number}.jpg", encoded(number)))
        buffer = io.BytesIO()
        picture(number, size=(32, 32) if number == 3 else (64, 48), mode="L").save(buffer, "PNG")
        members.append((f"k{number}.mask.png", buffer.getvalue()))
    build(
        str(write_tar(tmp_path / "source.tar", members)),
        str(tmp_path / "shards"),
        BuildOptions(shuffle=False),
        workers=1,
    )
    log = tmp_path / "bad.jsonl"
    dataset = open_shards(str(tmp_path / "shards"), fields=["mask"], shuffle=False, max_bad_fraction=1, audit_log=log)
    valid = {key: bool(ok) for batch in dataset for key, ok in zip(batch["key"], batch["valid"], strict=True)}
    assert valid == {f"k{number}": number != 3 for number in range(8)}
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {
            "dataset": str(tmp_path / "shards"),
            "rank": 0,
            "epoch": 0,
            "position": 0,
            "row": 3,
            "id": 3,
            "key": "k3",
            "reason": "has a mask that is 32×32 but the index says 64×48",
            "stand_in": None,
        }
    ]
