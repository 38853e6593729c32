"""What several tests share: a tiny text, configs, the command line, networks, checkpoints."""

import io
import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app import cli
from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT, GPTConfig
from lightning_app.runs.checkpoint import (
    CHECKPOINT_FORMAT,
    LEGACY_DEFAULTS,
    NETWORK_PREFIX,
    SECTION,
    read_checkpoint,
    write_checkpoint,
)
from lightning_app.training.module import CharGPT

MAIN = Path(__file__).resolve().parent.parent / "main.py"

CONFIG = """\
data: {corpus: text.txt, block_size: 16, batch_size: 8}
model: {n_layer: 1, n_head: 2, n_embd: 16, mlp_size: 32}
trainer: {max_steps: 20, val_check_interval: 10, log_every_n_steps: 5}
schedule: {warmup_steps: 2}
generate: {sampling: top_k, top_k: 3, max_new_tokens: 40}
"""


def sentences(n: int) -> str:
    """n lines that a small model can learn something about."""
    who = ("ROMEO", "JULIET", "NURSE", "FRIAR")
    what = ("good night", "the sun is up", "speak again", "what light is that", "o me")
    return "".join(
        f"{who[i * 5 // 3 % 4]}:\n{what[(i * 7 + i // 3) % 5]}, {i}\n\n" for i in range(n)
    )


def write_inputs(folder: Path) -> None:
    """A text and a config for it: text.txt, tiny.yaml."""
    (folder / "text.txt").write_text(sentences(150))
    (folder / "tiny.yaml").write_text(CONFIG)


def written(name: str, text: str = "") -> Path:
    """A file with this text, and the folders it is in."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def python_prints(code: str, cwd: Path | None = None) -> str:
    """What Python code prints in a process of its own; the code can import this project."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def undone() -> Iterator[None]:
    """Undoes what a command sets for its whole process: no warnings, no messages below errors."""
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def main_in(folder: Path, *args: str) -> SimpleNamespace:
    """The command line in this process and this folder, for fixtures of more than one test."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, undone():
        patch.chdir(folder)
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.main(list(args))
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def main_py(*args: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """main.py as a user runs it."""
    return subprocess.run(
        [sys.executable, str(MAIN), *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        **kwargs,
    )


def is_error(done, *words: str) -> bool:
    """One line on standard error, exit code 2, and it names these things."""
    lines = done.err.strip().split("\n")
    errors = [x for x in lines if x.startswith("error: ")]
    assert done.code == 2, done.err
    assert errors == lines[-1:], done.err
    assert "Traceback" not in done.err
    assert "usage:" not in done.err
    for word in words:
        assert word in errors[0], errors[0]
    return True


def checkpoint(folder: Path, run: str, name: str = "last") -> dict:
    return read_checkpoint(folder / "logs" / run / "checkpoints" / f"{name}.ckpt")


def refusal(act: Callable, *args, **kwargs) -> str:
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        act(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


def save_run(name: str, state: dict | None = None, file: str = "best") -> Path:
    """A run under ./logs with this checkpoint, made without training."""
    path = Path(f"logs/{name}/checkpoints/{file}.ckpt")
    write_checkpoint(state or small_checkpoint(), path)
    return path


def same(a: object, b: object) -> bool:
    """Whether two parts of checkpoints are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def scalars(folder: Path, run: str) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder / "logs" / run))
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


ALPHABET = "\n abcé天"
SIZES = {
    "block_size": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "n_kv_head": None,
    "mlp_size": 16,
    "dropout": 0.1,
    "tie_embeddings": False,
    "rope_theta": 500.0,
}


def random_network(seed: int, alphabet: str = ALPHABET, **sizes) -> GPT:
    """A network whose every weight is random: at its start many are 0, and hide mistakes."""
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(vocab_size=len(alphabet), **SIZES | sizes))
    for weight in gpt.parameters():
        torch.nn.init.normal_(weight)
    count_random_text(gpt)
    return gpt


def weights(gpt: GPT) -> dict[str, torch.Tensor]:
    return {NETWORK_PREFIX + name: weight for name, weight in gpt.state_dict().items()}


def small_checkpoint(gpt: GPT | None = None, alphabet: str = ALPHABET, **sizes) -> dict:
    """As `fit` makes one, in small."""
    counts = [3, 0, 5, 1, 1, 2, 4] if alphabet == ALPHABET else None
    return {
        "state_dict": weights(gpt or random_network(1, alphabet, **sizes)),
        "hyper_parameters": {"alphabet": alphabet, **SIZES, **sizes},
        "global_step": 10,
        SECTION: LEGACY_DEFAULTS | {"format": CHECKPOINT_FORMAT, "step": 10, "counts": counts},
    }


TOKENIZER = Tokenizer("abcdefghijk")
V = len(TOKENIZER)
UNIGRAM = np.arange(V) / np.arange(V).sum()  # the first character, 'a', is impossible


def writing_network(block_size: int = 8, **sizes) -> GPT:
    """A network that says something else after every text: as initialised it says nothing."""
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "mlp_size": 24, "n_kv_head": 1} | sizes
    gpt = GPT(GPTConfig(**{"vocab_size": V, "block_size": block_size} | sizes)).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=1.0 if p.ndim == 1 else 0.4)
    return gpt


def options(**given) -> GenerateOptions:
    return GenerateOptions(**given).resolve()


def distribution_by_definition(
    logits: list[float], seen: list[bool], o: GenerateOptions
) -> list[float]:
    """The distribution of one row's next character, by the definitions of the options."""
    r = o.repetition_penalty
    logits = [(x / r if x > 0 else x * r) if s else x for x, s in zip(logits, seen, strict=True)]
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if o.sampling == "argmax" or o.temperature == 0:
        return [float(i == ranked[0]) for i in range(len(logits))]
    exponentials = [math.exp(x / o.temperature) for x in logits]
    p = [w / math.fsum(exponentials) for w in exponentials]
    if o.sampling == "top_k":
        kept = ranked[: o.top_k]
    elif o.sampling == "top_p":
        kept = []
        while ranked and math.fsum(p[i] for i in kept) < o.top_p:
            kept.append(ranked.pop(0))
    elif o.sampling == "min_p":
        kept = [i for i in ranked if p[i] >= o.min_p * max(p)]
    else:
        kept = ranked
    total = math.fsum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


# Networks for tests/model: every kind of attention and of embedding.
GPT_SIZES = {"vocab_size": 11, "block_size": 12, "n_layer": 3, "n_head": 4, "n_embd": 32}
GPT_SIZES |= {"mlp_size": 40}
GPT_KINDS: dict[str, dict] = {
    "plain": {},
    "grouped": {"n_kv_head": 2},
    "one_kv_head": {"n_kv_head": 1},
    "tied": {"tie_embeddings": True},
}


def fresh_network(**sizes) -> GPT:
    """A network as initialised: its blocks and (untied) its head give 0."""
    torch.manual_seed(1)
    return GPT(GPTConfig(**(GPT_SIZES | sizes))).eval()


def filled_network(**sizes) -> GPT:
    """A network in which every weight affects the logits."""
    gpt = fresh_network(**sizes)
    for p in gpt.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    count_random_text(gpt)
    return gpt


def count_random_text(gpt: GPT) -> None:
    """Fill the n-gram tables, if there are any, with the counts of a text."""
    if gpt.ngrams is not None:
        ids = np.random.default_rng(3).integers(gpt.config.vocab_size, size=500)
        gpt.ngrams.count(ids)


def random_ids(gpt: GPT, *shape: int) -> torch.Tensor:
    return torch.randint(gpt.config.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# CharGPT and CharDataModule with Lightning's own Trainer.


def small_data(folder: Path, **given) -> CharDataModule:
    """A text of 3,700 characters: with these sizes a pass over it has 12 batches."""
    text = folder / "my.txt"
    if not text.exists():
        text.write_text(sentences(150))
    sizes = {"block_size": 16, "batch_size": 16, "data_dir": str(folder / "data")} | given
    return CharDataModule(str(text), **sizes)


def small_model(alphabet: str, init: int = 0, **given) -> CharGPT:
    torch.manual_seed(init)
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16} | given
    return CharGPT(alphabet, **sizes)


class Recorder(DummyLogger):
    """A logger that keeps what it is given: (step, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, dict(metrics)))

    def __getitem__(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.logged if name in values]


def plain_trainer(*callbacks: L.Callback, **flags) -> L.Trainer:
    """Lightning's Trainer as a user makes one, but silent."""
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    silent |= {"accelerator": "cpu", "enable_checkpointing": saves, "log_every_n_steps": 5}
    return L.Trainer(callbacks=list(callbacks), **silent | flags)


def same_weights(a: CharGPT, b: CharGPT) -> bool:
    """Whether two modules have the same weights, bit for bit, and the same average of them."""
    pairs = zip(a.gpt.parameters(), b.gpt.parameters(), strict=True)
    averages = zip(a.average.other, b.average.other, strict=True)
    return all(torch.equal(p, q) for p, q in [*pairs, *averages])
