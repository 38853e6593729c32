"""One table a run for Lightning's CSVLogger, also if the run is resumed."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_app.files import atomic_write


class CsvTable(ExperimentWriter):
    """Lightning's writer of metrics.csv, except that it adds to an existing table.

    Rows after step `last_step` are left out: the resumed run logs them again. So is a last line
    that a killed process did not finish.
    """

    def __init__(self, log_dir: str, last_step: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = [row for row in table if int(row["step"]) <= last_step]
        self.metrics_keys = list(table.fieldnames or ())
        self.replace_table(self.metrics_keys, rows)

    def replace_table(self, fieldnames: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        with atomic_write(Path(self.metrics_file_path)) as file:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, fieldnames)
            writer.writeheader()
            writer.writerows(rows)
            file.write(text.getvalue().encode())

    def _check_log_dir_exists(self) -> None:
        """A private hook: it would delete the table."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """A private hook: a kill while it writes would lose the table."""
        with Path(self.metrics_file_path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.replace_table(fieldnames, rows)
