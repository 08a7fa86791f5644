"""Destinations of builds: what every kind promises, and how claims behind URLs are made, renewed and taken over."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from feeder.shards.destinations import lease, remote
from feeder.shards.destinations.claiming import check_destination, claim_destination
from feeder.shards.destinations.local import LocalDestination
from feeder.shards.destinations.protocol import PLAN_NAME
from feeder.shards.destinations.remote import RemoteDestination
from feeder.shards.errors import DestinationError
from tests.servers.s3_server import S3Bucket

SOURCE = "/nowhere/images"
ERRORS: tuple[type[BaseException], ...] = (ValueError, KeyboardInterrupt)


def fail_after(action: Callable[[], Any], error: BaseException) -> None:
    action()
    raise error


def interrupt(url: str, *names: str) -> BaseException:
    """Interrupt a build that has written files of these names; return its error."""
    with pytest.raises(KeyboardInterrupt) as caught, claim_destination(url, SOURCE) as claim:
        fail_after(lambda: [claim.folder.put(name, b"x") for name in names], KeyboardInterrupt())
    return caught.value


class DestinationContract:
    """Duties of every kind of destination; a test class inherits it and gives the fixture ``url``."""

    def test_what_is_put_can_be_listed_read_and_removed(self, url: str) -> None:
        with claim_destination(url, SOURCE) as claim:
            folder = claim.folder
            folder.put("shard-000000.tar", b"0123")
            with folder.staged("train/shard-000000.tar") as file:
                file.write(b"45")
                file.write(b"6")
            folder.put(PLAN_NAME, b"plan")
            assert dict(folder.files()) == {PLAN_NAME: 4, "shard-000000.tar": 4, "train/shard-000000.tar": 3}
            assert folder.read("train/shard-000000.tar") == b"456"
            assert folder.where("train/shard-000000.tar") == f"{folder.url}/train/shard-000000.tar"
            with pytest.raises(FileNotFoundError):
                folder.read("train/shard-000001.tar")
            folder.remove(["shard-000000.tar", "shard-000001.tar", PLAN_NAME])
            assert dict(folder.files()) == {"train/shard-000000.tar": 3}
            folder.flush()
            claim.check()

    def test_a_file_whose_writing_fails_never_appears(self, url: str) -> None:
        with claim_destination(url, SOURCE) as claim:
            for error in ERRORS:
                with pytest.raises(error), claim.folder.staged("shard-000000.tar") as file:
                    fail_after(lambda: file.write(b"half"), error())
            assert dict(claim.folder.files()) == {}

    def test_one_claim_at_a_time(self, url: str) -> None:
        with claim_destination(url, SOURCE) as claim:
            claim.folder.put("shard-000000.tar", b"0123")
            for attempt in (claim_destination(url, SOURCE).__enter__, lambda: check_destination(url, SOURCE)):
                with pytest.raises(DestinationError, match=f"^destination {claim.folder.url} is in use by another"):
                    attempt()
            assert dict(claim.folder.files()) == {"shard-000000.tar": 4}

    def test_a_finished_dataset_is_refused(self, url: str) -> None:
        with claim_destination(url, SOURCE) as claim:
            claim.folder.put("train/manifest.json", b"{}")
        for attempt in (claim_destination(url, SOURCE).__enter__, lambda: check_destination(url, SOURCE)):
            with pytest.raises(DestinationError) as caught:
                attempt()
            assert str(caught.value) == (
                f"destination {claim.folder.url} is not empty: it holds a finished dataset; choose another "
                "destination, or empty the folder yourself"
            )
        assert claim.folder.read("train/manifest.json") == b"{}"

    def test_what_is_finished_is_kept_after_an_error_and_vouched_for(self, url: str) -> None:
        indexed = ["train/shard-000000.idx.arrow", "val/shard-000000.idx.arrow"]
        error = interrupt(url, PLAN_NAME, *indexed, "shard-000001.tar", "val/shard-000000.bad.jsonl")
        assert error.__notes__ == [f"2 finished shards are kept in {url}: run the same command again to go on"]
        check_destination(url, SOURCE)
        with claim_destination(url, SOURCE) as again:
            assert len(again.folder.files()) == 5

    def test_nothing_remains_where_nothing_was_finished(self, url: str) -> None:
        error = interrupt(url, PLAN_NAME, "train/shard-000000.tar")
        assert not hasattr(error, "__notes__")
        assert not os.path.exists(url)
        check_destination(url, SOURCE)
        with claim_destination(url, SOURCE) as again:
            assert dict(again.folder.files()) == {}

    def test_foreign_files_are_never_touched(self, url: str) -> None:
        interrupt(url, PLAN_NAME, "train/shard-000000.idx.arrow", "train/notes.txt")
        folder = RemoteDestination(url) if "://" in url else LocalDestination(Path(url))
        for attempt in (claim_destination(url, SOURCE).__enter__, lambda: check_destination(url, SOURCE)):
            with pytest.raises(DestinationError, match="is not empty: it holds train/notes.txt; choose another"):
                attempt()
        assert folder.read("train/notes.txt") == b"x"
        folder.remove(["train/notes.txt"])
        folder.put("val/deeper/notes.txt" if "://" in url else "notes", b"mine")
        with pytest.raises(DestinationError, match="is not empty: it holds (val/deeper|notes); choose another"):
            check_destination(url, SOURCE)

    def test_copies_work_in_other_processes(self, url: str) -> None:
        with claim_destination(url, SOURCE) as claim:
            copy = pickle.loads(pickle.dumps(claim.folder))
            copy.hold()
            copy.put("shard-000000.tar", b"0123")
            assert dict(claim.folder.files()) == {"shard-000000.tar": 4}


class TestLocal(DestinationContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "out")

    def test_workers_of_a_build_that_gave_up_are_refused(self, tmp_path: Path) -> None:
        with claim_destination(tmp_path / "out", SOURCE) as claim:
            pass
        with pytest.raises(DestinationError, match="is in use by another process of shardfeed"):
            claim.folder.hold()

    def test_a_destination_that_cannot_be_written_is_seen_at_a_look(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DestinationError, match="file/out: Not a directory; check its space and permissions"):
            check_destination(tmp_path / "file" / "out", SOURCE)

    def test_a_read_only_destination_is_one_sentence(self) -> None:
        with tempfile.TemporaryDirectory() as name, without_rights(name):
            out = f"{name}/new/out"
            for attempt in (claim_destination(out, SOURCE).__enter__, lambda: check_destination(out, SOURCE)):
                with pytest.raises(DestinationError) as caught:
                    attempt()
                assert str(caught.value) == (
                    f"cannot write {out}: Permission denied; check its space and permissions, or choose another "
                    "destination"
                )


@contextlib.contextmanager
def without_rights(folder: str) -> Iterator[None]:
    """Have no right to write into a folder for a while, also if root runs the tests."""
    os.chmod(folder, 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.chmod(folder, 0o755)


class TestMemory(DestinationContract):
    """A file system of fsspec that has neither entity tags nor uploads in parts."""

    @pytest.fixture
    def url(self) -> str:
        return f"memory://{uuid.uuid4().hex}/out"


class TestS3(DestinationContract):
    @pytest.fixture
    def url(self, s3_bucket: S3Bucket) -> str:
        return f"{s3_bucket.url}/some/out"

    def test_a_bucket_itself_may_be_the_destination(self, s3_bucket: S3Bucket) -> None:
        with claim_destination(s3_bucket.url + "/", SOURCE) as claim:
            claim.folder.put("train/shard-000000.tar", b"0123")
            assert dict(claim.folder.files()) == {"train/shard-000000.tar": 4}

    def test_a_bucket_that_is_not_there_is_one_sentence(self, s3_bucket: S3Bucket) -> None:
        with pytest.raises(DestinationError) as caught, claim_destination("s3://no-such-bucket/out", SOURCE):
            pass
        assert str(caught.value) == (
            "cannot write s3://no-such-bucket/out: NoSuchBucket; check the connection and the permissions there, or "
            "choose another destination"
        )

    def test_large_files_go_in_parts(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "PART_BYTES", 5 << 20)  # the least that S3 allows
        data = os.urandom(12 << 20)
        with claim_destination(url, SOURCE) as claim:
            with claim.folder.staged("shard-000000.tar") as file:
                file.write(data)
            assert claim.folder.read("shard-000000.tar") == data

    def test_uploads_that_a_dead_build_left_are_aborted_and_no_others(self, url: str, s3_bucket: S3Bucket) -> None:
        files = RemoteDestination(url).filesystem
        bucket = s3_bucket.url.removeprefix("s3://")
        keys = [f"some/out/shard-{number:06d}.tar" for number in range(3)]
        for key in (*keys, "some/out/train/shard-000000.tar", "some/out/thesis.tar", "some/outer/shard-000000.tar"):
            files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        with claim_destination(url, SOURCE):
            left = [upload["Key"] for upload in files.list_multipart_uploads(bucket)]
            assert left == ["some/out/thesis.tar", "some/outer/shard-000000.tar"]

    def test_a_failed_upload_leaves_no_parts(
        self, url: str, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PART_BYTES", 5 << 20)
        files = RemoteDestination(url).filesystem
        real = files._call_s3

        async def failing(method: str, *arguments: Any, **options: Any) -> Any:
            if method == "upload_part" and options["PartNumber"] == 2:
                raise OSError("connection reset")
            return await real(method, *arguments, **options)

        monkeypatch.setattr(files, "_call_s3", failing)
        with (
            pytest.raises(DestinationError, match="shard-000000.tar: connection reset; check the connection"),
            claim_destination(url, SOURCE) as claim,
            claim.folder.staged("shard-000000.tar") as file,
        ):
            file.write(bytes(12 << 20))
        assert files.list_multipart_uploads(s3_bucket.url.removeprefix("s3://")) == []

    def test_of_many_that_come_at_once_one_wins(self, url: str) -> None:
        leases = [RemoteDestination(url).lease() for _ in range(8)]
        barrier = threading.Barrier(len(leases))

        def come(own: lease.Lease) -> str:
            barrier.wait()
            try:
                own.take()
            except DestinationError as error:
                return str(error)
            return "won"

        with ThreadPoolExecutor(len(leases)) as pool:
            outcomes = list(pool.map(come, leases))
        for own in leases:
            own.give_up()
        assert outcomes.count("won") == 1
        assert sum("is in use by another process of shardfeed" in outcome for outcome in outcomes) == 7


def marker_of(url: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RemoteDestination(url).read(".building"))
    return document


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/out"
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return f"{bucket.url}/out"


@contextlib.contextmanager
def held(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[lease.Lease]:
    """Hold the lease of a destination as if from another machine."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_machine", lambda: ["another-boot", "pid:[1]"])
        other = RemoteDestination(url).lease()
        other.take()
        patch.undo()
        yield other
    other.give_up()


def test_a_lease_is_renewed_as_long_as_its_owner_lives(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with claim_destination(store, SOURCE) as claim:
        first = marker_of(store)
        while (now := marker_of(store)) == first:
            pass
        assert now["owner"] == first["owner"]
        assert now["renewed"] > first["renewed"]
        claim.check()


def test_the_owner_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(store, monkeypatch), pytest.raises(DestinationError) as caught:
        claim_destination(store, SOURCE).__enter__()
    words = str(caught.value)
    assert words.startswith(f"destination {store} is in use by another process of shardfeed (process {os.getpid()} on ")
    assert words.endswith(
        " s ago; if it was killed, its place is free after 300 s); wait until it has finished, or choose another "
        "destination"
    )


def test_a_lease_without_a_sign_of_life_is_taken_over_and_its_owner_stops(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(store, monkeypatch) as other:
        monkeypatch.setattr(lease, "STALE_S", -1.0)
        with claim_destination(store, SOURCE) as claim:
            monkeypatch.setattr(lease, "STALE_S", 300.0)
            other.check()
            other.renew()
            with pytest.raises(DestinationError) as caught:
                other.check()
            assert str(caught.value) == (
                f"destination {store} was taken over by another process of shardfeed, because this one gave no "
                "sign of life for 300 s; wait until that has finished"
            )
            claim.check()
            other.give_up()
            assert RemoteDestination(store).lease().holder()


def test_an_owner_that_slept_too_long_stops_before_it_asks_the_store(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim_destination(store, SOURCE) as claim:
        claim.check()
        now_s = lease._clock_s()
        monkeypatch.setattr(lease, "_clock_s", lambda: now_s + 301)
        with pytest.raises(DestinationError, match="because this one gave no sign of life for 300 s"):
            claim.check()


def test_a_killed_owner_on_this_machine_is_known_to_be_dead(s3_bucket: S3Bucket) -> None:
    url = f"{s3_bucket.url}/out"
    script = f"""
        import os, signal
        from feeder.shards.destinations.claiming import claim_destination
        with claim_destination({url!r}, "/nowhere") as claim:
            claim.folder.put(".building.plan", b"x")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert RemoteDestination(url).files() == {".building.plan": 1}
    with claim_destination(url, SOURCE) as claim:
        assert claim.folder.files() == {".building.plan": 1}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"somebody else's file"])
def test_a_marker_that_is_none_of_ours_vouches_for_nothing(store: str, text: bytes) -> None:
    folder = RemoteDestination(store)
    folder.put(".building", text)
    with pytest.raises(DestinationError, match="is not empty: it holds .building; choose another"):
        claim_destination(store, SOURCE).__enter__()
    assert folder.read(".building") == text


def test_a_dataset_that_is_finished_meanwhile_is_not_taken_for_leftovers(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build finishes between the look at the folder and the making of the marker."""
    folder = RemoteDestination(store)
    real = lease.Lease.take

    def late(self: lease.Lease) -> bool:
        folder.put("manifest.json", b"{}")
        return real(self)

    monkeypatch.setattr(lease.Lease, "take", late)
    with pytest.raises(DestinationError, match="is not empty: it holds a finished dataset"):
        claim_destination(store, SOURCE).__enter__()
    assert list(folder.entries()) == ["manifest.json"]


def test_a_full_temporary_folder_is_told_from_a_full_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with claim_destination(f"memory://{uuid.uuid4().hex}", SOURCE) as claim:
        with pytest.raises(DestinationError) as caught, claim.folder.staged("shard-000000.tar"):
            pass
        assert str(caught.value) == (
            f"cannot write a temporary file in /nonexistent for {claim.folder.url}/shard-000000.tar: No such file or "
            "directory; free space there, or name another folder with TMPDIR"
        )


@pytest.mark.parametrize(
    ("dest", "source", "words"),
    [
        ("s3://bucket/x", "s3://bucket/x/", "source and destination are the same folder, s3://bucket/x; choose"),
        ("s3://bucket/x/y", "s3://bucket/x", "destination s3://bucket/x/y is inside the source s3://bucket/x; choose"),
        ("s3://bucket", "s3://bucket/x", "source s3://bucket/x is inside the destination s3://bucket; choose another"),
    ],
)
def test_a_destination_may_not_overlap_its_source(dest: str, source: str, words: str) -> None:
    attempts: list[Callable[[], Any]] = [claim_destination(dest, source).__enter__]
    attempts.append(lambda: check_destination(dest, source))
    for attempt in attempts:
        with pytest.raises(DestinationError) as caught:
            attempt()
        assert str(caught.value).startswith(words)
