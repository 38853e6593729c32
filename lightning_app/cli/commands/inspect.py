"""inspect: describe a text before training: alphabet, splits, repeated passages, baselines."""

import json
from dataclasses import asdict

from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.parsing import Parser, instantiate
from lightning_app.data.splits import TextSource
from lightning_app.errors import program
from lightning_app.evaluation.inspection import inspect_text, inspection_lines


def make_parser() -> Parser:
    parser = Parser(prog=f"{program()} inspect", description=__doc__)
    parser.add_class_arguments(TextSource, "data")
    add = parser.add_argument
    add(
        "--baselines",
        type=bool,
        default=True,
        help="Measure the loss of n-grams and compressors on the held-out text.",
    )
    add("--json", action="store_true", help="Print all results as JSON, for programs.")
    add("--debug", type=bool, default=False, help="Show tracebacks.")
    return parser


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    parser = make_parser()
    known = config_group(configs, "data")
    parser.set_defaults({f"data.{k}": known[k] for k in TextSource.names() if k in known})
    config = parser.parse_args(rest)
    source = instantiate(parser, config).data
    inspection = inspect_text(source.read(), config.baselines)
    if config.json:
        print(json.dumps(asdict(inspection)))
    else:
        print("\n".join(inspection_lines(inspection)))
    return 0
