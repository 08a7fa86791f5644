"""Tar archives for tests, as other programs write them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def add_member(
    archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    """Append a member to an open archive."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    archive.addfile(member, io.BytesIO(data))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: str = "gnu") -> Path:
    """Write an archive of regular files, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, data in members:
            add_member(archive, name, data)
    return path
