"""Batches of mixtures: what is in them, what they refuse, and that they resume as those of one dataset do."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from feeder import ImageDataset, MixUp, Normalize, RandomHorizontalFlip, RandomResizedCrop, Shuffle, mix
from feeder.errors import ConfigError, StateError
from feeder.mixing import Seen
from tests.images import write_image_folder

TRAIN = (RandomResizedCrop(32), RandomHorizontalFlip())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three folders: 36 images of ant, bee, cat; 10 of the same classes but cat; 8 of cat and ant."""
    root = tmp_path_factory.mktemp("data")
    return {
        "nets": write_image_folder(root / "nets"),
        "few": write_image_folder(root / "few", classes=("ant", "bee"), per_class=5, first=100),
        "pets": write_image_folder(root / "pets", classes=("cat", "dog"), per_class=4, first=200),
    }


@pytest.fixture
def opened(folders):
    """Open one of the folders, with settings that suit most tests."""

    def open_one(name, **changes):
        chosen = {"batch_size": 6, "transform": TRAIN, "threads": 2, "arrays": "numpy", **changes}
        if "global_batch_size" in changes:
            del chosen["batch_size"]
        return ImageDataset(folders[name], **chosen)

    return open_one


@pytest.fixture
def mixed(opened):
    """Mix the two folders whose classes begin alike, three to one."""

    def mix_them(of_datasets=None, **changes):
        nets = opened("nets", shuffle=Shuffle(lanes=3), **(of_datasets or {}))
        return mix([(nets, 3), (opened("few", **(of_datasets or {})), 1)], **{"labels": "union", "seed": 4, **changes})

    return mix_them


def content(batch):
    """Return what must be equal in equal batches."""
    names = ("image", "label", "id", "source", "valid", "crop", "flip", "size")
    return [np.asarray(batch[name]).tobytes() for name in names] + [batch["key"], batch["epoch"], batch["position"]]


def test_batches_hold_samples_of_all_datasets_in_proportion(mixed):
    dataset = mixed()
    assert (len(dataset), dataset.num_samples) == (7, 46)
    found = Counter()
    for batch in dataset:
        assert batch["image"].shape == (6, 32, 32, 3)
        assert batch["valid"].all()
        for source, sample, key, label in zip(batch["source"], batch["id"], batch["key"], batch["label"], strict=True):
            part = dataset.datasets[source]
            assert part[int(sample)]["key"] == key
            assert key.startswith(f"{dataset.classes[label]}/")
            found[int(source)] += 1
    assert abs(found[0] - 3 * found[1]) <= 4


def test_rows_are_what_their_dataset_alone_gives(mixed, opened):
    """At the epoch of that dataset, seeded as it is."""
    dataset = mixed(of_datasets={"seed": 11}, length=200)
    alone = [opened("nets", seed=11), opened("few", seed=11)]
    shown = {}
    for batch in dataset:
        samples = dataset._make_plan(dataset.order_settings).rank_batch(0, batch["position"], 6, 0, 1)
        for row, (source, epoch, sample) in enumerate(zip(samples.sources, samples.epochs, samples.ids, strict=True)):
            place = int(source), int(epoch), int(sample)
            if place[1] > 1:
                continue
            if place not in shown:
                alone[place[0]].set_epoch(place[1])
                shown[place] = alone[place[0]][place[2]]
            assert batch["image"][row].tobytes() == shown[place]["image"].tobytes()
    assert {place[:2] for place in shown} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_ranks_and_workers_share_the_batches_of_a_mixture(mixed):
    whole = list(mixed(global_batch_size=8))
    for world_size, workers in ((2, 1), (3, 2)):
        ranks = []
        for rank in range(world_size):
            of_rank = {"rank": rank, "world_size": world_size}
            streams = [
                mixed(of_rank, global_batch_size=8).stream(epoch=0, worker=worker, workers=workers)
                for worker in range(workers)
            ]
            turns = itertools.zip_longest(*streams)
            ranks.append([batch for turn in turns for batch in turn if batch is not None])
        assert {len(batches) for batches in ranks} == {len(whole)}
        for step, batch in enumerate(whole):
            expected = {
                (int(source), int(sample)): image.tobytes()
                for source, sample, image in zip(batch["source"], batch["id"], batch["image"], strict=True)
            }
            found = {}
            for part in (batches[step] for batches in ranks):
                rows = zip(part["source"], part["id"], part["image"], part["valid"], strict=True)
                found |= {(int(source), int(sample)): image.tobytes() for source, sample, image, valid in rows if valid}
            assert found == expected


def test_a_mixture_resumes_behind_any_batch(mixed):
    undisturbed = [content(batch) for batch in mixed()] + [content(batch) for batch in mixed().stream(epoch=1)]
    states = [None, *(batch["state"] for batch in mixed())]
    for number, state in enumerate(states):
        resumed = mixed()
        if state is not None:
            resumed.load_state_dict(state)
        rest = [content(batch) for batch in resumed] + [content(batch) for batch in resumed]
        assert rest[: len(undisturbed) - number] == undisturbed[number:][: len(rest)]


def test_a_state_settles_what_was_left_open(mixed):
    first = mixed(seed=9)
    iterator = iter(first)
    state = next(iterator)["state"]
    resumed = mixed(seed=None, global_batch_size=12)
    resumed.load_state_dict(state)
    assert resumed.order_settings == first.order_settings
    assert {source.order.seed for source in resumed.order_settings.sources} == {9}
    with pytest.raises(StateError, match="seed 9 in the state and 8 here; nets: seed 9 in the state and 8 here"):
        mixed(seed=8).load_state_dict(state)


def test_datasets_keep_seeds_of_their_own(mixed):
    dataset = mixed(of_datasets={"seed": 2})
    assert dataset.order_settings.seed == 4
    assert {source.order.seed for source in dataset.order_settings.sources} == {2}


def test_states_of_other_mixtures_are_refused(mixed, opened):
    state = mixed().state_dict()
    other = mix([(opened("few"), 3), (opened("nets"), 1)], labels="union")
    with pytest.raises(StateError) as caught:
        other.load_state_dict(state)
    nets, few = (dataset.digest[:12] for dataset in mixed().datasets)
    assert str(caught.value) == (
        f"the state belongs to a mixture of 3 nets ({nets}) : 1 few ({few}), and this is a mixture of 3 few ({few}) : 1"
        f" nets ({nets}); mix the same datasets, with the same weights, in the same order"
    )
    with pytest.raises(StateError, match="the state belongs to a mixture of 3 nets .* and this is one dataset"):
        opened("nets").load_state_dict(state)
    with pytest.raises(StateError, match="the state belongs to one dataset, with digest .* and this is a mixture of"):
        mixed().load_state_dict(opened("nets").state_dict())
    with pytest.raises(StateError, match="length 46 in the state and 50 here"):
        mixed(length=50).load_state_dict(state)


def test_counts_are_those_of_the_batches(mixed):
    dataset, found = mixed(), Counter()
    assert dataset.counts() == {"nets": Seen(samples=0, epochs=0.0), "few": Seen(samples=0, epochs=0.0)}
    for batch in dataset:
        found.update(batch["source"].tolist())
        assert dataset.counts(batch["state"]) == {
            "nets": Seen(samples=found[0], epochs=found[0] / 36),
            "few": Seen(samples=found[1], epochs=found[1] / 10),
        }
    assert dataset.counts() == dataset.counts(dataset.state_dict())
    with pytest.raises(StateError, match="mix the same datasets"):
        mixed().counts(other_weights(dataset))


def other_weights(dataset):
    """Return a state of a mixture with other weights."""
    state = pickle.loads(pickle.dumps(dataset.state_dict()))
    state["order"]["sources"][0]["weight"] = 17
    return state


def test_samples_one_by_one_are_those_of_the_batches(mixed):
    expected = [(int(s), int(i)) for b in mixed() for s, i in zip(b["source"], b["id"], strict=True)]
    assert [(int(sample["source"]), int(sample["id"])) for sample in mixed().samples()] == expected
    assert len(mixed().samples()) == len(expected)


def test_ranks_of_a_group_receive_the_same_batches(mixed):
    alone = [content(batch) for batch in mixed({"rank": 1, "world_size": 2})]
    for rank in (2, 3):
        of_rank = {"rank": rank, "world_size": 4, "replicate": 2}
        assert [content(batch) for batch in mixed(of_rank)] == alone


def test_a_mixture_works_in_worker_processes(mixed):
    data = pytest.importorskip("torch.utils.data")
    here = [content(batch) for batch in mixed()]
    loader = data.DataLoader(mixed(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [content(batch) for batch in loader] == here


def test_a_mixture_pickles(mixed):
    copy = pickle.loads(pickle.dumps(mixed()))
    assert [content(batch) for batch in copy] == [content(batch) for batch in mixed()]


def test_labels_of_different_classes_are_never_mixed_up(opened):
    nets, pets = opened("nets"), opened("pets")
    with pytest.raises(ConfigError) as caught:
        mix([(nets, 1), (pets, 1)])
    assert str(caught.value) == (
        "nets has 3 classes (ant, bee, cat) and pets has 2 classes (cat, dog), so that labels would mean different"
        " things; give labels='union' to number classes by name over all datasets, or labels='own' to keep each"
        " dataset's numbers"
    )
    union = mix([(nets, 1), (pets, 1)], labels="union")
    assert union.classes == ("ant", "bee", "cat", "dog")
    own = mix([(nets, 1), (pets, 1)], labels="own")
    assert own.classes == ()
    for batch, of_own in zip(union, own, strict=True):
        for source, label, own_label, key in zip(
            batch["source"], batch["label"], of_own["label"], batch["key"], strict=True
        ):
            assert key.startswith(f"{union.classes[label]}/")
            assert key.startswith(f"{union.datasets[source].classes[own_label]}/")
    same = mix([(nets, 1), (opened("nets"), 2)])
    assert same.classes == ("ant", "bee", "cat")
    assert same.names == ("nets", "nets-2")


def test_batch_sizes_come_from_the_datasets_where_these_agree(opened):
    assert mix([(opened("nets"), 1), (opened("nets"), 1)]).global_batch() == 6
    with pytest.raises(ConfigError) as caught:
        mix([(opened("nets"), 1), (opened("nets", batch_size=8), 1)])
    assert str(caught.value) == (
        "batch_size is 6 in nets and 8 in nets-2; give mix(batch_size=), or all datasets the same"
    )
    assert mix([(opened("nets"), 1), (opened("nets", batch_size=8), 1)], batch_size=3).global_batch() == 3
    assert mix([(opened("nets"), 1), (opened("nets", global_batch_size=8), 1)], global_batch_size=4).global_batch() == 4
    with pytest.raises(
        ConfigError, match="on_error is 'replace' in nets and 'raise' in nets-2; give all datasets the same"
    ):
        mix([(opened("nets"), 1), (opened("nets", on_error="raise"), 1)])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"transform": RandomResizedCrop(24)},
            (
                "nets gives image of 32 x 32 uint8, and nets-2 gives image of 24 x 24 uint8, which cannot be one"
                " batch; give both transforms of one output size and type, and the same fields"
            ),
        ),
        (
            {"transform": [RandomResizedCrop(32), Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))]},
            "nets gives image of 32 x 32 uint8, and nets-2 gives image of 32 x 32 float32, which",
        ),
        ({"views": 2}, "nets gives image of 32 x 32 uint8, and nets-2 gives image of 32 x 32 uint8 in 2 views, which"),
        (
            {"transform": None, "decode": False},
            "nets gives image of 32 x 32 uint8, and nets-2 gives encoded images, which",
        ),
    ],
)
def test_outputs_that_cannot_be_one_batch_are_refused(opened, changes, sentence):
    with pytest.raises(ConfigError) as caught:
        mix([(opened("nets"), 1), (opened("nets", **changes), 1)])
    assert str(caught.value).startswith(sentence)


def test_mixers_of_batches_are_those_of_all_datasets(opened):
    def with_mixer(name, alpha):
        return opened(name, transform=[*TRAIN, MixUp(alpha=alpha, num_classes=4)])

    blended = mix([(with_mixer("nets", 1.0), 1), (with_mixer("pets", 1.0), 1)], labels="union")
    batch = next(iter(blended))
    assert batch["label"].shape == (6, 4)
    assert set(batch["source"].tolist()) == {0, 1}
    with pytest.raises(ConfigError) as caught:
        mix([(with_mixer("nets", 1.0), 1), (with_mixer("pets", 1.0), 1)], labels="own")
    assert str(caught.value) == (
        "MixUp blends the classes of a batch, and with labels='own' one number means different classes; give"
        " labels='union'"
    )
    with pytest.raises(ConfigError, match=r"mixed by MixUp\(alpha=1.0, num_classes=4\), and nets-2 gives .*alpha=0.5"):
        mix([(with_mixer("nets", 1.0), 1), (with_mixer("nets", 0.5), 1)])


def test_selections_of_datasets_hold_in_a_mixture(opened):
    ants = opened("nets", where="label == 0", seed=1)
    weighted = opened("few", sample_weights=[0.5] * 10, seed=1)
    dataset = mix([(ants, 12), (weighted, 5)], labels="union", batch_size=17)
    for epoch in range(3):
        (batch,) = dataset
        assert batch["epoch"] == epoch
        assert sorted(batch["id"][batch["source"] == 0].tolist()) == list(range(12))
        assert len(set(batch["id"][batch["source"] == 1].tolist())) == 5
    resumed = mix([(ants, 12), (opened("few", seed=1), 5)], labels="union", batch_size=17)
    with pytest.raises(StateError, match="few: a selection .* in the state and none here"):
        resumed.load_state_dict(batch["state"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda one: [], "mix got []; give a list of (dataset, weight), such as [(photos, 0.7), (art, 0.3)]"),
        (lambda one: 3, "mix got 3; give a list of (dataset, weight)"),
        (lambda one: [(one, 1, 2)], "mix got [("),
        (lambda one: [("nets", 1)], "mix got str as a dataset; give ImageDatasets, and of a mixture its parts"),
        (lambda one: [(mix([(one, 1)]), 1)], "mix got MixedDataset as a dataset; give ImageDatasets, and of a mixture"),
        (lambda one: [(one, -1)], "the weight -1 is not a positive number; give integers or fractions"),
    ],
)
def test_what_is_no_list_of_datasets_and_weights_is_refused(opened, make, sentence):
    with pytest.raises(ConfigError) as caught:
        mix(make(opened("nets")))
    assert str(caught.value).startswith(sentence)


def test_bad_arguments_are_refused(mixed):
    with pytest.raises(ConfigError, match="names is 'ab'; give 2 different names, one for each dataset"):
        mixed(names="ab")
    with pytest.raises(ConfigError, match=r"names is \['a', 'a'\]; give 2 different names"):
        mixed(names=["a", "a"])
    with pytest.raises(ConfigError, match="length is 0; it must be an integer of at least 1"):
        mixed(length=0)
    with pytest.raises(ConfigError, match="labels is 'mine'; it must be one of 'same', 'own', 'union'"):
        mixed(labels="mine")
    with pytest.raises(ConfigError, match="seed is 0.5; it must be None or an integer"):
        mixed(seed=0.5)
    with pytest.raises(ConfigError, match="the global batch is 60 and the mixture of nets and few has 46 samples"):
        len(mixed(batch_size=60))


def test_a_mixture_says_what_became_of_the_weights(opened):
    dataset = mix([(opened("nets"), 0.7), (opened("few"), 0.3)], labels="own", names=["a", "b"])
    assert repr(dataset) == "mix(a: 7 of 10 (70 %; weight 0.7), b: 3 of 10 (30 %; weight 0.3))"


def test_a_mixture_of_one_dataset_is_a_mixture(opened):
    batches = list(mix([(opened("few"), 5)]))
    assert len(batches) == 1
    assert batches[0]["source"].tolist() == [0] * 6


def test_a_mixture_of_unshuffled_datasets_keeps_the_last_part(opened):
    dataset = mix([(opened("few", shuffle=False), 1), (opened("few", shuffle=False), 1)])
    batches = list(dataset)
    assert [int(batch["valid"].sum()) for batch in batches] == [6, 6, 6, 2]
    found = Counter((int(s), int(i)) for batch in batches for s, i in zip(batch["source"], batch["id"], strict=True))
    assert {row: count for row, count in found.items() if row[1] >= 0} == {
        (source, sample): 1 for source in range(2) for sample in range(10)
    }


def test_other_transforms_between_epochs(mixed):
    dataset = mixed()
    assert next(iter(dataset))["image"].shape == (6, 32, 32, 3)
    dataset.set_transform(RandomResizedCrop(16))
    assert next(iter(dataset))["image"].shape == (6, 16, 16, 3)
    dataset.close()
    assert next(iter(dataset))["epoch"] == 2
