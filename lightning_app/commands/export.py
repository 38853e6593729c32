"""export: write a trained network as a folder that transformers opens."""

from pathlib import Path

from lightning_app import checkpoints, runs
from lightning_app.export import export
from lightning_app.parsing import Parser


def main(argv: list[str]) -> int:
    configs, rest = runs.split_configs(argv)
    parser = Parser(prog="main.py export", description=__doc__)
    add = parser.add_argument
    add("--run", type=str | None, help="The run (default: the config's, else the newest).")
    add("--ckpt_path", type=str | None, help="A checkpoint file, or best or last of the run.")
    add("--to", type=str, required=True, help="The folder to write; new or empty.")
    add("--debug", type=bool, default=False, help="Show tracebacks.")
    config = parser.parse_args(rest)
    name = runs.run_name(config.run or runs.read_configs(configs).get("run"), configs)
    trained = checkpoints.load(runs.find_checkpoint(config.ckpt_path, name))
    export(trained.gpt, trained.tokenizer.alphabet, Path(config.to), trained.tokenizer.unit)
    print(f"wrote {config.to}; open it with transformers:")
    print(f'  AutoModelForCausalLM.from_pretrained("{config.to}")')
    print(f'  AutoTokenizer.from_pretrained("{config.to}")')
    return 0
