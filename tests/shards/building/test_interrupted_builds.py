"""Builds that are killed, interrupted, out of space, or two at a time."""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feeder.shards.building import fetching, packing, writing
from feeder.shards.building.writing import BuildOptions, build
from feeder.shards.destinations.claiming import claim_destination
from feeder.shards.errors import DestinationError, ManifestError, SourceError, StorageError
from feeder.shards.reading.opening import open_dataset
from tests.images import write_image_folder

OPTIONS = BuildOptions(shard_samples=6)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two splits, so that there are several manifests, and a bad image, so that there is a list of them."""
    write_image_folder(tmp_path / "images" / "train")
    write_image_folder(tmp_path / "images" / "val", per_class=2)
    (tmp_path / "images" / "val" / "bee" / "z.jpg").write_bytes(b"broken")
    return tmp_path / "images"


def run_script(body: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = "import os, signal, sys\nfrom feeder.shards.building.writing import *\n" + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


# Builds in a process of its own for each number of steps given, which kills itself when it has done as many: images,
# calls of fsync, rename and unlink are counted together. With a negative number it prints how many there are.
KILLED = """
    def build_and_die(steps, out):
        def step(*_, **__):
            nonlocal steps
            steps -= 1
            if steps == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def counted(function):
            def call(*arguments, **options):
                step()
                return function(*arguments, **options)
            return call
        os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
        build(sys.argv[1], out, BuildOptions(shard_samples=6, format=sys.argv[3]), start=lambda total: step)
        if steps < 0:
            print(-1 - steps)
    for words in sys.argv[4:]:
        for steps in words.split(","):  # one after the other at the same place
            child = os.fork()
            if not child:
                build_and_die(int(steps), sys.argv[2] + "-" + words)
                os._exit(sys.stdout.flush() or 0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_at(source: Path, out: Path, *steps: str, format: str = "tar") -> list[int]:
    """Kill builds at steps such as ``"7"``, or ``"7,5"`` for one that is killed again, in ``{out}-{steps}``."""
    done = run_script(KILLED, source, out, format, *steps)
    assert done.stderr == ""
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize(("format", "kills"), [("tar", 50), ("arrow", 25)])
def test_a_build_killed_at_any_moment_is_gone_on_with_to_the_same_bytes(
    source: Path, tmp_path: Path, format: str, kills: int
) -> None:
    options = BuildOptions(shard_samples=6, format=format)
    undisturbed = tmp_path / "undisturbed"
    build(source, undisturbed, options)
    steps, code = kill_at(source, tmp_path / "counted", "-1", format=format)
    assert code == 0
    assert files_of(tmp_path / "counted--1") == files_of(undisturbed)
    chosen = random.Random(format)
    moments = [str(chosen.randint(1, steps)) for _ in range(kills - 12)]
    moments += [str(step) for step in range(steps - 7, steps + 1)]  # the manifests, tidying up, the marker
    moments += [f"{chosen.randint(20, steps - 9)},{chosen.randint(1, 20)},{chosen.randint(1, 20)}" for _ in range(4)]
    moments = sorted(set(moments))
    codes = kill_at(source, tmp_path / "out", *moments, format=format)
    assert set(codes) == {-signal.SIGKILL}
    for moment in moments:
        out = Path(f"{tmp_path}/out-{moment}")
        assert (out / ".building").exists()
        for split in (out / "train", out / "val"):
            if (split / "manifest.json").exists():  # then all of that split is there
                there = {path.name for path in split.iterdir() if not path.name.endswith(".bad.jsonl")}
                assert there == {path.name for path in (undisturbed / split.name).iterdir()}
                open_dataset(split)
            else:
                with pytest.raises(ManifestError, match=f"^{out} is the destination of a build that has not finished"):
                    open_dataset(split)
        with contextlib.suppress(DestinationError):  # it was finished but for its marker
            build(source, out, options)
        assert files_of(out) == files_of(undisturbed), moment


def test_workers_die_with_a_killed_build(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = """
        if __name__ == "__main__":
            from multiprocessing import active_children
            def advance(samples, size_bytes):
                print(*(child.pid for child in active_children()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            build(sys.argv[1], sys.argv[2], BuildOptions(shard_samples=1), workers=2, start=lambda total: advance)
    """
    killed = run_script(script, source, out)
    assert killed.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2
    # run() returned because the workers, which hold the other ends of its pipes, are gone
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
            raise ProcessLookupError
    build(source, out, BuildOptions(shard_samples=1))
    assert open_dataset(out / "train").manifest.num_samples == 36


def test_ctrl_c_in_the_first_shard_leaves_nothing(source: Path, tmp_path: Path) -> None:
    script = """
        def advance(samples, size_bytes):
            os.kill(os.getpid(), signal.SIGINT)
        build(sys.argv[1], sys.argv[2], start=lambda total: advance)
    """
    (tmp_path / "there").mkdir()
    for name in ("there", "new/inner/out"):
        interrupted = run_script(script, source, tmp_path / name)
        assert "KeyboardInterrupt" in interrupted.stderr
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_workers_leave_ctrl_c_to_their_parent_from_their_first_import_on(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, sys
            from feeder.shards.building.writing import *
            if __name__ == "__main__":
                build(sys.argv[1], sys.argv[2], BuildOptions(shard_samples=1), workers=2)
            else:  # what a worker imports
                os.kill(os.getpid(), signal.SIGINT)
        """)
    )
    command = [sys.executable, str(script), str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert open_dataset(tmp_path / "out" / "train").manifest.num_samples == 36


@pytest.mark.parametrize(
    ("signal_name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_command_keeps_what_is_finished_and_says_how_to_go_on(
    source: Path, tmp_path: Path, signal_name: str, code: int, word: str, workers: int
) -> None:
    out = tmp_path / "out"
    script = f"""
        from feeder.shards import destinations
        from feeder.tools import building, main
        if __name__ == "__main__":
            real = building.build
            def build_until(*arguments, start, **options):
                done = 0
                def advance(samples, *, size_bytes):
                    nonlocal done
                    done += samples
                    if done > 14:
                        os.kill(os.getpid(), signal.{signal_name})
                return real(*arguments, start=lambda total: advance, **options)
            building.build = build_until
            sys.exit(main.main(["build", *sys.argv[1:3], "--shard-samples", "6", "--workers", "{workers}", "-q"]))
    """
    stopped = run_script(script, source, out)
    kept = len(list(out.rglob("*.idx.arrow")))
    assert stopped.returncode == code
    assert kept >= 2
    assert (
        stopped.stderr
        == f"feeder: {word}; {kept} finished shards are kept in {out}: run the same command again to go on\n"
    )
    build(source, tmp_path / "undisturbed", OPTIONS)
    assert build(source, out, OPTIONS).resumed_shards == kept
    assert files_of(out) == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("at", [0, 3, 11])
def test_a_full_disk_is_one_sentence_and_costs_one_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DestinationError) as caught:
        build(source, tmp_path / "out", OPTIONS)
    assert str(caught.value).startswith(f"cannot write {tmp_path}/out")
    assert str(caught.value).endswith(
        ": No space left on device; check its space and permissions, or choose another destination"
    )
    kept = len(list((tmp_path / "out").rglob("*.idx.arrow")))
    if kept:
        shards = "1 finished shard is" if kept == 1 else f"{kept} finished shards are"
        assert caught.value.__notes__ == [f"{shards} kept in {tmp_path}/out: run the same command again to go on"]
    else:
        assert not (tmp_path / "out").exists()
    assert (kept > 0) == (at > 0)
    monkeypatch.undo()
    assert build(source, tmp_path / "out", OPTIONS).resumed_shards == kept
    build(source, tmp_path / "undisturbed", OPTIONS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_two_builders_at_one_destination(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def start(total: int) -> Callable[[int], None]:
        with pytest.raises(DestinationError) as caught:
            build(source, out)
        assert str(caught.value) == (
            f"destination {out} is in use by another process of shardfeed; wait until it has finished, or choose "
            "another destination"
        )
        return lambda samples, size_bytes: None

    build(source, out, OPTIONS, start=start)
    assert open_dataset(out / "train").manifest.num_samples == 36
    assert not (out / ".building").exists()


def test_leftovers_are_removed_only_where_a_marker_vouches_for_them(source: Path, tmp_path: Path) -> None:
    assert kill_at(source, tmp_path / "out", "60") == [-signal.SIGKILL]
    out = tmp_path / "out-60"
    (out / "train" / "notes.txt").write_text("mine")
    before = files_of(out)
    with pytest.raises(DestinationError, match=r"is not empty: it holds train/notes.txt; choose another destination"):
        build(source, out)
    assert files_of(out) == before
    (out / "train" / "notes.txt").unlink()
    (out / ".building").unlink()
    before = files_of(out)
    with pytest.raises(DestinationError, match="is not empty: it holds "):
        build(source, out)
    assert files_of(out) == before


def test_files_behind_a_link_are_nobodys_leftovers(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "finished", OPTIONS)
    before = files_of(tmp_path / "finished")
    assert kill_at(source, tmp_path / "out", "30") == [-signal.SIGKILL]
    out = tmp_path / "out-30"
    shutil.rmtree(out / "train")
    (out / "train").symlink_to(tmp_path / "finished" / "train")
    with pytest.raises(DestinationError, match="is not empty: it holds train; choose another destination"):
        build(source, out)
    assert files_of(tmp_path / "finished") == before


@pytest.mark.parametrize("at_first", [True, False])
def test_a_builder_that_comes_at_the_same_moment_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_first: bool
) -> None:
    """The second looks for a marker just before the first makes it, or just before the first takes it away."""
    out = tmp_path / "out"
    out.mkdir()
    real = os.open
    with contextlib.ExitStack() as stack:
        first = claim_destination(out, source)
        if not at_first:
            stack.enter_context(first)

        def open_late(path: Any, *arguments: Any, **options: Any) -> int:
            if str(path).endswith(".building"):
                monkeypatch.undo()
                stack.enter_context(first) if at_first else stack.close()
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", open_late)
        with pytest.raises(
            DestinationError, match="is in use by another process of shardfeed; wait until it has finished"
        ):
            build(source, out)


@pytest.mark.parametrize("text", [b"", b"somebody else's file"])
def test_a_marker_without_our_text_vouches_for_nothing(source: Path, tmp_path: Path, text: bytes) -> None:
    out = tmp_path / "out"
    build(source, out, OPTIONS)
    (out / ".building").write_bytes(text)
    before = files_of(out)
    with pytest.raises(DestinationError, match="is not empty"):
        build(source, out)
    assert files_of(out) == before


def test_a_builder_that_comes_while_another_finishes_does_no_harm(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks at the folder while it is empty, and makes its marker when the first has finished."""
    out = tmp_path / "out"
    out.mkdir()
    real = os.open
    built: list[Any] = []

    def open_late(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".building") and not built:
            built.append(None)
            build(source, out, OPTIONS)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises(DestinationError, match="is not empty: it holds bad-images.jsonl"):
        build(source, out)
    assert open_dataset(out / "train").manifest.num_samples == 36
    assert not (out / ".building").exists()


def test_too_many_bad_images_stop_the_workers_and_may_be_allowed_later(source: Path, tmp_path: Path) -> None:
    for number in range(30):
        (source / "train" / "bee" / f"z{number}.jpg").write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"^too many bad images: 1\d of 73 so far"):
        build(source, tmp_path / "out", BuildOptions(shard_samples=1), workers=2)
    kept = len(list((tmp_path / "out").rglob("*.idx.arrow")))
    assert kept > 0
    report = build(source, tmp_path / "out", BuildOptions(shard_samples=1, max_bad_fraction=0.6), workers=2)
    assert report.resumed_shards == kept
    assert (report.num_samples, len(report.bad)) == (42, 31)


def test_a_disk_too_full_for_the_marker_is_left_empty(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DestinationError, match="No space left on device"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_system_without_locks_is_one_sentence(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(DestinationError) as caught:
        build(source, tmp_path / "out")
    assert str(caught.value) == (
        f"destination {tmp_path}/out is on a file system without locks (No locks available); build on a local disk and "
        "copy the dataset there"
    )


def test_a_destination_that_vanishes_is_one_sentence(source: Path, tmp_path: Path) -> None:
    def start(total: int) -> Callable[[int], None]:
        shutil.rmtree(tmp_path / "out")
        return lambda samples, size_bytes: None

    with pytest.raises(DestinationError, match=r"^cannot write .*/out/train/shard-000000.tar: No such file or dir"):
        build(source, tmp_path / "out", start=start)


def test_what_cannot_be_removed_keeps_its_marker(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(total: int) -> Callable[[int], None]:
        return lambda samples, size_bytes: monkeypatch.setattr(Path, "unlink", stuck)

    def stuck(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SourceError, match="^too many bad images: 1 of 43 so far"):
        build(source, tmp_path / "out", BuildOptions(max_bad_fraction=0), start=start)
    assert (tmp_path / "out" / ".building").exists()
    monkeypatch.undo()
    build(source, tmp_path / "out")


def test_a_failing_mount_stops_the_build_and_sets_nothing_aside(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: str, limit: int = -1) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(fetching, "read_regular_file", stale)
    with pytest.raises(StorageError, match=r"^cannot read .*/images/train/.*\.jpg: Stale file handle; check the path"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dead_worker_is_one_sentence(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def task_that_kills(*arguments: Any) -> Any:
        task = real_task(*arguments)
        return packing.ShardTask(**{f: getattr(task, f) for f in task.__slots__} | {"table": _Killer()})

    real_task = writing._task
    monkeypatch.setattr(writing, "_task", task_that_kills)
    with pytest.raises(DestinationError) as caught:
        build(source, tmp_path / "out", OPTIONS, workers=2)
    assert str(caught.value) == (
        "a worker process died; if the machine ran out of memory, run it again with fewer --workers"
    )
    assert not (tmp_path / "out").exists()


class _Killer:
    """Kills the process that looks into it."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise AttributeError(name)


def test_claiming_twice_in_a_row_works(source: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with claim_destination(tmp_path / "out", source):
            assert (tmp_path / "out" / ".building").exists()
        assert list((tmp_path / "out").iterdir()) == []
