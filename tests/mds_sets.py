"""MDS sets for tests, written from the format's description (MosaicML Streaming, version 2) and nothing else."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZES = {"int": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint64": 8, "float32": 4, "float64": 8}
_CODES = {"int": "q", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint64": "Q"}
_CODES |= {"float32": "f", "float64": "d"}


def encode(encoding: str, value: Any) -> bytes:
    """Return the bytes of a value; bytes are taken as encoded already."""
    if isinstance(value, bytes):
        return value
    if encoding in _CODES:
        return struct.pack("<" + _CODES[encoding], value)
    if encoding == "json":
        return json.dumps(value).encode()
    return str(value).encode()


def shard_bytes(columns: Mapping[str, str], samples: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a shard."""
    names = sorted(columns)
    config = json.dumps({"column_names": names, "format": "mds"}).encode()
    bodies = []
    for sample in samples:
        values = [encode(columns[name], sample[name]) for name in names]
        varying = [len(value) for name, value in zip(names, values, strict=True) if SIZES.get(columns[name]) is None]
        bodies.append(struct.pack(f"<{len(varying)}I", *varying) + b"".join(values))
    position = 4 + 4 * (len(samples) + 1) + len(config)
    bounds = [position]
    for body in bodies:
        position += len(body)
        bounds.append(position)
    return struct.pack(f"<{len(bounds) + 1}I", len(samples), *bounds) + config + b"".join(bodies)


def write_mds(
    folder: Path,
    columns: Mapping[str, str],
    samples: Sequence[Mapping[str, Any]],
    *,
    per_shard: int = 10,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a set with shards of so many samples; `changes` replace what each record of its index says."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    names = sorted(columns)
    for number, start in enumerate(range(0, len(samples), per_shard)):
        chosen = samples[start : start + per_shard]
        data = shard_bytes(columns, chosen)
        basename = f"shard.{number:05d}.mds"
        (folder / basename).write_bytes(data)
        record = {
            "column_encodings": [columns[name] for name in names],
            "column_names": names,
            "column_sizes": [SIZES.get(columns[name]) for name in names],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "raw_data": {"basename": basename, "bytes": len(data), "hashes": {}},
            "samples": len(chosen),
            "size_limit": 67108864,
            "version": 2,
            "zip_data": None,
        }
        records.append(record | dict(changes or {}))
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": records}, sort_keys=True))
    return folder
