"""export: write a trained network in the format of another program."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lightning_app.cli.configs import split_configs
from lightning_app.cli.loading import add_run_arguments, load_run
from lightning_app.cli.parsing import Parser
from lightning_app.errors import UserError, program
from lightning_app.export.gguf import WEIGHT_FORMATS, GGUFWeights, export_gguf
from lightning_app.export.page.page import baseline_bits, export_page
from lightning_app.export.transformers import MODELING_FILE, export_transformers
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel


def write_transformers(trained: TrainedModel, to: Path, weights: str | None) -> str:
    tokenizer = trained.tokenizer
    counts = trained.info["counts"]
    export_transformers(trained.gpt, tokenizer.alphabet, to, tokenizer.unit, counts)
    tables = trained.gpt.ngrams is not None
    trust = ", trust_remote_code=True" if tables else ""
    lines = [
        f"wrote {to}; open it with transformers:",
        f'  AutoModelForCausalLM.from_pretrained("{to}"{trust})',
        f'  AutoTokenizer.from_pretrained("{to}"{trust})',
    ]
    if tables:
        name = MODELING_FILE.name
        lines.append(
            f"trust_remote_code=True lets transformers run {to / name}, which "
            f"computes the n-gram tables; it is a copy of lightning_app/export/{name}"
        )
    return "\n".join(lines)


def write_gguf(trained: TrainedModel, to: Path, weights: str | None) -> str:
    tokenizer = trained.tokenizer
    options = GenerateOptions().updated(**trained.generation)
    chosen = cast(GGUFWeights, weights)
    export_gguf(trained.gpt, tokenizer.alphabet, to, tokenizer.unit, chosen, options)
    lines = [
        f"wrote {to}; run it with llama.cpp:",
        f"  llama-cli -m {shlex.quote(str(to))} -n 200",
    ]
    if tokenizer.unit == "char" and not tokenizer.alphabet.isascii():
        lines.append(
            "llama.cpp may never end if a prompt has a character that the network does not know: "
            "README.md says how to check prompts"
        )
    return "\n".join(lines)


def write_page(trained: TrainedModel, to: Path, weights: str | None) -> str:
    export_page(trained, to)
    line = f"wrote {to}; open it in a browser"
    if trained.data.get("bounds") and not baseline_bits(trained.data):  # older runs have no bounds
        line += (
            f"\nafter `{program()} validate`, a page also compares the network with n-grams and "
            "compressors"
        )
    return line


@dataclass(frozen=True)
class Format:
    """A format that `export` writes.

    write: Writes the network to a path that must not exist yet, with one of `weights`; returns what
        was written and how to use it.
    weights: The values of --weights, the default first; none if there is no choice.
    """

    write: Callable[[TrainedModel, Path, str | None], str]
    weights: tuple[str, ...] = ()

    def choose_weights(self, name: str, given: str | None) -> str | None:
        """The value of --weights. Raises UserError for one that the format `name` does not have."""
        if given is None:
            return next(iter(self.weights), None)
        if not self.weights:
            raise UserError(f"--format {name} has no choice of weights; leave out --weights")
        if given not in self.weights:
            raise UserError(
                f"--weights is {given}; with --format {name} give {' or '.join(self.weights)}"
            )
        return given


FORMATS = {
    "transformers": Format(write_transformers),
    "gguf": Format(write_gguf, WEIGHT_FORMATS),
    "page": Format(write_page),
}


def make_parser() -> Parser:
    parser = Parser(prog=f"{program()} export", description=__doc__)
    add_run_arguments(parser)
    names: Any = Literal[tuple(FORMATS)]
    parser.add_argument(
        "--format",
        type=names,
        default="transformers",
        help="A folder for transformers, a GGUF file for llama.cpp, or a page for browsers.",
    )
    parser.add_argument(
        "--to", type=str, required=True, help="The folder or file to write; a folder may be empty."
    )
    choices = [f"{name}: {', '.join(f.weights)}" for name, f in FORMATS.items() if f.weights]
    parser.add_argument(
        "--weights",
        type=str | None,
        help=f"Format of the weights, the default first ({'; '.join(choices) or 'no choice'}).",
    )
    return parser


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    config = make_parser().parse_args(rest)
    format = FORMATS[config.format]
    weights = format.choose_weights(config.format, config.weights)
    trained = load_run(config, configs).trained
    print(format.write(trained, Path(config.to), weights))
    return 0
