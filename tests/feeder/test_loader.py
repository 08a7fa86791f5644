"""A loader gives the batches of its dataset, epoch after epoch, whatever makes them and however far ahead."""

import gc
import itertools
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from feeder import ColorJitter, ImageDataset, Loader, RandomHorizontalFlip, RandomResizedCrop, Shuffle
from feeder.errors import ConfigError, StateError
from tests.feeder.workers.streams import At, Numbers, never_return
from tests.images import write_image_folder

WORKERS = [0, 1, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 13 small images."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "images", classes=("a", "b", "c", "d"), per_class=13)


def images_of(folder, **changes):
    """Open the folder; 52 samples are 13 steps of 4."""
    chosen = {
        "batch_size": 4,
        "transform": (RandomResizedCrop(96), RandomHorizontalFlip()),
        "seed": 5,
        "threads": 1,
        "shuffle": Shuffle(lanes=4, window_shards="all"),
    }
    return ImageDataset(folder, **{**chosen, **changes})


def places(batches):
    """Return where batches stand, after a look at their content."""
    found = []
    for batch in batches:
        numbers = (batch["id"] + 7 * batch["epoch"]) % 251
        assert (batch["image"] == numbers[:, None, None, None]).all()
        found.append((batch["epoch"], batch["position"]))
    return found


def whole(epoch, steps=5, first=0):
    return [(epoch, 2 * step) for step in range(first, steps)]


def wait_for(condition):
    """Wait until something is so; a minute is for ever."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


def pids(loader):
    return loader._source.pids()


# order, epochs, state


@pytest.mark.parametrize("workers", WORKERS)
def test_epochs_follow_each_other(workers):
    with Loader(Numbers(), workers=workers) as loader:
        assert [places(loader) for _ in range(3)] == [whole(0), whole(1), whole(2)]
        assert (loader.epoch, len(loader)) == (3, 5)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_loop_that_is_left_early_is_followed_by_the_next_epoch(workers):
    with Loader(Numbers(), workers=workers) as loader:
        assert places(itertools.islice(loader, 2)) == whole(0, 2)
        assert places(loader) == whole(1)


def test_a_loop_that_counts_its_steps_itself_wastes_nothing():
    """It takes the last batch and never asks for the end of the epoch, as Lightning does."""
    with Loader(Numbers()) as loader:
        for epoch in range(3):
            assert places(itertools.islice(loader, len(loader))) == whole(epoch)
        assert loader._source._generation == 1  # nothing was begun again


@pytest.mark.parametrize("workers", WORKERS)
def test_an_iterator_of_which_no_batch_is_asked_is_no_epoch(workers):
    """Lightning makes one to see whether it can, and Accelerate's and torchdata's loaders make some for their state."""
    with Loader(Numbers(), workers=workers) as loader:
        iter(loader)
        iterator = iter(loader)
        assert (loader.epoch, loader.state_dict()) == (0, {"epoch": 0, "position": 0})
        assert places(iterator) == whole(0)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_state_is_that_of_what_was_received(workers):
    with Loader(Numbers(), workers=workers) as loader:
        assert loader.state_dict() == {"epoch": 0, "position": 0}
        for step, _ in enumerate(loader):
            assert loader.state_dict() == {"epoch": 0, "position": 2 * step + 2}
        loader.load_state_dict(loader.state_dict())
        assert places(loader) == whole(1)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_loaded_state_is_gone_on_from_by_the_same_workers(workers):
    with Loader(Numbers(), workers=workers) as loader:
        next(iter(loader))
        for step in range(1, 5):
            loader.load_state_dict({"epoch": 3, "position": 2 * step})
            assert loader.epoch == 3
            assert places(loader) == whole(3, first=step)
            assert places(loader) == whole(4)
        if workers:
            assert loader._source._generation > 1


def test_a_state_changed_by_its_owner_does_not_change_the_loader():
    with Loader(Numbers(), workers=0) as loader:
        next(iter(loader))
        loader.state_dict()["position"] = 1000
        assert loader.state_dict() == {"epoch": 0, "position": 2}


@pytest.mark.parametrize("workers", WORKERS)
def test_set_epoch_chooses_the_next_epoch(workers):
    with Loader(Numbers(), workers=workers) as loader:
        next(iter(loader))
        loader.set_epoch(7)
        assert (loader.state_dict(), places(loader)) == ({"epoch": 7, "position": 0}, whole(7))
        loader.load_state_dict({"epoch": 2, "position": 4})
        loader.set_epoch(2)  # as a loop that sets every epoch does when it resumes
        assert places(loader) == whole(2, first=2)


@pytest.mark.parametrize("workers", WORKERS)
def test_set_transform_reaches_the_workers_at_the_next_iteration(workers):
    with Loader(Numbers(), workers=workers) as loader:
        places(loader)
        before = pids(loader) if workers else None
        loader.set_transform(100)
        batch = next(iter(loader))
        assert batch["image"][0, 0, 0].tolist() == [107] * 3
        assert before == (pids(loader) if workers else None)


def test_a_transform_that_cannot_be_sent_makes_new_workers():
    with Loader(Numbers(), start_method="fork") as loader:
        places(loader)
        before = pids(loader)
        loader.set_transform(_Unpicklable(100))
        assert next(iter(loader))["image"].max() == 108
        assert before != pids(loader)


class _Unpicklable(int):
    def __reduce__(self):
        raise TypeError("it cannot be pickled")


def test_an_iteration_that_another_one_ended_says_so():
    with Loader(Numbers(), workers=0) as loader:
        first = iter(loader)
        next(first)
        next(iter(loader))
        with pytest.raises(ConfigError) as caught:
            next(first)
        assert str(caught.value) == (
            "this iteration over epoch 0 was ended by a later one, by load_state_dict or by close: a Loader runs one at"
            " a time; make a second Loader to run two"
        )


def test_two_loaders_run_at_once():
    with Loader(Numbers()) as train, Loader(Numbers(steps=3)) as evaluation:
        for _ in train:
            assert len(places(evaluation)) == 3


def test_tuples_have_the_epochs_and_the_state_of_their_loader():
    with Loader(Numbers()) as loader:
        tuples = loader.to_tuple("id", "key")
        assert len(tuples) == 5
        for step, (ids, keys) in enumerate(tuples):
            assert (ids.tolist(), keys) == ([2 * step, 2 * step + 1], [f"{2 * step:03}", f"{2 * step + 1:03}"])
            assert loader.state_dict()["position"] == 2 * step + 2
        with pytest.raises(ConfigError, match="batches have no entry 'mask'; they have 'image', 'id', "):
            next(iter(loader.to_tuple("mask")))


# real datasets


def content(batches):
    """Return everything that is in batches, to be compared."""
    names = ("image", "label", "valid", "crop", "flip", "size", "id")
    return [
        ([np.asarray(batch[name]).tobytes() for name in names], batch["key"], batch["state"], batch["position"])
        for batch in batches
    ]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_batches_are_those_of_the_dataset(folder, workers):
    alone = images_of(folder)
    with Loader(images_of(folder), workers=workers) as loader:
        for _ in range(2):
            assert content(loader) == content(alone)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_every_way_to_start_a_worker_gives_the_same(folder, method):
    with Loader(images_of(folder), start_method=method) as loader:
        assert content(loader) == content(images_of(folder))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("options", [{}, {"device": "cpu", "pixels_on_device": True}])
def test_transforms_that_are_set_during_an_iteration_wait_for_the_next(folder, workers, options):
    colours = [RandomResizedCrop(96), ColorJitter(0.4)]
    with Loader(images_of(folder, transform=colours), workers=0, **options) as undisturbed:
        expected = content(undisturbed)
    for later in ([RandomResizedCrop(64)], [RandomResizedCrop(64), lambda image: image]):
        dataset = images_of(folder, transform=colours)
        with Loader(dataset, workers=workers, start_method="fork", **options) as loader:
            found = []
            for batch in loader:
                if not found:
                    loader.set_transform(later)
                found.append(batch)
            assert content(found) == expected
            assert {batch["image"].shape for batch in loader} == {(4, 3, 64, 64)}


@pytest.mark.parametrize("make", [iter, lambda dataset: iter(Loader(dataset, workers=0))])
def test_an_iteration_does_not_go_on_in_a_fork(folder, make):
    """The threads that fill its batches are not there."""
    batches = make(images_of(folder))
    next(batches)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            list(batches)
        except ConfigError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() == "this iteration began before the process was forked; begin another one here"
    os.waitpid(child, 0)
    assert len(list(batches)) == 12


def test_numpy_batches_come_without_torch(folder):
    with Loader(images_of(folder, arrays="numpy")) as loader:
        image = next(iter(loader))["image"]
        assert (type(image), image.shape, image.dtype) == (np.ndarray, (4, 96, 96, 3), np.uint8)


def test_evaluation_pads_its_last_batch(folder):
    with Loader(images_of(folder, shuffle=False, batch_size=30)) as loader:
        for _ in range(2):
            assert [int(batch["valid"].sum()) for batch in loader] == [30, 22]


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (2, 3)])
def test_a_state_is_loaded_at_another_world_size_and_number_of_workers(folder, rank, world):
    with Loader(images_of(folder, global_batch_size=12, batch_size=None), workers=2) as loader:
        for _ in itertools.islice(loader, 2):
            state = loader.state_dict()
    sizes = {"global_batch_size": 12, "batch_size": None}
    expected = [images_of(folder, **sizes).batch(epoch=0, step=step, rank=rank, world_size=world) for step in (2, 3)]
    with Loader(images_of(folder, **sizes, rank=rank, world_size=world), workers=1) as loader:
        loader.load_state_dict(state)
        assert content(loader) == content(expected)


def test_settings_left_open_come_from_the_state_and_reach_the_workers(folder):
    with Loader(images_of(folder, seed=77)) as loader:
        next(batches := iter(loader))
        state, expected = loader.state_dict(), content(batches)
    with Loader(images_of(folder, seed=None, shuffle=True)) as loader:
        next(iter(loader))  # workers run, with a seed of their own
        loader.load_state_dict(state)
        assert content(loader) == expected


def test_a_state_of_another_dataset_is_refused(folder, tmp_path):
    other = write_image_folder(tmp_path / "other")
    with Loader(images_of(folder)) as loader, pytest.raises(StateError, match="the state belongs to the dataset"):
        loader.load_state_dict(images_of(other).state_dict())


# memory


def test_batches_that_are_kept_stay_what_they_are():
    with Loader(Numbers(steps=20)) as loader:
        kept = list(loader)
        places(loader)
        assert places(kept) == whole(0, 20)
    assert places(kept) == whole(0, 20)


def test_tensors_that_are_kept_stay_what_they_are():
    torch = pytest.importorskip("torch")
    with Loader(Numbers(steps=10, as_tensors=True)) as loader:
        kept = [batch["image"][1, 2] for batch in loader]
        list(loader)
    gc.collect()
    assert [int(tensor.max()) for tensor in kept] == [2 * step + 1 for step in range(10)]
    assert all((tensor == tensor.max()).all() and tensor.dtype == torch.uint8 for tensor in kept)


def batch_mappings(pid="self"):
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:feeder-batch" in line]


def test_memory_is_used_again_and_given_back():
    gc.collect()
    before = len(batch_mappings())
    with Loader(Numbers(steps=30)) as loader:
        for _ in range(3):
            places(loader)
        assert 1 <= len(batch_mappings()) - before <= 6
        kept = list(loader)
        assert len(batch_mappings()) - before >= 30
        del kept
        places(loader)
        assert len(batch_mappings()) - before <= 12
    gc.collect()
    assert len(batch_mappings()) == before


def test_nothing_lies_in_dev_shm():
    """Containers have 64 MB there."""
    with Loader(Numbers()) as loader:
        next(iter(loader))
        for pid in (os.getpid(), *pids(loader)):
            assert "/dev/shm" not in "".join(batch_mappings(pid))
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
            assert not [link for link in links if "/dev/shm" in link and "feeder" in link]
        assert len(batch_mappings(*pids(loader))) >= 1


class Steps:
    """Counts in a file which batches a worker has made."""

    def __init__(self, path):
        self.path = path

    def __call__(self, epoch, position):
        with open(self.path, "a") as file:
            file.write(f"{epoch} {position}\n")

    def count(self):
        return len(Path(self.path).read_text().splitlines())


def rest_state(loader):
    """Wait until the worker has gone as far as it may."""
    work = loader._source._workers[0]._work
    wait_for(lambda: work.describe().startswith("waiting until the training loop"))


@pytest.mark.parametrize(
    ("options", "ahead"),
    [
        ({"prefetch": 1}, 1),
        ({"prefetch": 4}, 4),
        ({"prefetch": 9, "prefetch_bytes": 400_000}, 2),  # of 153,600 bytes each
        ({"prefetch": 9, "prefetch_bytes": 1}, 1),
    ],
)
def test_a_worker_is_ahead_by_no_more_than_it_may(tmp_path, options, ahead):
    steps = Steps(tmp_path / "made")
    with Loader(Numbers(steps=50, fault=steps), **options) as loader:
        next(iter(loader))
        wait_for(lambda: steps.path.exists() and steps.count() == 1 + ahead + 1)  # taken, ready, one in its hands
        rest_state(loader)
        assert steps.count() == 1 + ahead + 1


def test_a_worker_goes_on_into_the_next_epoch_by_itself(tmp_path):
    steps = Steps(tmp_path / "made")
    with Loader(Numbers(fault=steps), prefetch=3) as loader:
        places(loader)
        wait_for(lambda: steps.count() >= 7)
        assert steps.path.read_text().splitlines()[5:7] == ["1 0", "1 2"]


# accounting


@pytest.mark.parametrize("workers", WORKERS)
def test_the_account_of_an_epoch_is_logged_and_kept(workers, caplog):
    caplog.set_level(logging.INFO, "feeder")
    with Loader(Numbers(), workers=workers) as loader:
        start = time.perf_counter()
        places(loader)
        wall_s = time.perf_counter() - start
        stats = loader.stats
        assert (stats.epoch, stats.batches) == (0, 5)
        assert stats.wall_s <= wall_s
        assert stats.compute_s + stats.stall_s == pytest.approx(stats.wall_s)
        assert set(stats.stalls_s) >= {"worker start", "first batch", "hand-over", "decode"} - (
            set() if workers else {"hand-over"}
        )
        assert [record.getMessage() for record in caplog.records] == [str(stats)]
        places(loader)
        assert loader.summary() == str(loader)
        assert str(loader).startswith("all epochs: 10 batches in ")


@pytest.mark.parametrize("workers", WORKERS)
def test_the_account_holds_what_a_loop_did_before_it_was_left_and_what_was_waited_for_in_vain(workers):
    with Loader(Numbers(), workers=workers) as loader:
        for _ in loader:
            time.sleep(0.05)
            break
        assert loader.stats.compute_s >= 0.05
    with Loader(Numbers(fault=At(0, 2, _fail_slowly)), workers=workers, start_method="fork") as loader:
        with pytest.raises(ValueError, match="too late"):
            list(loader)
        assert loader.stats.stall_s >= 0.05


def _fail_slowly():
    time.sleep(0.05)
    raise ValueError("too late")


# ends


def test_closing_ends_the_processes_and_iterating_again_starts_others():
    loader = Loader(Numbers(), workers=2)
    places(loader)
    first = pids(loader)
    loader.close()
    loader.close()
    assert all(map(is_gone, first))
    assert places(loader) == whole(1)
    loader.close()


def test_a_copy_in_another_process_has_workers_of_its_own():
    with Loader(Numbers()) as loader:
        next(iter(loader))
        with pickle.loads(pickle.dumps(loader)) as copy:
            assert copy.state_dict() == {"epoch": 0, "position": 2}
            assert places(copy) == whole(1)
            assert pids(copy) != pids(loader)


def test_an_iteration_over_a_closed_loader_says_so():
    loader = Loader(Numbers())
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(ConfigError, match="was ended by a later one, by load_state_dict or by close"):
        next(batches)


def test_a_thread_that_waits_for_a_batch_hears_that_another_has_closed_the_loader():
    loader = Loader(Numbers(fault=At(0, 4, never_return)))
    batches = iter(loader)
    next(batches)
    threading.Timer(0.2, loader.close).start()
    with pytest.raises(ConfigError, match="was ended by a later one, by load_state_dict or by close"):
        list(batches)


def test_a_loader_that_is_let_go_ends_its_processes_though_batches_are_kept():
    loader = Loader(Numbers())
    kept = next(iter(loader))
    (pid,) = pids(loader)
    del loader
    assert is_gone(pid)
    assert places([kept]) == [(0, 0)]


def resources():
    """Return what a loader takes of the system."""
    gc.collect()
    with open("/proc/self/task/" + str(os.getpid()) + "/children") as file:
        children = len(file.read().split())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": children,
        "mappings": len(batch_mappings()),
        "shared memory": len(os.listdir("/dev/shm")),
    }


def start_and_stop(number):
    """Use a loader for a moment, in one of several ways."""
    loader = Loader(Numbers(steps=4), workers=1 + number % 2)
    batches = iter(loader)
    next(batches)
    if number % 3 == 0:
        list(batches)
    if number % 3 == 1:
        loader.close()


def test_cycles_of_starting_and_stopping_leak_nothing():
    for number in range(4):
        start_and_stop(number)
    before = resources()
    for number in range(40):
        start_and_stop(number)
    after = resources()
    assert {**after, "shared memory": 0} == {**before, "shared memory": 0}


@pytest.mark.skipif(os.environ.get("FEEDER_NIGHTLY") != "1", reason="takes minutes; set FEEDER_NIGHTLY=1")
def test_five_hundred_cycles_leak_no_memory():
    resident = []
    for number in range(500):
        start_and_stop(number)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    slope = np.polyfit(np.arange(400), resident[100:], 1)[0]
    assert slope < 20_000


SCRIPT = """
import sys
sys.modules["torch"] = None  # importing it takes seconds
from feeder import Loader
from tests.feeder.workers.streams import At, Numbers, never_return
def main():
    loader = Loader(Numbers(steps=50), workers=2)
    for step, batch in enumerate(loader):
        if step == 3:
            print(*loader._source.pids(), flush=True)
            {end}
if __name__ == "__main__":
    main()
"""
ENDS = {
    "the end of the program": ("break", 0),
    "an exception in the loop": ("raise ValueError('in the loop')", 1),
    "an exit": ("sys.exit(3)", 3),
    "Ctrl-C": ("import os, signal; os.killpg(0, signal.SIGINT); import time; time.sleep(60)", -2),
    "SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", -15),
    "SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    "os._exit": ("import os; os._exit(0)", 0),
    "a loader that is kept": ("sys.kept = loader, batch; break", 0),
    "a forked process that stays": (
        "import os, time\n            if os.fork() == 0: time.sleep(1.5)\n            os._exit(0)",
        0,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_however_a_process_ends_its_workers_end_with_it(end):
    code, returncode = ENDS[end]
    command = [sys.executable, "-c", SCRIPT.replace("{end}", code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, start_new_session=True)
    assert done.returncode == returncode, done.stderr
    workers = done.stdout.split()
    assert len(workers) == 2
    wait_for(lambda: all(map(is_gone, workers)))
    errors = [line for line in done.stderr.splitlines() if "Error" in line or "Exception" in line]
    assert errors == {"an exception in the loop": ["ValueError: in the loop"]}.get(end, [])


def test_another_loaders_worker_keeps_neither_the_connection_nor_the_memory_of_the_first():
    first, second = Loader(Numbers(), start_method="fork"), Loader(Numbers(width=4), start_method="fork")
    batch = next(iter(first))
    del batch
    next(iter(second))
    assert batch_mappings(*pids(first))
    assert batch_mappings(*pids(second)) == []
    (pid,) = pids(first)
    os.close(os.dup(first._source._workers[0]._connection.fileno()))  # it is open here
    first._source._workers[0]._connection.close()
    wait_for(lambda: first._source._workers[0]._process.exitcode is not None)  # nobody else holds it
    assert not is_gone(*pids(second))
    first.close()
    second.close()
    assert is_gone(pid)


def test_a_forked_process_has_workers_of_its_own():
    with Loader(Numbers(), start_method="fork") as loader:
        batches = iter(loader)
        next(batches)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                try:
                    next(batches)
                except ConfigError as error:
                    os.write(write, str(error).encode() + b"\n")
                os.write(write, repr(places(loader)).encode())
                loader.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as file:
            assert file.read().splitlines() == [
                "this iteration began before the process was forked; begin another one here",
                repr(whole(1)),
            ]
        assert places(batches) == whole(0, first=1)


def test_torch_distributed_and_threads_in_the_process_do_no_harm(folder, tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    torch = pytest.importorskip("torch")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed.all_reduce(torch.ones(3))
        torch.ones(300, 300) @ torch.ones(300, 300)
        dataset = images_of(folder)
        expected = content(dataset)  # its threads run
        dataset.set_epoch(0)
        with Loader(dataset, start_method="fork") as loader:
            assert content(loader) == expected
    finally:
        distributed.destroy_process_group()


# arguments


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": -1}, "workers is -1; it must be an integer of at least 0"),
        ({"prefetch": 0}, "prefetch is 0; it must be an integer of at least 1"),
        ({"prefetch_bytes": 1.5}, "prefetch_bytes is 1.5; it must be an integer of at least 1"),
        ({"start_method": "thread"}, "start_method is 'thread'; it must be one of 'fork', 'spawn', 'forkserver'"),
        ({"pixels_on_device": "yes"}, "pixels_on_device is 'yes'; it must be True, False or 'auto'"),
        ({"device": "cuda"}, "device is 'cuda', but the dataset gives NumPy arrays; leave device or arrays out"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, sentence):
    with pytest.raises(ConfigError) as caught:
        Loader(Numbers(), **options)
    assert str(caught.value) == sentence


def test_a_dataset_that_cannot_be_pickled_is_refused_where_it_must_be():
    loader = Loader(Numbers(fault=lambda epoch, position: None), start_method="spawn")
    with pytest.raises(ConfigError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("the dataset cannot be sent to a worker process: ")
    assert str(caught.value).endswith("; define what it uses at the top of a module, or pass start_method='fork'")
    assert loader.epoch == 0


def test_a_process_that_may_start_no_others_is_told_so(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(ConfigError) as caught:
        next(iter(Loader(Numbers())))
    assert str(caught.value) == (
        "this process is a daemon of multiprocessing, which may start no others: pass workers=0, or start it with"
        " daemon=False"
    )


def test_what_is_no_dataset_of_ours_is_refused():
    with pytest.raises(ConfigError) as caught:
        Loader([1, 2, 3])
    assert str(caught.value) == "Loader got list; give a feeder.ImageDataset, or what feeder.mix returns"
