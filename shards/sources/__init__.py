"""Sources: what datasets are built from, each kind turned into tables of samples (`feeder.shards.table`).

What a source is follows from its name, or else from what a folder holds:

======================================================  ===========  ==================================================
source                                                  kind         module
======================================================  ===========  ==================================================
``*.csv *.tsv *.jsonl *.ndjson``                        list         `feeder.shards.sources.lists`
``*.parquet`` that names image files                    list         the same
``*.parquet`` that holds images, one or a pattern       parquet      `feeder.shards.sources.parquet`
``*.tar``, a pattern ``train-{000..146}.tar``, ``a::b``  webdataset  `feeder.shards.sources.webdataset`
a folder with ``manifest.json``, or with splits of it   dataset      `feeder.shards.sources.dataset`
a folder with tar archives and no images                webdataset
a folder with Parquet files and no images               parquet
any other folder                                        folder       `feeder.shards.sources.folders`
======================================================  ===========  ==================================================

All may be local or behind a URL of any file system that fsspec knows. A folder is told by what lies in it and in the
folders directly below: images there make it a folder of images, whatever lies beside them.
"""

from feeder.shards.sources.folders import scan_source as scan_source
from feeder.shards.sources.opening import open_source as open_source
from feeder.shards.sources.options import SourceOptions as SourceOptions
