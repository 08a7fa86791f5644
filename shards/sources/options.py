"""What may be said about a source, and the file that lists classes."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from feeder.arguments import one_of
from feeder.errors import ConfigError
from feeder.shards.errors import SourceError
from feeder.shards.fields import FIELD_NAME
from feeder.shards.storage import open_folder
from feeder.shards.table import REST, SPLITS

KINDS = ("folder", "list", "webdataset", "parquet", "dataset")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What may be said about a source; all of it has a default that suits most.

    Attributes:
        kind: one of `KINDS`; None: found out, see `feeder.shards.sources`.
        classes_file: a path or URL of a text file with one class name a line, in order of their labels. Classes that it
            does not name are refused; those without samples keep their numbers.
        image_column: of lists and Parquet, the column with the image; None: the first of
            `feeder.shards.sources.columns.IMAGE_COLUMNS` that there is.
        image_columns: further image fields, such as masks: the column of each field's name.
        label_column, key_column, split_column: the columns with labels, keys and names of splits; None: ``label`` or
            ``class``, ``key``, ``split``, where there are any.
        columns: which further columns to keep as fields; None: all.
        base: the folder or URL that relative paths in a list start from; None: the list's own folder.
        split_by_hash: fractions of the samples that become splits of those names; see `feeder.shards.splitting`.
        damaged: of tar archives that are cut or damaged: ``"fail"`` refuses them, ``"keep"`` takes the samples before
            the damage.
    """

    kind: str | None = None
    classes_file: str | None = None
    image_column: str | None = None
    image_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_column: str | None = None
    key_column: str | None = None
    split_column: str | None = None
    columns: Sequence[str] | None = None
    base: str | None = None
    split_by_hash: Mapping[str, float] = dataclasses.field(default_factory=dict)
    damaged: str = "fail"

    def __post_init__(self) -> None:
        if self.kind is not None:
            one_of("kind", self.kind, KINDS)
        one_of("damaged", self.damaged, ("fail", "keep"))
        for name in self.image_columns:
            if not FIELD_NAME.fullmatch(name):
                raise ConfigError(f"image_columns names a field {name!r}; expected letters, digits, '_', '-' and '.'")
        for name, fraction in self.split_by_hash.items():
            one_of("a name in split_by_hash", name, SPLITS)
            if name == REST:
                raise ConfigError(f"split_by_hash names {REST!r}, which is what the others leave; name those alone")
            if not 0 < fraction < 1:
                raise ConfigError(f"split_by_hash gives {name!r} {fraction}; it must be a fraction between 0 and 1")
        if sum(self.split_by_hash.values()) >= 1:
            raise ConfigError("the fractions in split_by_hash come to 1 or more; they must leave something")

    def of_columns(self) -> list[str]:
        """Return the options given that only sources with columns, lists and Parquet files, have a use for."""
        given = {
            "--image-column": self.image_column is not None,
            "--image-field": bool(self.image_columns),
            "--label-column": self.label_column is not None,
            "--key-column": self.key_column is not None,
            "--split-column": self.split_column is not None,
            "--columns": self.columns is not None,
            "--base": self.base is not None,
        }
        return [option for option, said in given.items() if said]

    def classes(self) -> tuple[str, ...] | None:
        """Return the classes that `classes_file` lists; None if there is none."""
        return None if self.classes_file is None else read_classes(self.classes_file)


def read_classes(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the class names of a text file in UTF-8, one a line, in order of their labels; blank lines do not count.

    Raises:
        SourceError: no such file, no text, no class in it, or a class twice.
        StorageError: it cannot be read.
    """
    path = os.fspath(file)
    folder, _, name = path.rpartition("/")
    try:
        text = open_folder(folder or ("/" if path.startswith("/") else ".")).read(name).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise SourceError(f"no such file of classes: {path}; expected one class name a line") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"the file of classes {path} is not text in UTF-8; expected one class name a line") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    numbers: dict[str, int] = {}
    for number, line in lines:
        if line in numbers:
            raise SourceError(
                f"the file of classes {path} names {line!r} in line {numbers[line]} and in line {number}; a class "
                "has one label: remove one of them"
            )
        if line:
            numbers[line] = number
    if not numbers:
        raise SourceError(f"the file of classes {path} is empty; expected one class name a line")
    return tuple(numbers)
