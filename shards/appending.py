"""Adding samples to a dataset: new shards behind those it has, of the same format and with the same settings.

New shards are numbered on; the samples of the source are shuffled among themselves with the dataset's seed, if it was
shuffled. New classes get numbers behind those that there are. The source has the fields that the shards have; columns
that were added later by an annotation are missing for the new samples.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

from feeder.shards.bad_samples import BadImage, BadLimit
from feeder.shards.columns import rewrite_columns
from feeder.shards.dropping import key_runs
from feeder.shards.errors import ConfigError, SourceError
from feeder.shards.fields import Field
from feeder.shards.formats import SHARD_FORMATS, shard_name
from feeder.shards.generations import Change, change_dataset
from feeder.shards.manifest import Manifest
from feeder.shards.packing import Advance, ShardTask, WrittenShard, no_progress
from feeder.shards.planning import plan_shards
from feeder.shards.reading import load_index
from feeder.shards.shard_table import ShardRecord, shard_table
from feeder.shards.table import SampleTable
from feeder.shards.workers import write_shards
from feeder.shards.writing import SHARDS_PER_WORKER
