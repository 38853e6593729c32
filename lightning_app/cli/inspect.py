"""inspect: what a text holds, before an hour of training goes into it."""

import json
from dataclasses import asdict, dataclass

from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.parsing import Parser
from lightning_app.data.encoding import Unit
from lightning_app.data.splits import HoldOut, split_text
from lightning_app.evaluation.inspection import inspect_text, inspection_lines


@dataclass
class DataOptions:
    """Which text.

    Args:
        corpus: A UTF-8 file, a folder, a glob, or a name (shakespeare, tiny_shakespeare,
            text8, enwik8).
        splits: Shares for training, validation and test.
        hold_out: Whether these are cut between characters, or where the nearest file begins.
        unit: What the text is cut into; null is byte for enwik8, else char.
        data_dir: Where corpora and their encoded form are kept.
    """

    corpus: str = "shakespeare"
    splits: list[float] = (0.9, 0.05, 0.05)
    hold_out: HoldOut = "characters"
    unit: Unit | None = None
    data_dir: str = "data"


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    parser = Parser(prog="main.py inspect", description=__doc__)
    parser.add_class_arguments(DataOptions, "data")
    add = parser.add_argument
    add("--yardsticks", type=bool, default=True, help="Measure n-grams and compressors on it.")
    add("--json", action="store_true", help="Everything found, for programs.")
    add("--debug", type=bool, default=False, help="Show tracebacks.")
    known = config_group(configs, "data")
    names = ("corpus", "splits", "hold_out", "unit", "data_dir")
    parser.set_defaults({f"data.{k}": known[k] for k in names if k in known})
    config = parser.parse_args(rest)
    data = parser.instantiate_classes(config).data
    divided = split_text(data.corpus, data.splits, data.hold_out, data.unit, data.data_dir)
    seen = inspect_text(divided, config.yardsticks)
    print(json.dumps(asdict(seen)) if config.json else "\n".join(inspection_lines(seen)))
    return 0
