"""Batches are a pure function: of nothing but the dataset, the seed, the epoch and the position."""

import copy
import hashlib
import json
import logging
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from feeder import ImageDataset, Normalize, RandomHorizontalFlip, RandomResizedCrop, Shuffle, presets
from feeder.errors import ConfigError, RankError, SampleError, StateError, TooManyBadSamplesError
from feeder.placement import Placement
from feeder.shards.building.writing import BuildOptions, build
from tests.images import encoded, write_image_folder

TRAIN = (RandomResizedCrop(32), RandomHorizontalFlip())
EVALUATE = presets.imagenet_eval(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes of 13 small images."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "images", classes=("a", "b", "c", "d"), per_class=13)


def open_dataset(folder, **changes):
    """Open the folder with settings that suit most tests: several lanes and a window, as in a large dataset."""
    chosen = {
        "batch_size": 4,
        "transform": TRAIN,
        "seed": 5,
        "threads": 2,
        "shuffle": Shuffle(lanes=4, window_shards="all"),
    }
    if "global_batch_size" in changes:
        del chosen["batch_size"]
    return ImageDataset(folder, **{**chosen, **changes})


def digests(batches):
    """Return the digests of ids and of everything else in batches."""
    ids, content = hashlib.blake2b(), hashlib.blake2b()
    for batch in batches:
        ids.update(np.asarray(batch["id"]).tobytes())
        for name in ("image", "label", "valid", "crop", "flip", "size"):
            content.update(np.ascontiguousarray(batch[name]).tobytes())
        content.update(json.dumps([batch["key"], batch["state"], batch["epoch"], batch["position"]]).encode())
    return ids.hexdigest(), content.hexdigest()


def valid_ids(batches):
    """Return the ids of the valid samples of batches."""
    return [int(i) for batch in batches for i, ok in zip(batch["id"], batch["valid"], strict=True) if ok]


def loader(dataset, workers, method=None, **options):
    """Return a plain DataLoader, as users make it."""
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method, **options)


@pytest.fixture(scope="module")
def reference(folder):
    """The digests of epochs 0 and 1, made in this process by one thread."""
    dataset = open_dataset(folder, threads=1)
    return [digests(dataset), digests(dataset)]


def test_epochs_differ(reference):
    assert reference[0][0] != reference[1][0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("workers", "method", "threads"),
    [
        (0, None, 4),
        (1, "fork", 1),
        (3, "fork", 4),
        (1, "spawn", 4),
        (3, "spawn", 1),
        (3, "forkserver", 4),
    ],
)
def test_any_workers_threads_and_start_method_give_the_same_epochs(folder, reference, workers, method, threads):
    batches = loader(open_dataset(folder, threads=threads), workers, method, persistent_workers=workers == 3)
    assert len(batches) == 13
    assert [digests(batches), digests(batches)] == reference


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_set_epoch_reaches_persistent_workers(folder, reference):
    dataset = open_dataset(folder)
    batches = loader(dataset, 3, "fork", persistent_workers=True)
    assert [digests(batches), digests(batches)] == reference
    dataset.set_epoch(1)
    assert digests(batches) == reference[1]
    dataset.set_epoch(0)
    assert [digests(batches), digests(batches)] == reference


def test_an_epoch_that_is_broken_off_is_not_repeated(folder, reference):
    dataset = open_dataset(folder)
    next(iter(dataset))
    assert dataset.epoch == 1
    assert digests(dataset) == reference[1]


def test_a_process_forked_after_iterating_makes_threads_of_its_own(folder, reference):
    dataset = open_dataset(folder)
    assert digests(dataset) == reference[0]
    assert digests(loader(dataset, 1, "fork")) == reference[1]


@pytest.mark.parametrize("world_size", range(1, 9))
def test_global_batches_are_the_same_for_any_world_size(folder, world_size):
    whole = list(open_dataset(folder, global_batch_size=12))
    ranks = [list(open_dataset(folder, global_batch_size=12, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(whole)} == {4}
    for step, batch in enumerate(whole):
        parts = [batches[step] for batches in ranks]
        assert {tuple(part["image"].shape) for part in parts} == {(-(-12 // world_size), 3, 32, 32)}
        for name in ("image", "id", "label", "crop", "flip", "size"):
            together = np.concatenate([np.asarray(part[name])[np.asarray(part["valid"])] for part in parts])
            assert np.array_equal(together, np.asarray(batch[name]))
        padded = [
            np.asarray(part[name])[~np.asarray(part["valid"])] for part in parts for name in ("label", "id", "image")
        ]
        assert all(np.isin(rows, (-100, -1, 0)).all() for rows in padded)
        assert {json.dumps(part["state"]) for part in parts} == {json.dumps(batch["state"])}


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_an_evaluation_epoch_holds_each_sample_exactly_once(folder, world_size):
    ranks = [
        list(open_dataset(folder, transform=EVALUATE, shuffle=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(i for batches in ranks for i in valid_ids(batches)) == list(range(52))


@pytest.mark.parametrize(("global_batch", "world_size"), [(4, 1), (4, 2), (3, 1), (10, 3)])
def test_resume_at_every_step_gives_the_remaining_sequence(folder, global_batch, world_size):
    batches = list(open_dataset(folder))  # 4 lanes and steps of 4: the samples of a step stand in order of position
    by_position = valid_ids(batches)
    for batch in batches:
        steps = []
        for rank in range(world_size):
            dataset = open_dataset(folder, global_batch_size=global_batch, rank=rank, world_size=world_size)
            dataset.load_state_dict(json.loads(json.dumps(batch["state"])))
            steps.append([(part["epoch"], valid_ids([part])) for part in dataset])
        position = batch["position"] + 4
        rest = by_position[position : position + (52 - position) // global_batch * global_batch]
        resumed = [i for parts in zip(*steps, strict=True) for _, ids in parts for i in ids]
        if not rest:  # no whole step is left: the next epoch begins
            assert {epoch for parts in steps for epoch, _ in parts} == {1}
        elif global_batch == 4:
            assert resumed == rest
        else:
            assert sorted(resumed) == sorted(rest)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resume_under_a_plain_dataloader_by_the_state_of_the_batch(folder, workers):
    batches = list(open_dataset(folder))
    first = []
    for batch in loader(open_dataset(folder), workers):
        first.append(batch)
        if len(first) == 5:
            break
    dataset = open_dataset(folder)
    dataset.load_state_dict(first[-1]["state"])
    resumed = loader(dataset, 3 - workers)
    assert digests([*first, *resumed]) == digests(batches)
    assert digests(resumed) == digests(open_dataset_at(folder, epoch=1))


def open_dataset_at(folder, epoch):
    """Open the dataset at an epoch."""
    dataset = open_dataset(folder)
    dataset.set_epoch(epoch)
    return dataset


def test_a_loop_that_sets_every_epoch_resumes_inside_one(folder):
    whole = [list(open_dataset_at(folder, epoch)) for epoch in (1, 2)]
    dataset = open_dataset(folder)
    dataset.load_state_dict(whole[0][4]["state"])
    resumed = []
    for epoch in range(dataset.epoch, 3):
        dataset.set_epoch(epoch)
        resumed.append(list(dataset))
    assert [digests(batches) for batches in resumed] == [digests(whole[0][5:]), digests(whole[1])]


def test_state_dict_follows_this_process(folder):
    dataset = open_dataset(folder)
    batches = iter(dataset)
    assert dataset.state_dict()["position"] == 0
    states = [next(batches)["state"] for _ in range(3)]
    assert dataset.state_dict() == states[-1]
    assert states[-1]["position"] == 12
    fresh = open_dataset(folder)
    fresh.load_state_dict(dataset.state_dict())
    assert digests(fresh) == digests(batches)


def test_state_dict_under_workers_points_to_the_batch(folder):
    dataset = open_dataset(folder)
    for _ in loader(dataset, 1):
        pass
    with pytest.raises(StateError) as caught:
        dataset.state_dict()
    assert str(caught.value) == (
        "the batches were made in DataLoader workers, which run ahead of your loop; save the state of the last batch"
        " you received: batch['state']"
    )


def test_a_state_fills_in_what_was_left_unset(folder):
    state = next(iter(open_dataset(folder, seed=99)))["state"]
    dataset = open_dataset(folder, seed=None, shuffle=True, batch_size=2)
    dataset.load_state_dict(state)
    assert dataset.order_settings.seed == 99
    assert dataset.order_settings.lanes == 4
    assert next(iter(dataset))["position"] == 4


def test_a_state_of_another_order_is_refused(folder):
    state = next(iter(open_dataset(folder)))["state"]
    with pytest.raises(StateError) as caught:
        open_dataset(folder, seed=6, shuffle=Shuffle(lanes=2)).load_state_dict(state)
    assert str(caught.value) == (
        "the state belongs to another order than the arguments ask for: seed 5 in the state and 6 here; lanes 4 in the"
        " state and 2 here; leave them unset to take them from the state"
    )
    with pytest.raises(StateError, match="shuffle True in the state and False here"):
        open_dataset(folder, shuffle=False).load_state_dict(state)


def test_a_state_of_another_dataset_is_refused(folder, image_folder):
    state = next(iter(open_dataset(folder)))["state"]
    other = open_dataset(image_folder)
    with pytest.raises(StateError) as caught:
        other.load_state_dict(state)
    assert str(caught.value) == (
        f"the state belongs to the dataset with digest {state['dataset']}, but {image_folder} has digest"
        f" {other.manifest.digest}; open the dataset that the state was made with"
    )


def test_another_order_cannot_be_loaded_under_running_workers(folder):
    state = next(iter(open_dataset(folder, seed=99)))["state"]
    dataset = open_dataset(folder, seed=None)
    batches = loader(dataset, 1, persistent_workers=True)
    for _ in batches:
        break
    for epoch in (0, 7):  # once the epoch is set, a state could be saved again, but the workers' order is the old one
        dataset.set_epoch(epoch)
        with pytest.raises(StateError, match="another order than the one that DataLoader workers were started with"):
            dataset.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_same_order_can_be_loaded_under_running_workers(folder):
    dataset = open_dataset(folder)
    batches = loader(dataset, 2)
    state = [batch["state"] for batch in batches][4]
    dataset.load_state_dict(state)
    resumed = list(batches)
    assert [batch["position"] for batch in resumed] == list(range(20, 52, 4))
    assert resumed[-1]["state"] == list(open_dataset(folder))[-1]["state"]


def test_a_state_whose_order_cannot_be_changes_nothing(folder):
    dataset = open_dataset(folder, shuffle=True)
    state = next(iter(dataset))["state"]
    with pytest.raises(ConfigError, match="the order has 100 lanes and 52 samples"):
        dataset.load_state_dict({**state, "order": {**state["order"], "lanes": 100}})
    assert next(iter(dataset))["epoch"] == 1


def test_another_engine_is_only_a_warning(folder, caplog):
    state = {**next(iter(open_dataset(folder)))["state"], "engine": "turbo"}
    open_dataset(folder).load_state_dict(state)
    assert "made with engine turbo (pixel contract 1), this run has pillow (1)" in caplog.text


def test_any_batch_can_be_computed_anywhere(folder):
    dataset = open_dataset(folder)
    walked = [list(dataset), list(dataset)]
    fresh = open_dataset(folder)
    for epoch, step in ((1, 7), (0, 12), (1, 0)):
        assert digests([fresh.batch(epoch=epoch, step=step)]) == digests([walked[epoch][step]])
    part = open_dataset(folder, batch_size=1).batch(epoch=0, step=3, rank=2, world_size=4)
    assert part["id"].tolist() == walked[0][3]["id"][2:3].tolist()
    assert fresh.epoch == 0


def test_what_was_asked_before_changes_no_batch(tmp_path):
    """The default lanes follow from the global batch of the very call: 1 at 64, 4 at 256."""
    source = write_image_folder(tmp_path / "images", classes=("a",), per_class=256)
    build(source, tmp_path / "shards", BuildOptions(shard_samples=4))

    def fresh(**placement):
        return ImageDataset(tmp_path / "shards", batch_size=64, transform=TRAIN, seed=5, threads=2, **placement)

    expected = next(iter(fresh(rank=1, world_size=4)))
    assert expected["state"]["order"]["lanes"] == 4
    dataset = fresh()
    assert len(dataset) == 4
    assert dataset[0]["id"] == 0
    assert next(iter(dataset))["state"]["order"]["lanes"] == 1
    elsewhere = dataset.batch(epoch=0, step=0, rank=1, world_size=4)
    assert digests([elsewhere]) == digests([expected])


def test_a_sample_is_what_batches_show(folder):
    dataset = open_dataset(folder)
    batch = dataset.batch(epoch=0, step=2)
    sample = dataset[int(batch["id"][1])]
    assert sample["key"] == batch["key"][1]
    assert sample["image"].shape == (3, 32, 32)
    assert np.array_equal(sample["image"], batch["image"][1])
    assert np.array_equal(dataset[-1]["image"], dataset[51]["image"])
    with pytest.raises(IndexError, match="there is no sample 52; the dataset has 52"):
        dataset[52]


def test_what_a_batch_holds(folder):
    torch = pytest.importorskip("torch")
    dataset = open_dataset(folder)
    batch = next(iter(dataset))
    assert dataset.classes == ("a", "b", "c", "d")
    assert [dataset.classes[label] for label in batch["label"]] == [key[0] for key in batch["key"]]
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert {name: tuple(batch[name].shape) for name in ("image", "label", "id", "valid", "crop", "flip", "size")} == {
        "image": (4, 3, 32, 32),
        "label": (4,),
        "id": (4,),
        "valid": (4,),
        "crop": (4, 4),
        "flip": (4,),
        "size": (4, 2),
    }
    plain = next(iter(open_dataset(folder, arrays="numpy")))
    assert isinstance(plain["image"], np.ndarray)
    assert np.array_equal(plain["image"].transpose(0, 3, 1, 2), batch["image"])


def test_views_have_an_axis_of_their_own(folder):
    batch = next(iter(open_dataset(folder, views=2)))
    assert tuple(batch["image"].shape) == (4, 2, 3, 32, 32)
    assert tuple(batch["crop"].shape) == (4, 2, 4)
    assert not np.array_equal(batch["image"][:, 0], batch["image"][:, 1])
    assert np.array_equal(batch["image"][:, 0], next(iter(open_dataset(folder)))["image"])


def test_normalised_batches_are_float(folder):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = next(iter(open_dataset(folder, arrays="numpy")))["image"]
    normalised = next(iter(open_dataset(folder, arrays="numpy", transform=[*TRAIN, Normalize(mean, std)])))["image"]
    assert normalised.dtype == np.float32
    assert np.allclose(normalised, (plain / 255 - mean) / std, atol=1e-5)


def test_datasets_can_be_copied_and_pickled(folder, reference):
    dataset = open_dataset(folder)
    assert digests(dataset) == reference[0]
    for twin in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert twin.epoch == 1
        assert digests(twin) == reference[1]


def test_a_closed_dataset_opens_again(folder, reference):
    dataset = open_dataset(folder)
    assert digests(dataset) == reference[0]
    dataset.close()
    assert digests(dataset) == reference[1]


@pytest.fixture
def bad_folder(tmp_path):
    """Two classes of 20 images, of which numbers 3 and 25 are cut in the middle."""
    root = write_image_folder(tmp_path / "bad", classes=("a", "b"), per_class=20)
    for name in ("a/a-03.jpg", "b/b-05.jpg"):
        data = encoded(1, size=(90, 90))
        (root / name).write_bytes(data[: len(data) // 2])
    return root


def test_a_bad_sample_is_replaced_by_the_same_one_everywhere(bad_folder, caplog):
    def open_bad(**changes):
        return open_dataset(bad_folder, max_bad_fraction=1.0, **changes)

    with caplog.at_level(logging.WARNING, "feeder"):
        whole = list(open_bad(global_batch_size=8))
    ids = valid_ids(whole)
    assert len(ids) == 40
    assert not {3, 25} & set(ids)
    assert len([record for record in caplog.records if "stands in" in record.message]) == 2
    assert "sample 3 ('a/a-03" in caplog.text
    for threads, world_size in ((1, 1), (4, 2)):
        parts = [
            list(open_bad(global_batch_size=8, threads=threads, rank=r, world_size=world_size))
            for r in range(world_size)
        ]
        for step, batch in enumerate(whole):
            together = np.concatenate([np.asarray(part[step]["image"]) for part in parts])
            assert np.array_equal(together, np.asarray(batch["image"]))
    labels = np.concatenate([np.asarray(batch["label"]) for batch in whole])
    assert [("a", "b")[label] for label in labels] == [key[0] for batch in whole for key in batch["key"]]


def test_a_stand_in_has_a_crop_of_its_own(bad_folder):
    batches = list(open_dataset(bad_folder, max_bad_fraction=1.0))
    twice = [i for i in set(valid_ids(batches)) if valid_ids(batches).count(i) > 1]
    assert twice
    crops = [batch["crop"][row] for batch in batches for row in range(4) if int(batch["id"][row]) == twice[0]]
    assert not np.array_equal(crops[0], crops[1])


def test_a_bad_sample_in_evaluation_is_masked(bad_folder):
    batches = list(open_dataset(bad_folder, transform=EVALUATE, shuffle=False, max_bad_fraction=1.0))
    ids = valid_ids(batches)
    assert ids == [i for i in range(40) if i not in (3, 25)]
    masked = batches[0]
    assert masked["id"].tolist() == [0, 1, 2, 3]
    assert masked["label"].tolist() == [0, 0, 0, -100]
    assert not masked["image"][3].any()


def test_a_bad_sample_can_stop_the_run(bad_folder):
    with pytest.raises(
        SampleError, match=r"sample (3|25) \('.*'\) cannot be decoded as JPEG: .*; on_error='replace' would put"
    ):
        list(open_dataset(bad_folder, on_error="raise"))


def test_too_many_bad_samples_stop_the_run(bad_folder):
    with pytest.raises(TooManyBadSamplesError) as caught:
        list(open_dataset(bad_folder, max_bad_fraction=0.0001))
    assert "samples cannot be decoded, and max_bad_fraction allows 1 of 10000; the last: sample" in str(caught.value)


def test_a_segment_of_bad_samples_stops_the_run(tmp_path):
    root = tmp_path / "all-bad"
    (root / "a").mkdir(parents=True)
    for number in range(8):
        (root / "a" / f"{number}.jpg").write_bytes(encoded(number)[:-300])
    with pytest.raises(SampleError, match="nor can 8 others of its shard be decoded, one of which would stand in"):
        list(open_dataset(root, max_bad_fraction=1.0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"batch_size": 4, "global_batch_size": 8},
            "both of batch_size (4, per rank) and global_batch_size (8, of all ranks) is given; give exactly one",
        ),
        ({"batch_size": None}, "neither of batch_size (None, per rank)"),
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
        ({"batch_size": 4.0}, "batch_size is 4.0; it must be an integer of at least 1"),
        ({"batch_size": True}, "batch_size is True; it must be an integer of at least 1"),
        ({"seed": 7.5}, "seed is 7.5; it must be None or an integer from -2**127 to 2**127 - 1"),
        ({"seed": True}, "seed is True; it must be None or an integer"),
        ({"seed": 2**127}, "seed is 170141183460469231731687303715884105728; it must be None or an integer"),
        ({"threads": 0}, "threads is 0; it must be an integer of at least 1"),
        ({"threads": 2.5}, "threads is 2.5; it must be an integer of at least 1"),
        ({"max_bad_fraction": 2}, "max_bad_fraction is 2; it must be a number from 0 to 1"),
        ({"max_bad_fraction": None}, "max_bad_fraction is None; it must be a number from 0 to 1"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; it must be True, False or a feeder.Shuffle"),
        ({"on_error": "skip"}, "on_error is 'skip'; it must be one of 'replace', 'mask', 'raise'"),
        ({"arrays": "jax"}, "arrays is 'jax'; it must be one of 'auto', 'torch', 'numpy'"),
        ({"rank": 3, "world_size": 2}, "rank is 3 and world_size is 2; rank must be from 0 to 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(folder, arguments, sentence):
    with pytest.raises(ConfigError) as caught:
        ImageDataset(folder, **{"batch_size": 4, "transform": TRAIN, **arguments})
    assert str(caught.value).startswith(sentence)


def test_integers_of_numpy_leave_states_that_can_be_saved(folder):
    plain = open_dataset(folder, world_size=2, rank=1)
    dataset = open_dataset(
        folder,
        batch_size=np.int64(4),
        seed=np.uint64(5),
        threads=np.int32(2),
        views=np.int64(1),
        rank=np.int64(1),
        world_size=np.int64(2),
        shuffle=Shuffle(lanes=np.int64(4)),
        max_bad_fraction=np.float32(0.5),
    )
    batch = next(iter(dataset))
    assert json.dumps(batch["state"]) == json.dumps(next(iter(plain))["state"])
    assert batch["id"].tolist() == plain.batch(epoch=0, step=0)["id"].tolist()
    later = dataset.batch(epoch=np.int64(1), step=np.int64(2))
    assert json.dumps(later["state"]) == json.dumps(plain.batch(epoch=1, step=2)["state"])


def test_what_is_no_integer_is_refused_in_calls(folder):
    dataset = open_dataset(folder)
    for call in (lambda: dataset.set_epoch(1.5), lambda: dataset.batch_at(epoch=1.5, position=0)):
        with pytest.raises(ConfigError, match=r"epoch is 1.5; it must be an integer from 0 to 2\*\*62 - 1"):
            call()
    with pytest.raises(ConfigError, match=r"position is -4; it must be an integer from 0 to 2\*\*62 - 1"):
        dataset.batch_at(epoch=0, position=-4)
    with pytest.raises(ConfigError, match=r"epoch is 4611686018427387904; it must be an integer from 0 to 2\*\*62 - 1"):
        dataset.set_epoch(2**62)
    with pytest.raises(ConfigError, match=r"step is 1.0; it must be an integer"):
        dataset.batch(epoch=0, step=1.0)
    with pytest.raises(TypeError, match=r"the sample id is 1.5; it must be an integer"):
        dataset[1.5]


def test_a_global_batch_larger_than_the_dataset_is_refused_in_training(folder):
    with pytest.raises(ConfigError) as caught:
        len(open_dataset(folder, batch_size=53))
    assert str(caught.value) == (
        f"the global batch is 53 and {folder} has 52 samples; a training epoch drops the last part of a step, so it"
        " would have no step: lower batch_size, or set shuffle=False"
    )
    assert len(open_dataset(folder, batch_size=53, shuffle=False)) == 1


def test_a_global_batch_smaller_than_the_world_is_refused(folder):
    with pytest.raises(ConfigError) as caught:
        len(open_dataset(folder, global_batch_size=3, rank=0, world_size=4))
    assert str(caught.value) == (
        "global_batch_size is 3 and there are 4 ranks, so that some would never get a sample; raise it to a multiple of"
        " the world size"
    )


def test_a_batch_that_no_memory_holds_is_refused(folder):
    with pytest.raises(ConfigError, match="the batch of a rank is 10000000 samples; at most 1048576 fit"):
        next(iter(open_dataset(folder, batch_size=10**7, shuffle=False)))
    large = [RandomResizedCrop(2**16)]
    with pytest.raises(ConfigError, match=r"there is no memory for a batch of images \(65536, 1, 65536, 65536, 3\)"):
        next(iter(open_dataset(folder, batch_size=2**16, shuffle=False, transform=large)))


def test_closing_ends_an_iteration_with_a_sentence(folder):
    dataset = open_dataset(folder)
    batches = iter(dataset)
    next(batches)
    dataset.close()
    with pytest.raises(ConfigError, match="the dataset was closed while it was iterated over; iterate over it anew"):
        list(batches)


def test_steps_outside_the_epoch_are_refused(folder):
    with pytest.raises(ConfigError, match="there is no step 13 of epoch 0; steps count from 0 to 12"):
        open_dataset(folder).batch(epoch=0, step=13)


def test_ranks_that_are_visible_but_unresolved_stop_the_iteration(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(RankError, match="WORLD_SIZE=8 but no RANK"):
        next(iter(open_dataset(folder)))


def test_a_rank_is_resolved_when_iteration_starts(folder, monkeypatch):
    dataset = open_dataset(folder, global_batch_size=8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert digests(dataset) == digests(open_dataset(folder, global_batch_size=8, rank=1, world_size=2))
    assert digests([open_dataset(folder).batch_at(epoch=0, position=8, placement=Placement(rank=0, world_size=1))])


def test_without_torch_batches_are_arrays(folder, reference):
    script = """
        import sys
        sys.modules["torch"] = None
        import feeder, hashlib
        dataset = feeder.ImageDataset(
            sys.argv[1], batch_size=4, seed=5, shuffle=feeder.Shuffle(lanes=4, window_shards="all"),
            transform=[feeder.RandomResizedCrop(32), feeder.RandomHorizontalFlip()],
        )
        ids = hashlib.blake2b()
        for batch in dataset:
            assert batch["image"].shape == (4, 32, 32, 3), batch["image"].shape
            ids.update(batch["id"].tobytes())
        print(ids.hexdigest())
        try:
            feeder.ImageDataset(sys.argv[1], batch_size=4, transform=[feeder.RandomResizedCrop(32)], arrays="torch")
        except feeder.FeederError as error:
            print(error)
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert output[0] == reference[0][0]
    assert "needs a package that is not installed; run: pip install 'shardfeed[torch]'" in output[1]


def test_a_torch_that_cannot_be_imported_is_no_traceback(folder, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    script = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import feeder
        given = {"batch_size": 4, "transform": [feeder.RandomResizedCrop(32)]}
        print(type(next(iter(feeder.ImageDataset(sys.argv[1], **given)))["image"]).__name__)
        try:
            feeder.ImageDataset(sys.argv[1], arrays="torch", **given)
        except feeder.FeederError as error:
            print(error)
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert output[0] == "ndarray"
    assert "libcudart.so.12: cannot open shared object file" in output[1]


def test_real_photographs_stream_alike_in_one_thread_and_four(photos):
    def epoch(threads):
        return digests(
            ImageDataset(photos, batch_size=100, transform=presets.imagenet_train(64), threads=threads, arrays="numpy")
        )

    assert epoch(1) == epoch(4)


def test_ranks_of_a_group_receive_the_same_batches(folder):
    def ids(**placement):
        return [batch["id"].tolist() for batch in open_dataset(folder, arrays="numpy", **placement)]

    data_ranks = [ids(rank=rank, world_size=2) for rank in range(2)]
    assert [ids(rank=rank, world_size=4, replicate=2) for rank in range(4)] == [
        data_ranks[rank // 2] for rank in range(4)
    ]
    crossed = [ids(rank=rank, world_size=4, replicate=[[0, 2], [1, 3]]) for rank in range(4)]
    assert crossed == [data_ranks[rank % 2] for rank in range(4)]
    dataset = open_dataset(folder, rank=3, world_size=4, replicate=2)
    assert dataset.global_batch() == 8
    with pytest.raises(RankError):
        open_dataset(folder, rank=0, world_size=3, replicate=2)


def test_transforms_change_between_epochs(folder):
    dataset = open_dataset(folder, arrays="numpy")
    small = list(dataset)
    dataset.set_transform([RandomResizedCrop(48), RandomHorizontalFlip()])
    large = list(dataset)
    assert {batch["image"].shape for batch in small} == {(4, 32, 32, 3)}
    assert {batch["image"].shape for batch in large} == {(4, 48, 48, 3)}
    assert {batch["epoch"] for batch in large} == {1}
    other = open_dataset(folder, arrays="numpy", transform=[RandomResizedCrop(48), RandomHorizontalFlip()])
    assert np.array_equal(large[2]["image"], other.batch(epoch=1, step=2)["image"])


def test_replaced_samples_are_in_the_audit_log(bad_folder, tmp_path):
    log = tmp_path / "audit.jsonl"
    dataset = open_dataset(bad_folder, max_bad_fraction=1.0, audit_log=log, arrays="numpy")
    keys = {(batch["epoch"], batch["position"], row): key for batch in dataset for row, key in enumerate(batch["key"])}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines
    for line in lines:
        assert keys[line["epoch"], line["position"], line["row"]] == line["stand_in"]["key"] != line["key"]
        assert line["rank"] == 0
        assert line["dataset"] == str(bad_folder)


def test_looking_at_bad_samples_leaves_no_trace(bad_folder, tmp_path, caplog):
    """Only what is streamed counts, and stands in the audit log."""
    log = tmp_path / "audit.jsonl"
    undisturbed = digests(open_dataset(bad_folder, max_bad_fraction=1.0))
    caplog.clear()
    dataset = open_dataset(bad_folder, max_bad_fraction=0.0, audit_log=log)
    assert "measured over" in str(dataset)
    for number in range(len(dataset.classes)):
        assert dataset[number]["valid"]
    assert not log.exists()
    assert not caplog.records
    batches = [dataset.batch(epoch=0, step=step) for step in range(len(dataset))]
    assert digests(batches) == undisturbed
    assert log.exists()


def test_transforms_set_in_mid_iteration_are_those_of_the_next(image_folder):
    dataset = open_dataset(image_folder)
    undisturbed = digests(open_dataset(image_folder))
    iteration = iter(dataset)
    batches = [next(iteration)]
    dataset.set_transform([RandomResizedCrop(8)])
    assert digests([*batches, *iteration]) == undisturbed
    assert next(iter(dataset))["image"].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"audit_log": 3}, "audit_log is 3; it must be the path of a file"),
        (
            {"source": None},
            "source is None; it must be the path or URL of a dataset or a folder of images",
        ),
    ],
)
def test_paths_that_are_none(image_folder, arguments, sentence):
    with pytest.raises(ConfigError) as caught:
        ImageDataset(**{"source": image_folder, "batch_size": 4, "transform": TRAIN, **arguments})
    assert str(caught.value) == sentence


def test_an_audit_log_that_cannot_be_written_stops_nothing(bad_folder, tmp_path, caplog):
    dataset = open_dataset(bad_folder, max_bad_fraction=1.0, audit_log=tmp_path / "absent" / "log", arrays="numpy")
    assert len(list(dataset)) == len(dataset)
    warnings = [record.message for record in caplog.records if "audit log" in record.message]
    path = tmp_path / "absent" / "log"
    assert warnings == [f"cannot write the audit log {path}: No such file or directory; training goes on"]


def test_a_selection_is_what_is_streamed_and_resumed(folder):
    """Of 52 samples in classes of 13: two classes, less two samples, and then ten of these."""
    chosen = {"where": "label in [1, 3]", "exclude": ["b/b-00.jpg", "d/d-12.jpg"], "limit": 20, "arrays": "numpy"}
    dataset = open_dataset(folder, **chosen)
    batches = list(dataset)
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 20
    assert {key[0] for key in keys} == {"b", "d"}
    assert not {"b/b-00.jpg", "d/d-12.jpg"} & set(keys)
    resumed = open_dataset(folder, **chosen)
    resumed.load_state_dict(batches[1]["state"])
    assert [batch["key"] for batch in resumed] == [batch["key"] for batch in batches[2:]]
    with pytest.raises(StateError, match=r"a selection \(where, .* in the state and another here; give"):
        open_dataset(folder, where="label in [1, 2]").load_state_dict(batches[1]["state"])


def test_classes_are_balanced_and_weights_repeat_samples(folder):
    chosen = {"batch_size": 1, "arrays": "numpy", "balance": "label"}
    dataset = open_dataset(folder, exclude="label == 2 and key > 'c/c-02.jpg'", **chosen)
    epochs = [np.concatenate([batch["label"] for batch in dataset]) for _ in range(5)]
    assert [len(labels) for labels in epochs] == [42] * 5
    for labels in epochs:
        assert 3 * 3 <= np.count_nonzero(labels == 2) <= 3 * 4  # each of the three comes 42 / (4 * 3) times
    assert np.abs(np.bincount(np.concatenate(epochs)) / 5 - 10.5).max() < 1
    weights = np.where(np.arange(52) < 4, 3.0, 0.0)
    ids = np.concatenate([batch["id"] for batch in open_dataset(folder, sample_weights=weights, arrays="numpy")])
    assert np.bincount(ids).tolist() == [3, 3, 3, 3]
