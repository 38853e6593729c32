"""Shared by the commands that use a trained run: find its checkpoint, load it, rebuild its data."""

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.cli.configs import read_configs, run_name
from lightning_app.cli.parsing import Parser
from lightning_app.data.corpora import find_corpus
from lightning_app.data.splits import TextSource
from lightning_app.errors import UserError
from lightning_app.runs.checkpoint import TrainedModel, load
from lightning_app.runs.folders import find_checkpoint

if TYPE_CHECKING:
    from lightning_app.data.datamodule import CharDataModule


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and where it was found."""

    name: str | None  # of the run; None where only a file is known
    path: Path
    trained: TrainedModel


def add_run_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--run",
        type=str | None,
        help="The name of the run (default: that of the config, else the newest run).",
    )
    add(
        "--ckpt_path",
        type=str | None,
        help="A checkpoint file, or best or last of the run (default: best).",
    )
    add("--debug", type=bool, default=False, help="Show tracebacks.")


def load_run(config: Any, configs: list[Path]) -> LoadedRun:
    """Load the checkpoint that --run, --ckpt_path and the configs select.

    Raises UserError if it does not exist or is damaged.
    """
    name = run_name(config.run or read_configs(configs).get("run"), configs)
    path = find_checkpoint(config.ckpt_path, name)
    return LoadedRun(name, path, load(path))


def rebuild_data(
    trained: TrainedModel, given: dict[str, Any], eval_stride: int | None = None
) -> "CharDataModule":
    """The data that a network was trained on; values in `given` replace those of the checkpoint.

    Raises UserError if the text has changed since, or has characters unknown to the network.
    """
    from lightning_app.data.datamodule import CharDataModule

    source = trained.source(**{k: v for k, v in given.items() if k in TextSource.names()})
    if "corpus" not in given and os.path.isabs(source.corpus):
        try:
            find_corpus(source.corpus)
        except UserError as error:
            raise UserError(
                f"{error}; if the run's text is elsewhere now, give its path: --data.corpus PATH"
            ) from None
    sizes = {
        "block_size": trained.gpt.config.block_size,
        "batch_size": trained.data.get("batch_size", 32),
    }
    sizes |= {k: given[k] for k in sizes if k in given}
    if sizes["block_size"] > trained.gpt.config.block_size:
        raise UserError(
            f"--data.block_size {sizes['block_size']} is more than the network's "
            f"{trained.gpt.config.block_size}"
        )
    data = CharDataModule(
        **asdict(source),
        **sizes,
        alphabet=trained.tokenizer.alphabet,
        eval_stride=eval_stride,
    )
    if "corpus" not in given and data.text.fingerprint != trained.data["fingerprint"]:
        raise UserError(
            f"the corpus {source.corpus} has changed since the run was trained; to score it as it "
            f"is now: --data.corpus {shlex.quote(source.corpus)}"
        )
    return data
