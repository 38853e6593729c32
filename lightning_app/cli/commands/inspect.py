"""inspect: describe a text before training: alphabet, splits, repeated passages, baselines."""

import json
from dataclasses import asdict

from lightning_app import hardware
from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.parsing import Parser, instantiate
from lightning_app.data.splits import SplitText, TextSource
from lightning_app.errors import program
from lightning_app.evaluation.inspection import inspect_text, inspection_lines
from lightning_app.training.recipe import (
    Recipe,
    characters_per_step,
    choose,
    compiles,
    expected_task,
)

MINUTES = (3, 10, 30)
# What fit takes apart from training, about, in seconds: starting, measuring, and ending; compiling.
START_AND_END, COMPILING = 35, 40
MIN_CHARACTERS = 100  # of a split


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
    split_text = source.read()
    inspection = inspect_text(split_text, config.baselines)
    recipes = expected_recipes(split_text)
    if config.json:
        plans = {str(minutes): recipe.values for minutes, recipe in recipes.items()}
        print(json.dumps(asdict(inspection) | {"plans": plans}))
    else:
        print("\n".join([*inspection_lines(inspection), *recipe_lines(recipes, split_text)]))
    return 0


def expected_recipes(split_text: SplitText) -> dict[int, Recipe]:
    """What `fit --minutes` would choose here, by the minutes. The speed is estimated; fit measures
    it. Empty if there is no text to train on, or none to validate on."""
    if any(len(split_text.ids(name)) < MIN_CHARACTERS for name in ("train", "val")):
        return {}
    accelerator = hardware.choose_accelerator("auto")
    speed = hardware.matmul_speed(accelerator, hardware.choose_precision(accelerator))
    recipes = {}
    for minutes in MINUTES:
        compiled = compiles(minutes, accelerator)
        seconds = 60 * minutes - START_AND_END - (COMPILING if compiled else 0)
        task = expected_task(split_text, seconds, speed, accelerator, compiled=compiled)
        recipes[minutes] = choose(task)
    return recipes


def recipe_lines(recipes: dict[int, Recipe], split_text: SplitText) -> list[str]:
    """A line for each number of minutes."""
    lines = []
    for minutes, recipe in recipes.items():
        network, values = recipe.network, recipe.values
        steps = values["trainer.max_steps"]
        passes = steps * characters_per_step(values) / len(split_text.ids("train"))
        lines.append(
            f"  fit --minutes {minutes:<2}  {network.n_layer} layers, width {network.n_embd}, "
            f"{steps:,} steps, {passes:.1f} passes over the training text"
        )
    return ["", "about what fit would choose on this machine:", *lines] if lines else []
