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


def wds2idx_samples(path: str | Path) -> list[list[tuple[str, int, int, str]]]:
    """Return (extension, offset, size, member) of the components of each sample, as DALI's wds2idx (v1.2) has them.

    The rules of its tools/wds2idx.py, on its way without GNU tar: regular members only; a name is cut at the first dot
    after the last slash; what has no basename does not count; components belong together while the basename stays the
    same; offsets are those of the content.
    """
    samples: list[list[tuple[str, int, int, str]]] = []
    last = None
    with tarfile.open(path) as archive:
        for member in archive:
            if member.type != tarfile.REGTYPE:
                continue
            dot = member.name.find(".", member.name.rfind("/") + 1)
            basename, extension = member.name[:dot], member.name[dot + 1 :]
            if not basename or basename.endswith("/"):
                continue
            if basename != last:
                samples.append([])
                last = basename
            samples[-1].append((extension, member.offset_data, member.size, member.name))
    return samples


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: str = "gnu") -> Path:
    """Write an archive of regular files, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, data in members:
            add_member(archive, name, data)
    return path
