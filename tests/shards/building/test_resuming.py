"""Going on with interrupted builds: only what is missing is written, and nothing else is taken for the same build."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from feeder.shards.building import writing
from feeder.shards.building.writing import BuildOptions, build, build_tables
from feeder.shards.destinations.local import LocalClaim
from feeder.shards.errors import DestinationError, ResumeError, SourceError
from feeder.shards.images.rules import ImageRules
from feeder.shards.reading.opening import open_dataset
from feeder.shards.repairing.verify import verify
from feeder.shards.sources import scan_source
from feeder.shards.table import SampleTable
from tests.images import encoded, write_image_folder

OPTIONS = BuildOptions(shard_samples=6)  # 37 images in seven shards, the last of them of one


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def source(image_folder: Path) -> Path:
    (image_folder / "bee" / "z.jpg").write_bytes(b"broken")
    return image_folder


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are written from here on."""
    names: list[str] = []
    real = writing.write_shards

    def noted(*arguments: Any) -> Any:
        for task, shard in real(*arguments):
            names.append(task.name)
            yield task, shard

    monkeypatch.setattr(writing, "write_shards", noted)
    return names


def stop_after(samples: int) -> Callable[[int], Callable[..., None]]:
    """Return what stops a build when so many samples are done."""

    def start(total: int) -> Callable[..., None]:
        done = 0

        def advance(new: int, *, size_bytes: int) -> None:
            nonlocal done
            done += new
            if done == samples:
                raise KeyboardInterrupt

        return advance

    return start


def interrupt(source: Path, out: Path, samples: int = 20, options: BuildOptions = OPTIONS) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(source, out, options, start=stop_after(samples))


@pytest.mark.parametrize("format", ["tar", "arrow"])
def test_only_what_is_missing_is_written(source: Path, tmp_path: Path, written: list[str], format: str) -> None:
    options = BuildOptions(shard_samples=6, format=format)
    undisturbed = build(source, tmp_path / "undisturbed", options)
    assert (undisturbed.resumed_shards, undisturbed.written_samples) == (0, 36)
    out = tmp_path / "out"
    interrupt(source, out, options=options)
    names = [f"shard-{number:06d}.{format}" for number in range(7)]
    kept = files_of(out)
    assert [name for name in names if name in kept] == names[:3]
    written.clear()
    totals: list[int] = []
    seen: list[int] = []

    def start(total: int) -> Callable[..., None]:
        totals.append(total)
        return lambda samples, size_bytes: seen.append(size_bytes)

    report = build(source, out, options, start=start)
    assert written == names[3:]
    assert totals == [19]
    assert len(seen) == 19
    assert min(seen) > 0
    assert files_of(out) == files_of(tmp_path / "undisturbed")
    assert report.resumed_shards == 3
    assert 18 <= report.written_samples <= 19
    assert report.written_bytes < report.size_bytes == undisturbed.size_bytes
    assert report.bad == undisturbed.bad
    assert report.datasets[0].manifest == undisturbed.datasets[0].manifest


def test_any_number_of_workers_goes_on(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "undisturbed", BuildOptions(shard_samples=2))
    interrupt(source, tmp_path / "out", options=BuildOptions(shard_samples=2))
    report = build(source, tmp_path / "out", BuildOptions(shard_samples=2), workers=2)
    assert report.resumed_shards == 9
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "seed was 0, now it is 3"),
        ({"shard_samples": 7}, "shard_samples was 6, now it is 7"),
        ({"format": "arrow"}, "format was 'tar', now it is 'arrow'"),
        ({"on_error": "keep"}, "on_error was 'leave out', now it is 'keep'"),
        ({"images": ImageRules(min_side=5)}, "min_side was None, now it is 5"),
        ({"shuffle": False, "shard_bytes": 9}, "shard_bytes was 67108864, now it is 9; shuffle was True, now it is"),
    ],
)
def test_other_options_are_refused(source: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    out = tmp_path / "out"
    interrupt(source, out)
    before = files_of(out)
    with pytest.raises(ResumeError) as caught:
        build(source, out, BuildOptions(**({"shard_samples": 6} | changes)))
    sentence = str(caught.value)
    assert sentence.startswith(f"destination {out} holds an interrupted build with other options: {words}")
    assert sentence.endswith("; run it with the same options to go on, or discard it with --restart")
    assert not hasattr(caught.value, "__notes__")
    assert files_of(out) == before


def test_options_that_decide_no_bytes_may_change(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "undisturbed", OPTIONS)
    interrupt(source, tmp_path / "out")
    build(source, tmp_path / "out", BuildOptions(shard_samples=6, max_bad_fraction=0.5))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_other_input_is_refused_with_an_example(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(source, out)
    before = files_of(out)
    (source / "cat" / "cat-99.jpg").write_bytes(encoded(1))
    with pytest.raises(ResumeError) as caught:
        build(source, out, OPTIONS)
    assert str(caught.value) == (
        f"destination {out} holds an interrupted build of other input: 37 samples then, 38 now; the first that differs "
        f"is cat/cat-99.jpg in {source}; bring the source back to go on, or discard the build with --restart"
    )
    (source / "cat" / "cat-99.jpg").unlink()
    touched = source / "ant" / "ant-03.jpg"
    times = os.stat(touched)
    os.utime(touched, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(ResumeError, match="the first that differs is ant/ant-03.jpg in "):
        build(source, out, OPTIONS)
    assert files_of(out) == before
    os.utime(touched, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(source, out, OPTIONS).resumed_shards == 3


def test_restart_discards_whatever_was_begun(source: Path, tmp_path: Path, written: list[str]) -> None:
    other = BuildOptions(shard_samples=6, seed=1, format="arrow")
    build(source, tmp_path / "undisturbed", other)
    interrupt(source, tmp_path / "out")
    written.clear()
    report = build(source, tmp_path / "out", other, restart=True)
    assert (report.resumed_shards, len(written)) == (0, 7)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_restart_discards_no_finished_dataset(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", OPTIONS)
    before = files_of(tmp_path / "out")
    with pytest.raises(DestinationError, match="is not empty: it holds "):
        build(source, tmp_path / "out", OPTIONS, restart=True)
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["cut index", "no shard", "cut shard", "cut list", "no list", "empty index"])
def test_a_shard_whose_records_are_not_whole_is_written_again(
    source: Path, tmp_path: Path, damage: str, written: list[str]
) -> None:
    build(source, tmp_path / "undisturbed", OPTIONS)
    out = tmp_path / "out"
    interrupt(source, out, samples=37)
    lists = list(out.glob("*.bad.jsonl"))
    assert len(lists) == 1
    shard = out / f"{lists[0].name.split('.')[0]}.tar"
    index = shard.with_suffix(".idx.arrow")
    kind, what = damage.split()
    path = {"index": index, "shard": shard, "list": lists[0]}[what]
    if kind == "no":
        path.unlink()
    else:
        os.truncate(path, 0 if kind == "empty" else path.stat().st_size // 2)
    written.clear()
    build(source, out, OPTIONS)
    assert written == [shard.name, "shard-000006.tar"]
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_a_shard_without_a_good_sample_is_finished_by_its_list(tmp_path: Path, written: list[str]) -> None:
    source = write_image_folder(tmp_path / "images", classes=("ant", "cat"))
    (source / "bee").mkdir()
    for number in range(6):
        (source / "bee" / f"{number}.jpg").write_bytes(b"broken")
    options = BuildOptions(shard_samples=6, shuffle=False)
    undisturbed = build(source, tmp_path / "undisturbed", options)
    names = [f"shard-{number:06d}.tar" for number in range(5)]
    assert undisturbed.datasets[0].manifest.shards.names == [*names[:2], *names[3:]]
    out = tmp_path / "out"
    interrupt(source, out, samples=26, options=options)
    assert (out / "shard-000002.bad.jsonl").exists()
    assert not (out / names[2]).exists()
    written.clear()
    report = build(source, out, options)
    assert written == names[4:]
    assert report.bad_by_cause == {"not an image": 6}
    assert files_of(out) == files_of(tmp_path / "undisturbed")
    assert verify(out, "full").problems == []


def test_too_many_bad_images_count_those_of_finished_shards(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out", samples=36)
    with pytest.raises(SourceError, match="^too many bad images: 1 of 37 so far"):
        build(source, tmp_path / "out", BuildOptions(shard_samples=6, max_bad_fraction=0))


def test_a_source_error_before_anything_new_keeps_what_is_finished(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(source, out)
    before = files_of(out)
    source.rename(tmp_path / "away")
    with pytest.raises(SourceError, match="^no such source") as caught:
        build(source, out, OPTIONS)
    assert caught.value.__notes__ == [f"3 finished shards are kept in {out}: run the same command again to go on"]
    assert files_of(out) == before


def test_a_marker_whose_build_had_recorded_nothing_vouches_for_leftovers(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(source, out)
    (out / ".building.plan").unlink()
    build(source, out, BuildOptions(seed=5))
    assert len(open_dataset(out).manifest.shards) == 1
    assert len(list(out.iterdir())) == 5


def test_two_go_on_at_once_and_one_is_told(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "undisturbed", OPTIONS)
    out = tmp_path / "out"
    interrupt(source, out)

    def start(total: int) -> Callable[..., None]:
        for restart in (False, True):
            with pytest.raises(
                DestinationError, match=f"^destination {out} is in use by another process of shardfeed; wait until"
            ):
                build(source, out, OPTIONS, restart=restart)
        return lambda samples, size_bytes: None

    assert build(source, out, OPTIONS, start=start).resumed_shards == 3
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_a_build_that_lost_its_destination_stops_before_its_next_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: LocalClaim) -> None:
        raise DestinationError("destination was taken over")

    monkeypatch.setattr(LocalClaim, "check", lost)
    with pytest.raises(DestinationError, match="^destination was taken over"):
        build(source, tmp_path / "out", OPTIONS)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1


def test_tables_of_any_source_are_gone_on_with(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[SampleTable] = scan_source(source)
    build_tables(tables, tmp_path / "undisturbed", OPTIONS)
    with monkeypatch.context() as patch:
        real = writing.write_shards

        def stop(tasks: Any, *arguments: Any) -> Any:
            pairs: Any = real(tasks, *arguments)
            with contextlib.closing(pairs):
                yield next(pairs)
                raise MemoryError

        patch.setattr(writing, "write_shards", stop)
        with pytest.raises(MemoryError):
            build_tables(tables, tmp_path / "out", OPTIONS)
    assert build_tables(tables, tmp_path / "out", OPTIONS).resumed_shards == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


@pytest.fixture
def images_in_parquet(tmp_path: Path) -> Path:
    """A Parquet file with 36 images inside."""
    images = pa.array([{"bytes": encoded(number), "path": None} for number in range(36)])
    captions = [f"text {number}" for number in range(36)]
    parquet.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def test_images_within_parquet_are_gone_on_with_until_the_file_changes(images_in_parquet: Path, tmp_path: Path) -> None:
    build(images_in_parquet, tmp_path / "undisturbed", OPTIONS)
    out = tmp_path / "out"
    interrupt(images_in_parquet, out)
    assert not (out / ".building.images").exists()
    later = os.stat(images_in_parquet).st_mtime_ns + 1
    os.utime(images_in_parquet, ns=(later, later))
    with pytest.raises(ResumeError, match="holds an interrupted build of other input"):
        build(images_in_parquet, out, OPTIONS)
    os.utime(images_in_parquet, ns=(later - 1, later - 1))
    assert build(images_in_parquet, out, OPTIONS).resumed_shards == 3
    assert files_of(out) == files_of(tmp_path / "undisturbed")
