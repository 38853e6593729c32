"""export: write a trained network as a folder that transformers opens."""

from pathlib import Path

from lightning_app.cli.configs import read_configs, run_name, split_configs
from lightning_app.cli.parsing import Parser
from lightning_app.export.transformers import export_transformers
from lightning_app.runs.checkpoint import load
from lightning_app.runs.folders import find_checkpoint


def main(argv: list[str]) -> int:
    configs, rest = split_configs(argv)
    parser = Parser(prog="main.py export", description=__doc__)
    add = parser.add_argument
    add("--run", type=str | None, help="The run (default: the config's, else the newest).")
    add("--ckpt_path", type=str | None, help="A checkpoint file, or best or last of the run.")
    add("--to", type=str, required=True, help="The folder to write; new or empty.")
    add("--debug", type=bool, default=False, help="Show tracebacks.")
    config = parser.parse_args(rest)
    name = run_name(config.run or read_configs(configs).get("run"), configs)
    trained = load(find_checkpoint(config.ckpt_path, name))
    export_transformers(
        trained.gpt, trained.tokenizer.alphabet, Path(config.to), trained.tokenizer.unit
    )
    print(f"wrote {config.to}; open it with transformers:")
    print(f'  AutoModelForCausalLM.from_pretrained("{config.to}")')
    print(f'  AutoTokenizer.from_pretrained("{config.to}")')
    return 0
