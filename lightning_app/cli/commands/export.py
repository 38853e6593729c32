"""export: write a trained network as a folder that transformers loads."""

from pathlib import Path

from lightning_app.cli.configs import split_configs
from lightning_app.cli.loading import add_run_arguments, load_run
from lightning_app.cli.parsing import Parser
from lightning_app.errors import program
from lightning_app.export.transformers import MODELING_FILE, export_transformers


def make_parser() -> Parser:
    parser = Parser(prog=f"{program()} export", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--to", type=str, required=True, help="The folder to write; new or empty.")
    return parser


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    config = make_parser().parse_args(rest)
    trained = load_run(config, configs).trained
    tokenizer = trained.tokenizer
    counts = trained.info["counts"]
    export_transformers(trained.gpt, tokenizer.alphabet, Path(config.to), tokenizer.unit, counts)
    print(f"wrote {config.to}; open it with transformers:")
    tables = trained.gpt.ngrams is not None
    trust = ", trust_remote_code=True" if tables else ""
    print(f'  AutoModelForCausalLM.from_pretrained("{config.to}"{trust})')
    print(f'  AutoTokenizer.from_pretrained("{config.to}"{trust})')
    if tables:
        name = MODELING_FILE.name
        print(
            f"trust_remote_code=True lets transformers run {Path(config.to) / name}, which "
            f"computes the n-gram tables; it is a copy of lightning_app/export/{name}"
        )
    return 0
