"""``feeder demo``: photographs become shards, shards become batches, and a broken-off epoch goes on where it stopped.

Everything happens in one folder, which the demo marks as its own and otherwise refuses to touch: synthetic photographs
(or the user's, read where they are), shards, a saved state and a contact sheet. What is whole is used again.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from feeder import optional
from feeder.errors import ConfigError
from feeder.placement import Placement
from feeder.resources import usable_cores
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import Manifest
from feeder.shards.errors import ShardsError
from feeder.shards.reading.opening import open_dataset
from feeder.shards.sources import scan_source
from feeder.shards.storage import staged_file
from feeder.shards.table import UNREADABLE
from feeder.tools import console
from feeder.tools.dataset_options import DEFAULT_BATCH, count
from feeder.tools.resume_proof import LEAST_IMAGES, Proof, open_one_lane, prove_resume
from feeder.tools.showing import draw_batch

DEFAULT_FOLDER, DEFAULT_IMAGES = ".demo", 2000
_MOST_IMAGES = 1_000_000  # 100 GB: more is a slip of the finger
_SHEET_IMAGES = 32
_MARK = {"made_by": "feeder demo"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--dir", default=DEFAULT_FOLDER, metavar="DIR", help=f"folder to work in ({DEFAULT_FOLDER})")
    parser.add_argument("--photos", metavar="DIR", help="take these photographs, read only, in place of synthetic ones")
    parser.add_argument("--images", type=count, metavar="N", help=f"synthetic photographs to make ({DEFAULT_IMAGES:,})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of photographs, shards and order (0)")
    parser.add_argument("--fresh", action="store_true", help="make everything anew; else what is whole is kept")


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; the exit code tells whether the proof held."""
    if args.photos is not None and args.images is not None:
        raise ConfigError("--images says how many photographs to make, and --photos to make none; give one of them")
    if args.images is not None and not LEAST_IMAGES <= args.images <= _MOST_IMAGES:
        raise ConfigError(f"--images is {args.images}; the demonstration takes from {LEAST_IMAGES} to {_MOST_IMAGES}")
    folder = Path(args.dir)
    if args.photos is not None and Path(args.photos).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--photos {args.photos} lies in {folder}, whose content the demonstration replaces; move one"
        )
    optional.load("pillow")
    _claim(folder, fresh=args.fresh)
    photographs = Path(args.photos) if args.photos else _make_photographs(folder / "photographs", args)
    shards, manifest = _make_shards(photographs, folder, args.seed)
    proof = prove_resume(shards, manifest.num_samples, args.seed, folder / "state.json", _say)
    _draw_sheet(shards, args.seed, folder / "sheet.png", proof)
    print(f"\n{'PASS' if proof.passed else 'FAIL'}: {proof.sentence}")
    _suggest(folder, shards, proof)
    return 0 if proof.passed else 1


def _claim(folder: Path, *, fresh: bool) -> None:
    """Make the folder and mark it as the demo's own; refuse one that holds anything else."""
    mark = folder / "demo.json"
    if folder.is_dir() and any(folder.iterdir()) and not mark.exists():
        raise ConfigError(f"{folder} is not empty, and was not made by 'feeder demo'; choose another --dir")
    if fresh and mark.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(mark) as file:
        file.write(json.dumps(_MARK).encode())
    (folder / ".gitignore").write_text("*\n")


def _make_photographs(folder: Path, args: argparse.Namespace) -> Path:
    """Make the synthetic photographs, unless they are there."""
    from feeder.tools.photographs import are_made, make_photographs

    images = DEFAULT_IMAGES if args.images is None else args.images
    how = "already there"
    if not are_made(folder, images, args.seed):
        start = time.perf_counter()
        with console.progress(images, "photographs", "images") as advance:
            make_photographs(folder, images, args.seed, usable_cores(), advance)
        how = f"made in {console.format_duration(time.perf_counter() - start)}"
    size_bytes = sum(path.stat().st_size for path in folder.glob("*/*.jpg"))
    _say("Photographs", f"{images:,} JPEGs, {console.format_bytes(size_bytes)}, in {folder} ({how})")
    return folder


def _make_shards(photographs: Path, folder: Path, seed: int) -> tuple[Path, Manifest]:
    """Build the shards, unless they are there and whole; return where they are (of several splits the largest)."""
    record = folder / "shards.json"
    wanted = {"source": str(photographs.absolute()), "files": _fingerprint(photographs), "seed": seed}
    found, how = _find_built(record, wanted), "already there"
    if found is None:
        start = time.perf_counter()
        found = _build(photographs, folder / "shards", seed, record, wanted)
        how = f"built in {console.format_duration(time.perf_counter() - start)}"
    path, manifest = found
    images = console.format_count(manifest.num_samples, "image")
    shards = console.format_count(len(manifest.shards), "shard")
    _say("Shards", f"{images} in {shards}, {console.format_bytes(manifest.size_bytes)}, in {path} ({how})")
    _say("", f"dataset digest {manifest.digest}")
    return path, manifest


def _build(photographs: Path, shards: Path, seed: int, record: Path, wanted: dict[str, Any]) -> tuple[Path, Manifest]:
    """Build the shards in place of what is there, and then the record of what they were built from."""
    record.unlink(missing_ok=True)
    if shards.exists():
        shutil.rmtree(shards)
    with contextlib.ExitStack() as stack:

        def show_progress(total: int) -> console.Advance:
            return stack.enter_context(console.progress(total, "building"))

        report = build(photographs, shards, BuildOptions(seed=seed), workers=usable_cores(), start=show_progress)
    largest = max(report.datasets, key=lambda dataset: dataset.manifest.num_samples)
    place = {"path": os.path.relpath(largest.path, record.parent), "digest": largest.manifest.digest}
    with staged_file(record) as file:
        file.write(json.dumps(wanted | place).encode())
    if report.bad:
        aside = console.format_count(len(report.bad), "bad image")
        console.warn(f"{aside} set aside, listed in {report.bad_path}")
    return record.parent / place["path"], largest.manifest


def _fingerprint(photographs: Path) -> str:
    """Return a digest of the names, sizes and times of the image files below a folder: it changes when they do."""
    digest = hashlib.blake2b(digest_size=16)
    for part in scan_source(photographs):
        for path, size_bytes in zip(part.names, part.stored["image"].sizes.tolist(), strict=True):
            name = os.path.join(part.root, path)
            changed_ns = 0 if size_bytes == UNREADABLE else os.stat(name).st_mtime_ns
            digest.update(os.fsencode(f"{name}\0{size_bytes}\0{changed_ns}\0"))
    return digest.hexdigest()


def _find_built(record: Path, wanted: dict[str, Any]) -> tuple[Path, Manifest] | None:
    """Return the dataset of an earlier build if it is of these photographs and its shards are all there."""
    try:
        built = json.loads(record.read_bytes())
        if {name: built.get(name) for name in wanted} != wanted:
            return None
        path = record.parent / built["path"]
        reader = open_dataset(path)
        manifest = reader.manifest
        reader.close()
        sizes = [(path / name).stat().st_size for name in manifest.shards.names]
    except (OSError, ValueError, KeyError, AttributeError, ShardsError):
        return None  # whatever is wrong with it, it is built anew
    whole = manifest.digest == built["digest"] and sizes == manifest.shards.size_bytes.tolist()
    return (path, manifest) if whole else None


def _draw_sheet(shards: Path, seed: int, output: Path, proof: Proof) -> None:
    """Draw the first batch behind the place where the proof broke off."""
    dataset = open_one_lane(shards, proof.batch_size, seed)
    batch = dataset.batch(epoch=1, step=proof.step)
    draw_batch(dataset, batch, Placement(rank=0, world_size=1), output, _SHEET_IMAGES)
    dataset.close()
    _say("Sheet", f"the batch with which it went on, as a model gets it: {output}")


def _suggest(folder: Path, shards: Path, proof: Proof) -> None:
    """Print commands that look further into what was made."""
    command = "feeder"
    if not shutil.which(command):
        called = Path(sys.argv[0]).name == command  # by its path, from an environment that is not active
        command = shlex.quote(sys.argv[0]) if called else f"{shlex.quote(sys.executable)} -m feeder.tools.main"
    where, state, sheet = (shlex.quote(str(path)) for path in (shards, folder / "state.json", folder / "sheet.png"))
    batch = "" if proof.batch_size == DEFAULT_BATCH else f" --batch-size {proof.batch_size}"
    print("\nTry next:")
    print(f"  {command} inspect {where}")
    print(f"  {command} stream {where} --epochs 2 --workers 2 --digest pixels{batch}")
    print(f"  {command} stream {where} --state {state}{batch}")
    print(f"  {command} show {where} --epoch 0 --step {proof.step} -o {sheet}{batch}")


def _say(name: str, text: str) -> None:
    """Print one line of the report, as soon as it is true."""
    print(f"{name:<12}  {console.printable(text)}".rstrip(), flush=True)
