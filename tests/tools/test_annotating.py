"""``feeder annotate``."""

import json
from pathlib import Path

import pytest

from feeder.shards.building.writing import build
from feeder.shards.dataset.manifest import load_manifest
from feeder.tools.main import main


@pytest.fixture
def dataset(image_folder: Path, tmp_path: Path) -> str:
    build(image_folder, tmp_path / "dataset")
    (tmp_path / "scores.csv").write_text("key,score,good\nant/ant-00,0.5,true\nbee/bee-01,1,false\nnobody,1,true\n")
    return str(tmp_path / "dataset")


def test_it_says_what_fitted(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", dataset, str(tmp_path / "scores.csv")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"dataset              {dataset}",
        "generation           1",
        "columns              score (float64), good (bool)",
        "samples with values  2",
        "samples without      34",
        "keys of no sample    1",
        f"digest               {load_manifest(dataset).digest}",
        "",
        f"next: feeder inspect {dataset}",
    ]
    assert main(["inspect", dataset]) == 0
    assert "image (image), label (int64), score (float64), good (bool)" in capsys.readouterr().out


def test_json_and_some_columns(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(tmp_path / "scores.csv")
    assert main(["annotate", dataset, table, "--on", "key", "--columns", "good", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "generation": 1,
        "digest": load_manifest(dataset).digest,
        "columns": {"good": "bool"},
        "matched": 2,
        "missing": 34,
        "unknown": 1,
    }
    assert main(["annotate", dataset, table]) == 2
    assert "has a column 'good' already; give --replace to overwrite it" in capsys.readouterr().err
    assert main(["annotate", dataset, table, "--replace", "--strict"]) == 2
    assert "1 of the 3 keys of" in capsys.readouterr().err
    assert main(["annotate", dataset, table, "--replace"]) == 0
