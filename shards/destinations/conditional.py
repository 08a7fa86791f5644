"""Writing behind a URL under the condition that nobody else wrote: S3's ``If-None-Match: *`` and ``If-Match``.

Ceph's gateway knows an entity tag without its quotes alone. A store that knows no conditions writes whatever is there.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_UNKNOWN = ("NotImplemented", "501")  # what stores say to conditions that they do not know


class _RefusedError(Exception):
    """The condition does not hold."""


class _NoConditionsError(Exception):
    """The store knows no conditional requests."""


def entity_tag(files: Any, url: str) -> str | None:
    """Return the entity tag of an object; None if the file system has none. `FileNotFoundError` if nothing is there.

    Args:
        files: the fsspec file system.
        url: of the object.
    """
    if not is_s3(files):
        return None
    bucket, key, _ = files.split_path(url)
    return str(files.call_s3("head_object", Bucket=bucket, Key=key)["ETag"])


def put_new(files: Any, url: str, data: bytes) -> bool:
    """Write an object if there is none; return whether it was written."""
    try:
        with _mapped_refusals():
            files.pipe_file(url, data, mode="create")
    except _NoConditionsError:
        files.pipe_file(url, data)
    except _RefusedError:
        return False
    return True


def put_over(files: Any, url: str, data: bytes, tag: str | None) -> bool:
    """Write an object if it still has an entity tag, or whatever is there if that is None; return whether it was.

    A request that was sent again because its answer got lost is refused for its own result: look before believing it.
    """
    if tag is None:
        files.pipe_file(url, data)
        return True
    bucket, key, _ = files.split_path(url)
    for spelling in (tag, tag.strip('"')):
        try:
            with _mapped_refusals():
                files.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=spelling)
        except _NoConditionsError:
            files.pipe_file(url, data)
        except _RefusedError:
            continue
        return True
    return False


@contextlib.contextmanager
def _mapped_refusals() -> Iterator[None]:
    """Tell apart what a store says when a condition does not hold, and when it knows none."""
    try:
        yield
    except FileExistsError as error:
        raise _RefusedError from error
    except OSError as error:
        response = getattr(error.__cause__, "response", None) or {}
        code = str(response.get("Error", {}).get("Code"))
        if code in _REFUSED:
            raise _RefusedError from error
        if code in _UNKNOWN:
            raise _NoConditionsError from error
        raise


def is_s3(files: Any) -> bool:
    """Say whether an fsspec file system is that of S3, whose requests may have conditions."""
    return hasattr(files, "call_s3")
