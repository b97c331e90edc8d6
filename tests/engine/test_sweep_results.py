from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.sweep_results import COLUMNS, METRICS, TableError, add, read, summarise


def row(key: str, **values: Any) -> dict[str, Any]:
    told: dict[str, Any] = {name: {str: 'a, "b"', int: 3, float: 0.1}[kind] for name, kind in COLUMNS.items()}
    return {**told, "key": key, "backbone": None, "interval_low": None, **values}


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    assert read(path) == []
    rows = [row("a", frechet_distance=1 / 3), row("b", frechet_distance=None, steps=50)]
    for one in rows:
        add(path, one)
    assert read(path) == rows
    add(path, row("a", frechet_distance=2.0))
    assert [(one["key"], one["frechet_distance"]) for one in read(path)] == [("b", None), ("a", 2.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.csv"]


def test_columns_that_a_row_lacks_are_empty(tmp_path: Path) -> None:
    add(tmp_path / "sweep.csv", {"key": "a", "steps": 5})
    found = read(tmp_path / "sweep.csv")[0]
    assert found["steps"] == 5 and found["precision"] is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("seed", "sead", 1), "has the columns"),
        (lambda text: text.replace(",3,", ",three,", 1), "line 2: steps is 'three'"),
        (lambda text: text.replace("0.1", "nan", 1), "line 2: guidance_scale is 'nan'"),
        (lambda text: text[:-10], "line 2, has 3. cells"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "sweep.csv"
    add(path, row("a"))
    path.write_text(damage(path.read_text()))
    with pytest.raises(TableError, match=message):
        read(path)


def test_seeds_are_summed_up() -> None:
    rows = [row(str(seed), seed=seed, precision=0.2 + 0.1 * seed) for seed in range(3)]
    rows += [row("other", steps=9), row("elsewhere", network="inception")]
    first, other, elsewhere = summarise(rows)
    assert first["seeds"] == 3 and first["precision"] == pytest.approx(0.3)
    assert first["precision_deviation"] == pytest.approx(0.1)
    assert other["steps"] == 9 and other["precision_deviation"] is None
    assert elsewhere["network"] == "inception"
    assert all(f"{name}_deviation" in first for name in METRICS)


def test_a_metric_that_one_seed_lacks_has_no_mean() -> None:
    assert summarise([row("a", recall=None), row("b", seed=1)])[0]["recall"] is None


def test_of_two_rows_of_a_seed_the_last_counts() -> None:
    rows = [row("plain", replica_share=None, recall=0.3), row("again", replica_share=0.5, recall=0.3)]
    (found,) = summarise(rows)
    assert found["seeds"] == 1 and found["replica_share"] == 0.5 and found["recall_deviation"] is None
