"""Tar members: the bytes of the standard library, without its slowness."""

import string
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.shards.formats.tar import member_header, member_sizes, padding


@given(st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=100), st.integers(0, (1 << 33) - 1))
def test_headers_are_those_of_the_standard_library(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    ours, theirs = member_header(name, size), info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    parsed = tarfile.TarInfo.frombuf(ours, "ascii", "strict")  # which checks the checksum
    assert (parsed.name, parsed.size, parsed.isreg()) == (name, size, True)
    assert ours[:148] == theirs[:148]
    assert ours[156:329] == theirs[156:329]  # device numbers follow: zeros or nothing, by the version of Python
    assert ours[345:] == theirs[345:]


def test_what_does_not_fit_is_refused() -> None:
    for name, size in (("x" * 101, 1), ("", 1), ("x", 1 << 33), ("x", -1)):
        with pytest.raises(ValueError, match="its name or its size does not fit"):
            member_header(name, size)


def test_members_fill_whole_blocks() -> None:
    sizes = [0, 1, 511, 512, 513]
    assert member_sizes(np.array(sizes)).tolist() == [512 + size + len(padding(size)) for size in sizes]
    assert member_sizes(np.array(sizes)).tolist() == [512, 1024, 1024, 1024, 1536]
