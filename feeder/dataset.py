"""`ImageDataset`: seeded, resumable batches of images, as a PyTorch ``IterableDataset`` or plain NumPy."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from feeder.arguments import as_integer
from feeder.batches import BatchDataset
from feeder.delivery import Arrays, Delivery
from feeder.description import describe
from feeder.errors import ConfigError, StateError
from feeder.fields import Fields, check_entries, choose_fields
from feeder.layout import Source, Step
from feeder.order import Order, RankBatch
from feeder.order_settings import OrderSettings, Shuffle, resolve_settings, unset_settings
from feeder.pipeline import OnError
from feeder.placement import Replicate
from feeder.program import Program, compile_program
from feeder.samples import Samples, row
from feeder.selection import Exclude, Weights, choose
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.reading.opening import open_dataset
from feeder.state import State

DEFAULT_SEED = 0
SEED_LIMIT = 1 << 127  # what `feeder.keyed.derive_key` takes


class ImageDataset(BatchDataset[OrderSettings]):
    """Whole batches of decoded, augmented images, in an order that is a pure function of seed, epoch and position.

    `feeder.Loader` makes its batches in worker processes; so does torch's ``DataLoader(dataset, batch_size=None,
    num_workers=…)`` under fork, spawn and forkserver; and it may be iterated on its own. A batch is a dictionary of

    - ``image``: uint8, (B, 3, H, W) in torch's channels_last memory format, or (B, H, W, 3) as NumPy; (B, V, …) with
      V > 1 views; float32 when the transform ends with `Normalize`; what a user's function gave, where one comes last;
      with `feeder.Views` an entry for each group; with ``decode=False`` a list of B encoded images
    - ``label``: int64 (B,), number of the class, -1 where the dataset has no labels, -100 where not valid; behind
      `MixUp` or `CutMix` float32 (B, num_classes), a share of each class
    - ``id``: int64 (B,), position in manifest order; -1 where padded. ``key``: list of B names
    - ``valid``: bool (B,), False where padded (ranks get equal shapes) or masked (a bad sample in evaluation)
    - ``crop``: float32 (B, 4), the box (x0, y0, x1, y1) in pixels of the stored image; ``flip``: bool (B,), whether the
      box was mirrored; ``size``: int32 (B, 2), width and height of the stored image; with V views crop is (B, V, 4),
      flip (B, V)
    - fields that were asked for, see `feeder.fields`
    - ``epoch``, ``position``: where the batch stands; ``state``: a state to resume behind it

    Iterating yields the next epoch each time, whether or not the one before was finished; `set_epoch` chooses another.

    Args:
        source: a dataset made by ``feeder build`` or a plain folder of images; a path or fsspec URL.
        batch_size: samples of a batch of one rank.
        global_batch_size: samples of a step of all ranks together; give one of the two.
        transform: a list of transforms, such as `feeder.presets.imagenet_train`, or `feeder.Views`.
        where, exclude, limit, sample_weights, balance: which samples, and how often; see `feeder.selection.choose`.
        seed: of order and augmentation; None is 0, or the seed of a loaded state.
        shuffle: True, a `Shuffle`, or False for evaluation: manifest order, every sample once, the last batch padded.
        views: crops of each sample in a batch.
        fields: names of fields that batches hold beside image and label: captions, scores, masks.
        map_fields: by field, a function that its values pass through, such as ``{"caption": tokenize}``.
        decode: False for encoded images, without transforms.
        rank, world_size: None asks the launcher's environment when iteration starts.
        replicate: ranks that receive the same batches, as those of one tensor- or pipeline-parallel group do: n for
            groups of n consecutive ranks, or a list of groups, as in ``[[0, 2], [1, 3]]``.
        engine: "auto", or the name of an engine.
        threads: decode threads of a process; None divides the usable cores among local ranks and workers.
        on_error: what a sample that cannot be decoded does: "replace" puts another of its shard in its place, "mask"
            sets ``valid`` False, "raise" raises `SampleError`. With ``shuffle=False``, "replace" means "mask".
        max_bad_fraction: more bad samples than this fraction of the last 10,000 raises `TooManyBadSamplesError`.
        audit_log: a file that gets a line of JSON for each bad sample, see `feeder.audit`.
        arrays: "torch" tensors, "numpy" arrays, or "auto" for torch where it is installed.

    Raises:
        ConfigError: arguments that cannot work, or contradict each other.
        ShardsError: the source is missing, or not whole.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        transform: Any = None,
        seed: int | None = None,
        shuffle: bool | Shuffle = True,
        views: int = 1,
        where: str | None = None,
        exclude: Exclude | None = None,
        limit: float | None = None,
        sample_weights: Weights | None = None,
        balance: str | None = None,
        fields: Sequence[str] = (),
        map_fields: Mapping[str, Callable[..., Any]] | None = None,
        decode: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        replicate: Replicate = 1,
        engine: str = "auto",
        threads: int | None = None,
        on_error: OnError = "replace",
        max_bad_fraction: float = 0.001,
        audit_log: str | os.PathLike[str] | None = None,
        arrays: Arrays = "auto",
    ) -> None:
        if not isinstance(source, str | os.PathLike):
            raise ConfigError(f"source is {source!r}; it must be the path or URL of a dataset or a folder of images")
        delivery = Delivery(
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            rank=rank,
            world_size=world_size,
            replicate=replicate,
            threads=threads,
            on_error=on_error,
            max_bad_fraction=max_bad_fraction,
            audit_log=audit_log,
            arrays=arrays,
        )
        self._seed = checked_seed(seed)
        self._shuffle = shuffle
        if not isinstance(shuffle, bool | Shuffle):
            raise ConfigError(f"shuffle is {shuffle!r}; it must be True, False or a feeder.Shuffle")
        self._program = _compile(transform, views, decode)
        super().__init__(delivery, engine)
        self._reader = open_dataset(source)
        self._copies = choose(
            self._reader,
            where=where,
            exclude=exclude,
            limit=limit,
            sample_weights=sample_weights,
            balance=balance,
        )
        self._fields: Fields = choose_fields(
            self.manifest, self._reader.url, fields, {} if map_fields is None else map_fields
        )
        if self._program is None and self._fields.masks:
            raise ConfigError(f"{self._fields.masks[0]!r} is an image, and decode=False decodes none; leave it out")
        check_entries(self._fields, self._program)

    @property
    def manifest(self) -> Manifest:
        """What the dataset holds."""
        return self._reader.manifest

    @property
    def digest(self) -> str:
        """The dataset digest."""
        return self.manifest.digest

    @property
    def name(self) -> str:
        """The URL or path of the dataset."""
        return self._reader.url

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in order of their labels."""
        return self.manifest.classes

    @property
    def num_samples(self) -> int:
        """The number of samples of the dataset."""
        return self.manifest.num_samples

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        """Return one sample as `epoch` shows it: the entries of a batch without their first axis."""
        number = as_integer(sample_id)
        if number is None:
            raise TypeError(f"the sample id is {sample_id!r}; it must be an integer")
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(f"there is no sample {number}; the dataset has {self.num_samples}")
        ids, epoch = np.array([number % self.num_samples]), self.epoch
        samples = RankBatch.of_one(ids, np.zeros(1, np.int64), np.ones(1, np.bool_), epoch)
        return row(self.handed_over(self.made(Step(epoch=epoch, position=0, samples=samples))), 0)

    def __str__(self) -> str:
        """Return in words which samples come in which order, what runs where, and what it costs."""
        return describe(self, self.num_samples, {self.name: self._sources(self._requested_settings(1))[0]})

    def samples(self) -> Samples:
        """Return the same samples in the same order one by one, for who makes batches elsewhere."""
        return Samples(self)

    def set_transform(self, transform: Any, *, views: int = 1) -> None:
        """Give the iterations that start from now on other transforms, as for progressive resizing.

        Workers of a DataLoader that are kept from epoch to epoch do not see it: make a new DataLoader, or use
        `feeder.Loader`, whose own `set_transform` reaches them.
        """
        program = _compile(transform, views, self._program is not None)
        check_entries(self._fields, program)
        self._program = program
        self._pipelines = {}  # an iteration under way keeps the one that it has

    def close(self) -> None:
        """Stop this process's decode threads and release its open files; iterating again opens them anew."""
        super().close()
        self._reader.close()

    def _requested_settings(self, global_batch: int) -> OrderSettings:
        return self._settings_with(DEFAULT_SEED, global_batch)

    def _settings_with(self, seed: int, global_batch: int) -> OrderSettings:
        """Return what the arguments ask for, with this seed if they leave it open."""
        manifest = self.manifest
        return resolve_settings(
            self._shuffle,
            seed=seed if self._seed is None else self._seed,
            segment_samples=manifest.segments.samples,
            shuffled_when_written=manifest.shuffled,
            global_batch=global_batch,
            copies=self._copies,
        )

    def _loaded(self, state: State, global_batch: int) -> OrderSettings:
        if isinstance(state.order, OrderSettings) and state.dataset != self.digest:
            raise StateError(
                f"the state belongs to the dataset with digest {state.dataset}, but {self.name} has digest"
                f" {self.digest}; open the dataset that the state was made with"
            )
        return state.order_for(self._settings_with(state.order.seed, global_batch), self._unset_settings())

    def _unset_settings(self) -> set[str]:
        """Return the names of settings that the arguments leave open, so that a state may settle them."""
        return unset_settings(self._shuffle) | ({"seed"} if self._seed is None else set())

    def _make_plan(self, settings: OrderSettings) -> Order:
        return Order(self.manifest.segments.samples, settings, self._copies)

    def _sources(self, settings: OrderSettings) -> tuple[Source, ...]:
        return (Source(reader=self._reader, seed=settings.seed, program=self._program, fields=self._fields),)


def _compile(transform: Any, views: int, decode: bool) -> Program | None:
    """Return what is done to images; None where they are not decoded."""
    if decode:
        return compile_program(() if transform is None else transform, views=views)
    if transform is not None or views != 1:
        raise ConfigError("decode=False gives encoded images, for which there are no transforms; leave transform out")
    return None


def checked_seed(seed: Any) -> int | None:
    """Return a seed that keys of random numbers can hold."""
    number = as_integer(seed)
    if seed is not None and (number is None or not -SEED_LIMIT <= number < SEED_LIMIT):
        raise ConfigError(f"seed is {seed!r}; it must be None or an integer from -2**127 to 2**127 - 1")
    return number
