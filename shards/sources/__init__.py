"""Sources: what datasets are built from."""

from feeder.shards.sources.folders import scan_source as scan_source
from feeder.shards.sources.options import SourceOptions as SourceOptions
