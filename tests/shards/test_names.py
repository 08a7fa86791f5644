"""Keys made from file names, and the table that holds many names."""

import pickle
import re
import string

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from feeder.shards.names import KEY, MAX_KEY_BYTES, PathTable, key_of, readable
from feeder.shards.tar import member_header

# what a POSIX file system takes: no slash, no zero byte; any bytes, as surrogates where they are not UTF-8
NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.binary(min_size=1, max_size=60)
    .map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_"))
    .map(lambda b: b.decode("utf-8", "surrogateescape")),
    st.text(string.ascii_letters + string.digits + "_-. ", min_size=1, max_size=200),
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join).map(lambda path: path + ".jpg")


@given(PATHS)
@example("____.jpg")
def test_every_path_has_a_key_that_every_reader_of_tars_takes(path: str) -> None:
    key = key_of(path)
    assert KEY.fullmatch(key)
    assert len(key) <= MAX_KEY_BYTES
    assert len(member_header(f"{key}.mask.png", 1)) == 512
    assert not re.match("__[^/]*__($|/)", f"{key}.jpg")  # what webdataset and energon leave out in silence
    assert key == key_of(path)


@given(st.lists(PATHS, min_size=2, max_size=20, unique=True))
def test_different_files_have_different_keys(paths: list[str]) -> None:
    assert len(set(map(key_of, paths))) == len(paths)


@given(st.lists(st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20), min_size=1, max_size=4))
def test_clean_names_stay_as_they_are(parts: list[str]) -> None:
    path = "x" + "/".join(parts)
    assert key_of(path + ".JPEG") == path


def test_folders_without_a_name_go() -> None:
    assert [key_of(path)[:-17] for path in ("/a/b.jpg", "a//b.jpg", "//b.jpg")] == ["a/b", "a/b", "b"]
    assert all(KEY.fullmatch(key_of(path)) for path in ("/.jpg", "//", "a/ /b.jpg", "/" * 200 + "b.jpg"))


def test_changed_names_keep_what_can_be_read_and_get_a_digest() -> None:
    assert key_of("cats/my cat.jpg") == "cats/my_cat-" + key_of("cats/my cat.jpg")[-16:]
    assert key_of("v1.0/a.b.c.png").startswith("v1_0/a_b_c-")
    assert key_of("猫/一.jpg") != key_of("猫/二.jpg")
    assert key_of("кошка/1.jpg").startswith("_/1-")  # a folder "_____" would be left out by webdataset
    assert key_of("__other__/1.jpg").startswith("_other_/1-")
    assert key_of("__other/1.jpg") == "__other/1"
    assert key_of("a b.jpg") != key_of("a_b.jpg")
    assert key_of("a b.jpg") != key_of("a b.png")
    assert key_of("a.jpg") == key_of("a.png")  # this one the build refuses
    assert len(key_of("x" * 200 + ".jpg")) == MAX_KEY_BYTES


def test_keys_are_pinned() -> None:
    """A change of the rule would give the samples of existing sources other keys."""
    assert key_of("n01/it's a dog.JPEG") == "n01/it_s_a_dog-152862dc98ef7e1a"


@given(st.lists(PATHS, max_size=30))
def test_a_path_table_gives_back_its_paths(paths: list[str]) -> None:
    table = pickle.loads(pickle.dumps(PathTable(paths)))
    assert list(table) == paths
    assert len(table) == len(paths)


def test_names_that_are_not_utf8_are_shown_with_their_bytes() -> None:
    assert readable("caf\udce9.jpg") == "caf\\xe9.jpg"
    assert readable("café.jpg") == "café.jpg"


def test_some_paths_of_a_table_are_a_table() -> None:
    table = PathTable(["a", "", "caf\udce9/b", "日本"])
    taken = table.take(np.array([3, 0, 2, 2, 1]))
    assert list(taken) == ["日本", "a", "caf\udce9/b", "caf\udce9/b", ""]
    assert list(pickle.loads(pickle.dumps(taken)).take(np.array([1], np.int64))) == ["a"]
    assert list(table.take(np.zeros(0, np.int64))) == []
