"""Lists: CSV, TSV, JSON Lines and Parquet files that name images, with anything else as fields."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.shards.errors import SourceError, StorageError
from feeder.shards.fetching import fetch
from feeder.shards.fields import ABSENT, LABEL, Field
from feeder.shards.names import KEY
from feeder.shards.reading import open_dataset
from feeder.shards.sources import SourceOptions, open_source
from feeder.shards.table import UNREADABLE, SampleTable
from feeder.shards.writing import build
from tests.images import encoded


def write_image(path: Path) -> None:
    path.write_bytes(encoded(1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/b.png", "c.jpg", "mask/a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def scan(path: Path, text: str, **options: object) -> SampleTable:
    path.write_text(text)
    (table,) = open_source(path, SourceOptions(**options))  # type: ignore[arg-type]
    return table


ROWS = [
    {"path": "sub/b.png", "label": "dog", "caption": "a dog", "score": 0.5, "count": 3, "good": True},
    {"path": "a.jpg", "label": "cat", "caption": None, "score": None, "count": None, "good": None},
    {"path": "gone.jpg", "label": "dog", "caption": "", "score": -1.0, "count": 7, "good": False},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write a list in the format that its name tells."""
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:

        def text(value: object) -> str:
            return "" if value is None else f'"{value}"' if value == "" else str(value)

        lines = [names, *([text(row[name]) for name in names] for row in rows)]
        path.write_text("".join(("\t" if path.suffix == ".tsv" else ",").join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
def test_every_format_gives_the_same_samples(root: Path, extension: str) -> None:
    (table,) = open_source(write(root / f"list.{extension}", ROWS))
    assert list(table.names) == ["sub/b.png", "a.jpg", "gone.jpg"]
    assert (table.root, table.keys, table.split) == (str(root), None, None)
    assert (table.classes, table.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert table.stored["image"].sizes.tolist() == [9, 5, UNREADABLE]
    assert table.fields == {
        "image": Field(type="image"),
        "label": LABEL,
        "caption": Field(type="string", extension="txt"),
        "score": Field(type="float64"),
        "count": Field(type="int64"),
        "good": Field(type="bool"),
    }
    assert {name: column.to_pylist() for name, column in table.values.items()} == {
        "caption": ["a dog", None, ""],
        "score": [0.5, None, -1.0],
        "count": [3, None, 7],
        "good": [True, None, False],
    }
    assert [sample.get("image") for sample in fetch(table)][:2] == [b"sub/b.png", b"a.jpg"]


def test_integers_are_labels_as_they_are(root: Path) -> None:
    table = scan(root / "l.csv", "image,class\na.jpg,3\nc.jpg,\n")
    assert (table.labels.tolist(), table.classes) == ([3, -1], ("0", "1", "2", "3"))
    (root / "classes.txt").write_text("ant\nbee\ncat\ndog\n\n")
    table = scan(root / "l.csv", "image,class\na.jpg,3\nc.jpg,-1\n", classes_file=str(root / "classes.txt"))
    assert (table.labels.tolist(), table.classes) == ([3, -1], ("ant", "bee", "cat", "dog"))
    table = scan(root / "l.csv", "image,class\na.jpg,dog\n", classes_file=str(root / "classes.txt"))
    assert table.labels.tolist() == [3]


def test_columns_keep_what_numbers_would_lose(root: Path) -> None:
    table = scan(root / "l.csv", 'path,zip,mixed,label\na.jpg,00042,1,"7"\nc.jpg,10115,x,12\n')
    assert table.values["zip"].to_pylist() == ["00042", "10115"]
    assert table.values["mixed"].to_pylist() == ["1", "x"]
    assert table.labels.tolist() == [7, 12]


def test_integers_beyond_64_bits_stay_text(root: Path) -> None:
    table = scan(root / "l.csv", "path,number,x\na.jpg,18446744073709551616,18446744073709551616\nc.jpg,7,0.5\n")
    assert table.values["number"].to_pylist() == ["18446744073709551616", "7"]
    assert table.values["x"].to_pylist() == [2.0**64, 0.5]


def test_texts_of_parquet_may_be_dictionaries(root: Path) -> None:
    columns = {"path": ["a.jpg", "c.jpg"], "label": ["cat", None], "who": ["x", "x"]}
    pq.write_table(
        pa.table({name: pa.array(texts).dictionary_encode() for name, texts in columns.items()}), root / "l.parquet"
    )
    (table,) = open_source(root / "l.parquet")
    assert list(table.names) == ["a.jpg", "c.jpg"]
    assert (table.classes, table.labels.tolist()) == (("cat",), [0, -1])
    assert table.values["who"].to_pylist() == ["x", "x"]


def test_columns_named_like_those_of_indexes(root: Path) -> None:
    write_image(root / "a.jpg")
    (root / "l.csv").write_text("path,image.width,box.offset,box.size\na.jpg,1,2,3\n")
    build(root / "l.csv", root / "set")
    reader = open_dataset(root / "set")
    assert list(reader.manifest.fields) == ["image", "image.width_", "box.offset", "box.size"]
    assert [reader.values(np.arange(1), name) for name in list(reader.manifest.fields)[1:]] == [[1], [2], [3]]


def test_a_path_with_a_zero_byte_is_a_bad_image(root: Path) -> None:
    write_image(root / "a.jpg")
    (root / "l.csv").write_bytes(b"path\na\0.jpg\na.jpg\n")
    (bad,) = build(root / "l.csv", root / "set").bad
    assert (bad.source, bad.cause, bad.reason) == (
        "a\0.jpg",
        "unreadable",
        "it cannot be read: a zero byte in its name",
    )


def test_keys_of_a_column_that_are_not_unique(root: Path) -> None:
    (root / "l.csv").write_text("path,key\na.jpg,x\nc.jpg,x\n")
    with pytest.raises(SourceError) as caught:
        build(root / "l.csv", root / "set")
    assert (
        str(caught.value) == f"a.jpg and c.jpg in {root} would both have the key 'x'; give each sample a key of its own"
    )


def test_dates_in_json_stay_text(root: Path) -> None:
    table = scan(root / "l.jsonl", '{"path": "a.jpg", "taken": "2020-01-02"}\n{"path": "c.jpg", "n": 1}\n')
    assert table.values["taken"].to_pylist() == ["2020-01-02", None]
    assert table.values["n"].to_pylist() == [None, 1]


def test_quoted_fields_may_hold_anything(root: Path) -> None:
    table = scan(root / "l.csv", '\ufeffpath,caption\na.jpg,"one, ""two""\nthree"\n')
    assert table.values["caption"].to_pylist() == ['one, "two"\nthree']


def test_further_images_are_fields(root: Path) -> None:
    text = "path,mask_path,original,depth\na.jpg,mask/a.png,IMG_7.JPG,c.jpg\nc.jpg,,x.jpg,nowhere\n"
    table = scan(root / "l.csv", text, image_columns={"z": "depth"})
    assert list(table.fields) == ["image", "z", "mask", "original"]
    assert table.stored["mask"].sizes.tolist() == [10, ABSENT]
    assert table.stored["z"].sizes.tolist() == [5, UNREADABLE]
    assert table.values["original"].to_pylist() == ["IMG_7.JPG", "x.jpg"]  # names of no file: text
    assert next(fetch(table)) == {"image": b"a.jpg", "mask": b"mask/a.png", "z": b"c.jpg"}


def test_columns_are_chosen(root: Path) -> None:
    text = "file,path,target,name,note,id\na.jpg,x,cat,first one,hi,9\n"
    table = scan(root / "l.csv", text, image_column="file", label_column="target", key_column="name", columns=["id"])
    assert (table.classes, list(table.fields)) == (("cat",), ["image", "label", "id_"])
    assert table.keys is not None
    assert KEY.fullmatch(table.keys[0])
    assert table.keys[0].startswith("first_one-")
    assert table.name(0) == "a.jpg"


def test_keys_that_are_keys_stay(root: Path) -> None:
    table = scan(root / "l.csv", "path,key\na.jpg,k/1\na.jpg,2\n")
    assert [table.key(row) for row in range(2)] == ["k/1", "2"]


def test_paths_may_lead_anywhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    fsspec.filesystem("memory").pipe("/lists/far.jpg", b"far away")
    lists = tmp_path_factory.mktemp("lists")
    paths = [f"{root}/a.jpg", "memory://lists/far.jpg", "memory://lists/none.jpg", f"file://{root}/c.jpg", "../x.jpg"]
    table = scan(lists / "l.csv", "path\n" + "".join(f"{path}\n" for path in paths))
    assert list(table.names) == paths
    assert table.stored["image"].sizes.tolist() == [5, 8, UNREADABLE, 5, UNREADABLE]
    assert all(KEY.fullmatch(table.key(row)) for row in range(len(table)))
    assert len({table.key(row) for row in range(len(table))}) == len(paths)
    assert [sample["image"] for sample in fetch(table)][:2] == [b"a.jpg", b"far away"]
    table = scan(lists / "l.csv", "path\na.jpg\n", base=str(root))
    assert table.stored["image"].sizes.tolist() == [5]


def test_lists_and_images_behind_a_url() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/l.csv", b"path,label\n" + b"".join(b"img/%d.jpg,x\n" % number for number in range(20)))
    for number in range(19):
        memory.pipe(f"/far/img/{number}.jpg", b"x" * number)
    (table,) = open_source("memory://far/l.csv")
    assert table.root == "memory://far"
    assert table.stored["image"].sizes.tolist() == [*range(19), UNREADABLE]
    assert [sample["image"] for sample in fetch(table)][5] == b"xxxxx"


def test_a_column_makes_splits(root: Path) -> None:
    (root / "l.csv").write_text("path,label,split\na.jpg,x,val\nc.jpg,y,train\nsub/b.png,z,train\n")
    train, val = open_source(root / "l.csv")
    assert [(part.split, list(part.names)) for part in (train, val)] == [
        ("train", ["c.jpg", "sub/b.png"]),
        ("val", ["a.jpg"]),
    ]
    assert train.classes == val.classes == ("x", "y", "z")
    assert "split" not in train.fields


def test_splits_by_hash_of_any_source(root: Path) -> None:
    rows = "".join(f"{number}.jpg\n" for number in range(100))
    (root / "l.csv").write_text("path\n" + rows)
    parts = open_source(root / "l.csv", SourceOptions(split_by_hash={"val": 0.2}))
    assert [part.split for part in parts] == ["train", "val"]


SENTENCES = {
    (
        "l.csv",
        "path,label\na.jpg,cat\nb.jpg\n",
    ): "ROOT/l.csv cannot be read in row 3: Expected 2 columns, got 1: b.jpg; "
    "the first row names the columns, and every other has as many",
    (
        "l.csv",
        "",
    ): "ROOT/l.csv cannot be read: Empty CSV file; the first row names the columns, and every other has as many",
    ("l.csv", "path,label\n"): "ROOT/l.csv has no rows; expected one sample a row",
    (
        "l.csv",
        "a,b\n1,2\n",
    ): "ROOT/l.csv has no column with images: it has a, b, expected one of path, image_path, image, "
    "img, file_name, filename, file, url; name it with --image-column",
    ("l.csv", "path,path\n1,2\n"): "ROOT/l.csv has two columns 'path'; rename one of them",
    (
        "l.csv",
        "path\na.jpg\na.jpg\n",
    ): "ROOT/l.csv names 'a.jpg' more than once; name a column with keys of samples with "
    "--key-column, or take the others out",
    ("l.csv", "path,n\na.jpg,1\n,2\n"): "sample 2 of ROOT/l.csv has no 'path'; give it one, or take it out",
    ("l.csv", "path,label\na.jpg,0.5\n"): "the column 'label' of ROOT/l.csv holds fractions, expected class names or "
    "integers; name another column with --label-column",
    (
        "l.csv",
        "path,label\na.jpg,-2\n",
    ): "column 'label' of ROOT/l.csv has the label -2, expected 0 to 999999, or -1 where "
    "a sample has none; name another column with --label-column",
    (
        "l.csv",
        "path,label\na.jpg,20251231\n",
    ): "column 'label' of ROOT/l.csv has the label 20251231, expected 0 to 999999, "
    "or -1 where a sample has none; name another column with --label-column",
    (
        "l.csv",
        "path,split\na.jpg,dev\n",
    ): "ROOT/l.csv puts samples into the split 'dev', expected train, val, validation, "
    "valid, test; rename it, or name another column with --split-column",
    ("l.csv", "path,a b,a_b\na.jpg,1,2\n"): "the columns 'a b' and 'a_b' of ROOT/l.csv would both be the field 'a_b'; "
    "rename one of them, or choose the columns to keep with --columns",
    ("l.jsonl", ""): "ROOT/l.jsonl has no rows; expected one sample a row",
    (
        "l.jsonl",
        '{"path": "a.jpg", "path": "b.jpg"}\n',
    ): "ROOT/l.jsonl has an object that gives 'path' twice, from line 1 on; give it once",
    ("l.jsonl", '{"path": "a.jpg"}\n\n{"path" "b.jpg"}\n'): "ROOT/l.jsonl cannot be read in line 3: Expecting ':' "
    'delimiter: line 1 column 9 (char 8); expected one JSON object a line, such as {"path": "a.jpg", "label": "cat"}',
    (
        "l.jsonl",
        '{"path": "a.jpg"}\n["b.jpg"]\n',
    ): "ROOT/l.jsonl cannot be read in line 2: it is no object; expected one "
    'JSON object a line, such as {"path": "a.jpg", "label": "cat"}',
    (
        "l.jsonl",
        '{"path": "a.jpg", "box": [1, 2]}\n',
    ): "the column 'box' of ROOT/l.jsonl holds list<item: int64>, which no "
    "field can be; expected numbers, truth values or text: choose the further columns to keep with --columns",
    (
        "l.parquet",
        "x",
    ): "ROOT/l.parquet is no whole Parquet file (Parquet file size is 1 bytes, smaller than the minimum "
    "file footer (8 bytes)); copy it again",
}


@pytest.mark.parametrize(("name", "text"), list(SENTENCES))
def test_sentences(root: Path, name: str, text: str) -> None:
    with pytest.raises(SourceError) as caught:
        scan(root / name, text)
    assert str(caught.value).replace(str(root), "ROOT") == SENTENCES[name, text]


def test_sentences_about_options(root: Path) -> None:
    with pytest.raises(SourceError) as caught:
        scan(root / "l.csv", "path\na.jpg\n", label_column="species")
    assert (
        str(caught.value) == f"{root}/l.csv has no column 'species': it has path; name one of them with --label-column"
    )
    (root / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(SourceError) as caught:
        scan(root / "l.csv", "path,label\na.jpg,cat\n", classes_file=str(root / "classes.txt"))
    assert str(caught.value) == (
        f"column 'label' of {root}/l.csv has samples of the class 'cat', which the file of classes does not name (it "
        "has 2 classes, such as 'ant'); add it at the file's end, or take its samples away"
    )
    with pytest.raises(SourceError) as caught:
        scan(root / "l.csv", "path,label\na.jpg,2\n", classes_file=str(root / "classes.txt"))
    assert str(caught.value) == (
        f"column 'label' of {root}/l.csv has the label 2, but there are 2 classes, so labels go to 1; give a file of "
        "classes that has them all"
    )
    with pytest.raises(SourceError) as caught:
        scan(root / "l.csv", "path\na.jpg\n", classes_file=str(root / "classes.txt"))
    assert str(caught.value) == (
        f"{root}/l.csv has no labels, so the file of classes {root}/classes.txt says nothing of it; leave it out, or "
        "name the column with labels"
    )


def test_a_protocol_that_nobody_knows(root: Path) -> None:
    with pytest.raises(StorageError) as caught:
        scan(root / "l.csv", "path\nodd://x/1.jpg\n")
    assert str(caught.value) == (
        "cannot read odd://x: Protocol not known: odd; check the path, its permissions and the storage behind it"
    )


def test_values_of_different_types_are_refused(root: Path) -> None:
    with pytest.raises(SourceError, match="l.jsonl has values of different types under one name"):
        scan(root / "l.jsonl", '{"path": "a.jpg", "n": 1}\n{"path": "c.jpg", "n": "x"}\n')


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join).filter(lambda path: "://" not in path),
        min_size=1,
        max_size=10,
        unique=True,
    )
)
def test_any_path_has_a_key(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    pq.write_table(pa.table({"path": paths}), folder / "l.parquet")
    (table,) = open_source(folder / "l.parquet")
    assert list(table.names) == paths
    assert all(KEY.fullmatch(table.key(row)) for row in range(len(table)))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_json_lines_without_any_have_no_rows(root: Path, text: str) -> None:
    with pytest.raises(SourceError) as caught:
        scan(root / "list.jsonl", text)
    assert str(caught.value) == f"{root}/list.jsonl has no rows; expected one sample a row"
