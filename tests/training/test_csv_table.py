"""Laws of the table of CSVLogger: nothing in it is lost, and nothing occurs twice."""

import csv
from pathlib import Path

from lightning_app.training.csv_table import CsvTable


def rows(table: CsvTable) -> list[tuple[int, str, str]]:
    with Path(table.metrics_file_path).open(newline="", encoding="utf-8") as file:
        return [(int(r["step"]), r["a"], r.get("b", "")) for r in csv.DictReader(file)]


def logged(folder: Path, last_step: int, steps: range, **also: float) -> CsvTable:
    table = CsvTable(str(folder), last_step)
    for step in steps:
        table.log_metrics({"a": 1.0, **also}, step)
        table.save()
    return table


def test_a_resumed_table_keeps_the_rows_up_to_the_checkpoint(tmp_path):
    logged(tmp_path, 0, range(1, 6))
    table = logged(tmp_path, 3, range(4, 8), b=2.0)  # with another column
    first = [(step, "1.0", "") for step in (1, 2, 3)]
    assert rows(table) == first + [(step, "1.0", "2.0") for step in (4, 5, 6, 7)]


def test_a_line_that_a_killed_process_did_not_finish_is_left_out(tmp_path):
    table = logged(tmp_path, 0, range(1, 3))
    with Path(table.metrics_file_path).open("a") as file:
        file.write("1.0")
    assert [step for step, *_ in rows(logged(tmp_path, 2, range(3, 4)))] == [1, 2, 3]


def test_a_table_is_complete_after_every_save(tmp_path):
    table = logged(tmp_path, 0, range(1, 2))
    table.log_metrics({"b": 1.0}, 2)
    table.save()
    assert rows(table) == [(1, "1.0", ""), (2, "", "1.0")]
