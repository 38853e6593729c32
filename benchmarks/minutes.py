"""Compares the recipes of `fit --minutes` with random ones around them, on the panel's texts.

    python benchmarks/minutes.py --texts proverbs alice --minutes 3 --others 12 --to FOLDER

For each text: the plan's loss and time; the best of `--others` random recipes, which change one to
three of the plan's values and train for the same time, and of the configs `--configs`, which take
their own time; the regret, which is the plan's loss minus the lowest of all; and the best
compressor. Losses are in nats per character, of the same characters. A run that is finished is not
trained again, so that an interrupted comparison goes on. Texts are fetched to FOLDER, where the
runs are too.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from panel import TEXTS, fetch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.data.datamodule import CharDataModule
from lightning_app.evaluation.baselines import Baseline, best_compressor
from lightning_app.runs.checkpoint import SECTION, read_checkpoint


def random_changes(plan: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One to three values unlike the plan's."""
    model, optim = plan["model"], plan["optim"]
    width = draw.choice([32 * k for k in range(2, 17) if 32 * k != model["n_embd"]][:8])
    tables = [4096, 65536, 65536, 65536, 65536]
    changes = {
        "model.n_embd": {"model.n_embd": width},
        "model.n_layer": {"model.n_layer": draw.choice([2, 3, 4, 6, 8])},
        "model.dropout": {"model.dropout": draw.choice([0.0, 0.05, 0.1, 0.2, 0.3])},
        "decay": {
            "optim.final_weight_decay": (optim["final_weight_decay"] or 0.2)
            * draw.choice([0, 0.25, 0.5, 2, 4])
        },
        "rate": {
            "optim.muon_learning_rate": optim["muon_learning_rate"] * draw.choice([0.5, 0.7, 1.4])
        },
        "names": {"data.replace_names": 0.7 - plan["data"]["replace_names"]},
        "tables": {"model.ngram_rows": None if model["ngram_rows"] else tables},
    }
    names = draw.sample(sorted(changes), draw.randint(1, 3))
    return {key: value for name in names for key, value in changes[name].items()}


def train(folder: Path, run: str, text: Path, recipe: list[str], changes: dict[str, Any]) -> float:
    """Train the run unless it is finished; its seconds."""
    marker = folder / "logs" / run / "seconds"
    if marker.exists():
        return float(marker.read_text())
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--data.corpus", str(text)]
    command += [*recipe, "--run", run]
    command += [f"--{name}={json.dumps(value)}" for name, value in changes.items()]
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    marker.write_text(f"{seconds:.1f}")
    return seconds


def same_characters(plan: dict[str, Any]) -> dict[str, Any]:
    """The options that make another run validate what the plan validates."""
    batches = plan["trainer"].get("limit_val_batches")
    options = {"data.splits": plan["data"]["splits"], "trainer.limit_val_batches": batches}
    return {name: value for name, value in options.items() if value is not None}


def loss(folder: Path, run: str) -> float:
    checkpoint = read_checkpoint(folder / "logs" / run / "checkpoints" / "best.ckpt")
    return float(checkpoint[SECTION]["best"]["loss"])


def compressor(folder: Path, text: Path, plan: dict[str, Any]) -> Baseline | None:
    """The best compressor on the characters that the plan validates."""
    options = {"splits": plan["data"]["splits"], "data_dir": str(folder / "data")}
    data = CharDataModule(str(text), **options)
    train, (first, last) = data.bounds["train"], data.bounds["val"]
    if batches := plan["trainer"].get("limit_val_batches"):
        last = first + batches * plan["data"]["batch_size"] * plan["data"]["block_size"]
    return best_compressor(data.text, train, (first, last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", nargs="+", default=[text.name for text in TEXTS])
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0])
    parser.add_argument("--others", type=int, default=12)
    parser.add_argument("--configs", nargs="+", default=[])
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    texts = fetch(args.to)
    for name in args.texts:
        text = texts[name].resolve()
        for minutes in args.minutes:
            run, dial = f"{name}-{minutes:g}", ["--minutes", f"{minutes:g}"]
            seconds = train(args.to, run, text, dial, {})
            planned = loss(args.to, run)
            plan = yaml.safe_load((args.to / "logs" / run / "config.yaml").read_text())
            beside = compressor(args.to, text, plan)
            draw = random.Random(run)
            others: list[tuple[str, list[str], dict[str, Any]]] = [
                (f"{run}-{i}", dial, random_changes(plan, draw)) for i in range(args.others)
            ]
            others += [(f"{run}-{config}", ["--config", config], {}) for config in args.configs]
            best, how = planned, ""
            for other, recipe, changes in others:
                taken = train(args.to, other, text, recipe, changes | same_characters(plan))
                found = loss(args.to, other)
                what = f"{' '.join(recipe)} {changes}"
                print(f"  {found:.4f} in {taken:.0f} s  {what}", file=sys.stderr, flush=True)
                if found < best:
                    best, how = found, what
            print(
                f"{name:<10} {minutes:g} minutes: {planned:.4f} in {seconds:.0f} s; best "
                f"{best:.4f}, regret {planned - best:.4f} {how}; "
                + (f"{beside.name} {beside.nats:.4f}" if beside else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
