"""inspect: what a text holds, before an hour of training goes into it."""

import json
from dataclasses import asdict

from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.parsing import Parser
from lightning_app.data.splits import TextSource
from lightning_app.evaluation.inspection import inspect_text, inspection_lines


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    parser = Parser(prog="main.py inspect", description=__doc__)
    parser.add_class_arguments(TextSource, "data")
    add = parser.add_argument
    add(
        "--baselines",
        type=bool,
        default=True,
        help="Measure what n-grams and compressors make of the held-out text.",
    )
    add("--json", action="store_true", help="Print everything found as JSON, for programs.")
    add("--debug", type=bool, default=False, help="Show tracebacks.")
    known = config_group(configs, "data")
    parser.set_defaults({f"data.{k}": known[k] for k in TextSource.names() if k in known})
    config = parser.parse_args(rest)
    source = parser.instantiate(config).data
    seen = inspect_text(source.read(), config.baselines)
    print(json.dumps(asdict(seen)) if config.json else "\n".join(inspection_lines(seen)))
    return 0
