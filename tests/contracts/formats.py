"""The contract of shard formats: a test class inherits `FormatContract` and names its ``format``."""

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from feeder.shards.building.committing import BuildReport
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.dataset.manifest import MARKER_NAME, load_manifest
from feeder.shards.destinations.local import MARKER_TEXT
from feeder.shards.errors import ManifestError, ShardError, ShardsError, StorageError
from feeder.shards.formats.index import ShardIndex
from feeder.shards.formats.known import SHARD_FORMATS
from feeder.shards.formats.sequential import SequentialShard
from feeder.shards.reading.opening import Reader, ShardReader, load_index, open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.storage import LocalFolder
from tests.images import encoded, write_image_folder

AGAIN = "copy it again from the dataset's origin"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def keys_and_bytes(reader: Reader, ids: list[int]) -> tuple[list[str], list[bytes]]:
    rows, images = reader.read(np.array(ids))
    return rows.keys, images


class BytesFolder(LocalFolder):
    """A folder whose one file has these bytes, and is called "here"."""

    def __init__(self, data: bytes) -> None:
        super().__init__("")
        self._data = data

    def where(self, name: str) -> str:
        return "here"

    def size(self, name: str) -> int:
        return len(self._data)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        return [self._data[offset : offset + size] for _, offset, size in ranges]


def shard_of(data: bytes) -> SequentialShard:
    return SequentialShard(BytesFolder(data), "")


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


# Each damages shard 1 of a dataset or its index, and returns the sentence that reading it must give, where eight dots
# stand for a checksum.


def remove_shard(shard: Path, index: Path) -> str:
    shard.unlink()
    return f"shard {shard} is missing, but the manifest lists it; {AGAIN}"


def rename_shard(shard: Path, index: Path) -> str:
    shard.rename(shard.with_name(f"shard-000099{shard.suffix}"))
    return f"shard {shard} is missing, but the manifest lists it; {AGAIN}"


def remove_index(shard: Path, index: Path) -> str:
    index.unlink()
    return f"index {index} is missing, but the manifest lists it; {AGAIN}"


def cut_shard(shard: Path, index: Path) -> str:
    size = shard.stat().st_size
    os.truncate(shard, size - 512)
    return f"shard {shard} has {size - 512} bytes, but the manifest says {size}; {AGAIN}"


def alter_shard(shard: Path, index: Path) -> str:
    start = shard.read_bytes().index(b"\xff\xd8\xff")
    flip(shard, start + 50)
    return (
        f"sample 'ant/ant-05' at offset {start} of {shard} was altered: CRC-32C ........, expected ........; run "
        "'feeder verify --level full' on the dataset, and copy the shard again from its origin"
    )


def cut_index(shard: Path, index: Path) -> str:
    size = index.stat().st_size - 20
    os.truncate(index, size)
    return (
        f"index {index} was cut or altered after the build: its {size} bytes do not have the manifest's digest; {AGAIN}"
    )


def empty_index(shard: Path, index: Path) -> str:
    os.truncate(index, 0)
    return f"index {index} was cut or altered after the build: its 0 bytes do not have the manifest's digest; {AGAIN}"


def swap_index(shard: Path, index: Path) -> str:
    shutil.copy(index.with_name("shard-000002.idx.arrow"), index)
    digests = load_manifest(shard.parent).shards.digests
    return f"index {index} is of another shard: of one with digest {digests[2]}, expected {digests[1]}; {AGAIN}"


DAMAGES = [remove_shard, rename_shard, remove_index, cut_shard, alter_shard, cut_index, empty_index, swap_index]


class FormatContract:
    """Duties of every format; see `feeder.shards.formats.known`."""

    format: str

    def options(self, *, shard_samples: int = 5, shuffle: bool = False) -> BuildOptions:
        return BuildOptions(format=self.format, shard_samples=shard_samples, shuffle=shuffle)

    def name(self, number: int) -> str:
        return f"shard-{number:06d}.{self.format}"

    def build(self, source: Path, dest: Path) -> BuildReport:
        return build(source, dest, self.options())

    @pytest.fixture
    def dataset(self, image_folder: Path, tmp_path: Path) -> Path:
        """Eight shards of three classes, in the order of the names."""
        self.build(image_folder, tmp_path / "dataset")
        return tmp_path / "dataset"

    @pytest.fixture
    def in_memory(self, dataset: Path) -> Iterator[str]:
        """The dataset in fsspec's file system in memory."""
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        memory.put(str(dataset), f"/{self.format}/train", recursive=True)
        yield f"memory://{self.format}/train"
        memory.rm(f"/{self.format}", recursive=True)

    # what a build writes

    def test_every_image_comes_out_with_its_bytes_and_its_label(self, image_folder: Path, tmp_path: Path) -> None:
        (image_folder / "bee" / "one more.png").write_bytes(encoded(1, size=(10, 200), format="PNG"))
        report = build(image_folder, tmp_path / "out", self.options(shuffle=True))
        (built,) = report.datasets
        assert (built.manifest.format, built.manifest.classes) == (self.format, ("ant", "bee", "cat"))
        assert built.manifest.shards.samples.tolist() == [5] * 7 + [2]
        assert (report.num_samples, report.bad, report.bad_path) == (37, [], None)
        reader = open_dataset(tmp_path / "out")
        assert reader.manifest == built.manifest
        rows, images = reader.read(np.arange(37))
        sources = {path.read_bytes(): path for path in image_folder.rglob("*.*")}
        for key, label, image in zip(rows.keys, rows.labels.tolist(), images, strict=True):
            assert built.manifest.classes[label] == sources.pop(image).parent.name == key.split("/")[0]
        assert sources == {}
        png = rows.formats.index("png")
        assert (int(rows.widths[png]), int(rows.heights[png])) == (10, 200)
        assert (len(set(rows.keys)), rows.formats.count("jpeg")) == (37, 36)
        assert rows.keys != sorted(rows.keys)
        ends = (f".{self.format}", ".idx.arrow")
        assert sorted(os.listdir(tmp_path / "out")) == sorted(
            ["columns", "manifest.json", *(f"shard-{i:06d}{end}" for i in range(8) for end in ends)]
        )

    def test_samples_come_in_order_and_lie_in_it(self, dataset: Path, image_folder: Path) -> None:
        rows, images = open_dataset(dataset).read(np.arange(36))
        paths = sorted(image_folder.rglob("*.jpg"))
        assert rows.keys == [str(path.relative_to(image_folder).with_suffix("")) for path in paths]
        assert rows.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
        assert images == [path.read_bytes() for path in paths]
        manifest = load_manifest(dataset)
        for number in range(len(manifest.shards)):
            offsets = list(load_index(LocalFolder(str(dataset)), manifest, number).image.offsets)
            assert offsets == sorted(offsets)

    def test_one_and_two_workers_write_the_same_bytes(self, image_folder: Path, tmp_path: Path) -> None:
        (image_folder / "bee" / "broken.jpg").write_bytes(b"broken")
        done: list[int] = []
        options = self.options(shuffle=True)
        build(image_folder, tmp_path / "one", options)

        def advance(samples: int, *, size_bytes: int) -> None:
            done.append(samples)

        build(image_folder, tmp_path / "two", options, workers=2, start=lambda total: advance)
        assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
        assert sum(done) == 37

    def test_splits_become_datasets_with_one_mapping(self, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        write_image_folder(source / "train", classes=("ant", "bee"), per_class=4)
        write_image_folder(source / "val", classes=("bee",), per_class=2)
        write_image_folder(source / "test", classes=(".",), per_class=3)
        for path in (source / "test").iterdir():
            path.rename(path.with_name(path.name.lstrip(".-")))
        report = self.build(source, out)
        assert [dataset.path.name for dataset in report.datasets] == ["train", "val", "test"]
        assert sorted(os.listdir(out)) == ["test", "train", "val"]
        val = open_dataset(out / "val")
        assert (val.manifest.classes, val.manifest.split) == (("ant", "bee"), "val")
        assert val.describe(np.arange(2)).labels.tolist() == [1, 1]
        test = open_dataset(out / "test")
        assert "label" not in test.manifest.fields
        assert test.describe(np.arange(3)).labels.tolist() == [-1, -1, -1]
        assert verify(out / "test", "full").problems == []
        with pytest.raises(ShardsError) as caught:
            open_dataset(out)
        assert str(caught.value) == (
            f"{out} holds several datasets, expected one; open {out}/train or {out}/val or {out}/test"
        )

    def test_shards_of_bad_images_alone_are_left_out(self, image_folder: Path, tmp_path: Path) -> None:
        folder = image_folder / "badly"
        folder.mkdir()
        for number in range(10):
            (folder / f"{number}.jpg").write_bytes(b"broken")
        manifest = build(image_folder, tmp_path / "out", self.options(shard_samples=4)).datasets[0].manifest
        # ant: 3 shards; badly: 2 empty ones, then 2 bad images before 2 bees
        assert manifest.shards.samples.tolist() == [4, 4, 4, 2, 4, 4, 4, 4, 4, 2]
        assert manifest.shards.names == [self.name(i) for i in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11)]
        assert len(list((tmp_path / "out").iterdir())) == 23
        rows, _ = open_dataset(tmp_path / "out").read(np.arange(36))
        assert rows.keys == sorted(rows.keys)
        assert verify(tmp_path / "out", "full").problems == []

    def test_leftovers_of_a_dead_build_are_removed(self, dataset: Path, image_folder: Path) -> None:
        undisturbed = files_of(dataset)
        (dataset / "manifest.json").unlink()
        (dataset / MARKER_NAME).write_bytes(MARKER_TEXT)
        for name in (self.name(99), f"{self.name(3)}.tmp", "shard-000099.idx.arrow"):
            (dataset / name).write_bytes(b"cut")
        self.build(image_folder, dataset)
        assert files_of(dataset) == undisturbed

    def test_a_limit_of_the_file_size_is_one_sentence(self, image_folder: Path, tmp_path: Path) -> None:
        script = textwrap.dedent("""
            import resource, signal, sys
            from feeder.shards.building.writing import BuildOptions, build
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
            try:
                build(sys.argv[1], sys.argv[2], BuildOptions(format=sys.argv[3]))
            except Exception as error:
                print(type(error).__name__, error)
        """)
        command = [sys.executable, "-c", script, str(image_folder), str(tmp_path / "out"), self.format]
        limited = subprocess.run(command, capture_output=True, text=True, check=False)
        assert limited.stderr == ""
        assert limited.stdout == (
            f"DestinationError cannot write {tmp_path}/out/{self.name(0)}: File too large; check its space and "
            "permissions, or choose another destination\n"
        )
        assert not (tmp_path / "out").exists()

    # reading

    def test_many_threads_with_few_descriptors(self, dataset: Path) -> None:
        reader = open_dataset(dataset)
        assert isinstance(reader, ShardReader)
        expected = dict(zip(range(36), zip(*keys_and_bytes(reader, list(range(36))), strict=True), strict=True))
        reader.close()
        reader._open.capacity = 2

        def read(seed: int) -> bool:
            ids = np.random.default_rng(seed).integers(0, 36, 40)
            rows, images = reader.read(ids)
            return all(expected[i] == (k, b) for i, k, b in zip(ids.tolist(), rows.keys, images, strict=True))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(50)))
        assert len(reader._open._of_process[2]) <= 2

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damage_is_found_when_it_is_read(self, dataset: Path, damage: Callable[[Path, Path], str]) -> None:
        sentence = damage(dataset / self.name(1), dataset / "shard-000001.idx.arrow")
        reader = open_dataset(dataset)
        reader.read(np.array([0, 4, 10, 35]))  # other shards serve on
        with pytest.raises(ShardError) as caught:
            reader.read(np.array([0, 5]))
        got = str(caught.value)
        if "........" in sentence:
            at = sentence.index("........")
            end = sentence.rindex("........") + 8
            assert got[:at] + got[end:] == sentence[:at] + sentence[end:]
        else:
            assert got == sentence

    def test_a_shard_cut_while_it_is_open_is_found(self, dataset: Path) -> None:
        reader = open_dataset(dataset)
        reader.read(np.array([0]))
        start = (dataset / self.name(0)).read_bytes().index(b"\xff\xd8\xff")
        os.truncate(dataset / self.name(0), start + 464)
        with pytest.raises(
            ShardError, match=rf"sample 'ant/ant-00' at offset {start} of .* is cut: got 464 bytes, expected \d+"
        ):
            reader.read(np.array([0]))

    def test_a_dataset_behind_a_url_reads_the_same(self, dataset: Path, in_memory: str) -> None:
        local, remote = open_dataset(dataset), open_dataset(in_memory)
        remote = pickle.loads(pickle.dumps(remote))
        assert remote.manifest == local.manifest
        ids = [35, 2, 2, 11]
        assert keys_and_bytes(remote, ids) == keys_and_bytes(local, ids)
        assert remote.read(np.zeros(0, np.int64))[1] == []
        assert verify(in_memory, "full").problems == []

    def test_damage_behind_a_url_is_found(self, dataset: Path, in_memory: str) -> None:
        import fsspec

        memory, above = fsspec.filesystem("memory"), f"memory://{self.format}"
        data = bytearray((dataset / self.name(1)).read_bytes())
        data[data.index(b"\xff\xd8\xff") + 50] ^= 1
        memory.pipe(f"/{self.format}/train/{self.name(1)}", bytes(data))
        memory.rm(f"/{self.format}/train/{self.name(2)}")
        with pytest.raises(ShardError, match=rf"^sample 'ant/ant-05' at offset \d+ of {in_memory}/shard-0"):
            open_dataset(in_memory).read(np.array([5]))
        with pytest.raises(ShardError, match=f"^shard {in_memory}/{self.name(2)} is missing"):
            open_dataset(in_memory).read(np.array([11]))
        with pytest.raises(ManifestError, match=f"^{above} holds several datasets, expected one; open {above}"):
            open_dataset(above)
        with pytest.raises(ManifestError, match=f"^no manifest at {above}/none/manifest.json"):
            open_dataset(f"{above}/none")
        with pytest.raises(StorageError, match=r"^cannot read none://x/manifest.json: .*none"):
            open_dataset("none://x")

    # verification

    @pytest.mark.parametrize("level", ["quick", "full", "deep"])
    def test_a_whole_dataset_has_no_problems(self, dataset: Path, level: str) -> None:
        done: list[int] = []
        report = verify(dataset, level, decode=lambda images, sizes: {}, threads=2, start=lambda total: done.append)
        assert (report.problems, report.manifest.num_samples, sum(done)) == ([], 36, 8)

    def test_full_finds_every_flipped_bit(self, dataset: Path) -> None:
        random = np.random.default_rng(0)
        for name in (self.name(1), "shard-000001.idx.arrow"):
            path = Path(dataset, name)
            whole = path.read_bytes()
            for position in [0, len(whole) - 1, *random.integers(0, len(whole), 60).tolist()]:
                flip(path, position, int(random.integers(8)))
                assert verify(dataset, "full").problems, f"{name}, byte {position}"
                path.write_bytes(whole)
        assert verify(dataset, "full").problems == []

    def test_quick_finds_a_cut_at_any_length(self, dataset: Path) -> None:
        for path in (dataset / self.name(7), dataset / "shard-000007.idx.arrow"):
            whole = path.read_bytes()
            for length in {*range(0, len(whole), 97), *range(0, len(whole), 512), len(whole) - 1}:
                path.write_bytes(whole[:length])
                assert len(verify(dataset).problems) == 1, f"{path.name}, {length} bytes"
            path.write_bytes(whole)

    def test_full_finds_shards_that_changed_places(self, dataset: Path) -> None:
        aside = dataset / "aside"
        (dataset / self.name(1)).rename(aside)
        (dataset / self.name(2)).rename(dataset / self.name(1))
        aside.rename(dataset / self.name(2))
        problems = "\n".join(verify(dataset, "full").problems)
        for number in (1, 2):
            assert f"shard {dataset}/{self.name(number)} was cut or altered after the build" in problems

    def test_a_shard_is_held_against_its_index_without_trust_in_its_bytes(self, dataset: Path) -> None:
        """Whatever the bytes, its check yields sentences or nothing; it never raises, and leaves digests to others."""
        folder, manifest = LocalFolder(str(dataset)), load_manifest(dataset)
        index, other = (load_index(folder, manifest, number) for number in (1, 2))
        whole, shard_check = folder.read(self.name(1)), SHARD_FORMATS[self.format].check
        assert shard_check is not None

        def check(data: bytes, index: ShardIndex) -> list[str]:
            return list(shard_check(shard_of(data), index, manifest.fields, dropped=0, own=True))

        assert check(whole, index) == []
        assert len(check(whole, other)) == 1
        random = np.random.default_rng(1)
        for length in random.integers(0, len(whole), 100).tolist():
            assert all(problem.startswith("here ") for problem in check(whole[:length], index))
        for _ in range(300):
            data = bytearray(whole)
            for position in random.integers(0, len(whole), 8).tolist():
                data[position] ^= 1 << int(random.integers(8))
            assert all(problem.startswith("here ") for problem in check(bytes(data), index))
