"""Laws of the Python API: the package from a notebook or script, with Lightning's own Trainer."""

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_app
from lightning_app import CharDataModule, CharGPT, OptimOptions, UserError, load
from tests.helpers import Recorder, plain_trainer, same_weights, small_data, small_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]
ROOT = Path(__file__).parents[1]


def run_python(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The names.


def test_every_public_name_is_found_where_the_package_says():
    assert sorted(lightning_app.MODULES) == sorted(lightning_app.__all__) == dir(lightning_app)
    for name in lightning_app.__all__:
        assert getattr(lightning_app, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        lightning_app.no_such_name  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_lightning():
    run_python("import sys, lightning_app; assert not {'torch', 'lightning'} & set(sys.modules)")


# A run.


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The README's code, in small: 20 steps, of which 12 are a pass over the text."""
    folder = tmp_path_factory.mktemp("fitted")
    data = small_data(folder)
    model = small_model(data.alphabet)
    checkpoints = ModelCheckpoint(folder, monitor="val/loss", save_last=True)
    logger = CSVLogger(folder, version=0)
    others = [EarlyStopping("val/loss"), LearningRateMonitor("step")]
    trainer = plain_trainer(*others, checkpoints, max_steps=20, logger=logger)
    trainer.fit(model, data)
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(
        folder=folder,
        data=data,
        model=model,
        trainer=trainer,
        rows=rows,
        best=checkpoints.best_model_path,
        last=checkpoints.last_model_path,
    )


def test_the_module_logs_training_and_validation_for_callbacks_and_loggers(fitted):
    def steps(name: str) -> list[int]:
        return [int(row["step"]) for row in fitted.rows if row.get(name)]

    assert steps("train/loss") == [5, 10, 15, 20]
    assert steps("val/loss") == steps("val/perplexity") == steps("val/bpc") == [12, 20]
    assert len(steps("lr-MuonAdamW/blocks")) >= 4
    metrics = fitted.trainer.callback_metrics
    assert {"train/loss", "val/loss", "val/perplexity"} <= set(metrics)
    assert metrics["val/perplexity"] == pytest.approx(metrics["val/loss"].exp().item())
    last = [float(row["val/loss"]) for row in fitted.rows if row["val/loss"]][-1]
    assert last == pytest.approx(metrics["val/loss"].item(), rel=1e-6)


def test_a_model_generates_after_a_fit(fitted):
    options = {"max_new_tokens": 30, "temperature": 0.8}
    text = fitted.model.generate("ROMEO", seed=1, **options)
    assert isinstance(text, str)
    assert text.startswith("ROMEO")
    assert len(text) == 35
    assert fitted.model.generate("ROMEO", seed=1, **options) == text
    assert fitted.model.generate("ROMEO", seed=2, **options) != text
    assert fitted.model.generate("ROMEO", **options) != fitted.model.generate("ROMEO", **options)


@pytest.mark.parametrize("prompt", ["ROMEO", ""])
def test_loaded_in_either_way_a_checkpoint_generates_what_the_model_did(fitted, prompt):
    text = fitted.model.generate(prompt, max_new_tokens=30, seed=1)
    for trained in (CharGPT.load_from_checkpoint(fitted.last), load(fitted.last)):
        assert trained.generate(prompt, max_new_tokens=30, seed=1) == text


def test_load_and_generate_need_no_lightning(fitted):
    text = run_python(
        "import sys; from lightning_app import load\n"
        "print(load(sys.argv[1]).generate('ROMEO', max_new_tokens=30, seed=1))\n"
        "assert 'lightning' not in sys.modules and 'pytorch_lightning' not in sys.modules",
        fitted.last,
    )
    assert text == fitted.model.generate("ROMEO", max_new_tokens=30, seed=1) + "\n"


def test_weights_alone_are_enough_to_load(fitted, tmp_path):
    fitted.trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    for read in (CharGPT.load_from_checkpoint, load):
        again = read(tmp_path / "weights.ckpt").generate("ROMEO", max_new_tokens=30, seed=1)
        assert again == fitted.model.generate("ROMEO", max_new_tokens=30, seed=1)


def test_validate_and_test_return_the_metrics(fitted):
    trainer = plain_trainer()
    (values,) = trainer.validate(fitted.model, fitted.data, verbose=False)
    assert set(values) == {"val/loss", "val/perplexity", "val/bpc"}
    assert values["val/loss"] == pytest.approx(fitted.trainer.callback_metrics["val/loss"].item())
    (values,) = trainer.test(fitted.model, fitted.data, ckpt_path=fitted.best, verbose=False)
    assert set(values) == {"test/loss", "test/perplexity", "test/bpc"}


def test_predict_writes_texts_for_prompts(fitted):
    (text,) = fitted.model.predict_step([""])
    assert len(text) == 500
    model = CharGPT.load_from_checkpoint(fitted.last, num_samples=2)
    model.generation = model.generation.updated(max_new_tokens=4)
    first, second = plain_trainer().predict(model, DataLoader(["R", "J", "R"], 2))
    assert [text[0] for text in first] == ["R", "R", "J", "J"]
    assert [len(text) for text in first + second] == [5] * 6
    assert model.predict_step(["R"], batch_idx=1) == second


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_the_command_lines_checkpoint_is_one_for_lightning_too(request, tmp_path, unit):
    if unit == "char":
        trained = request.getfixturevalue("trained")
        best = trained.folder / "logs" / "tiny" / "checkpoints" / "best.ckpt"
    else:
        data = small_data(tmp_path, unit="byte")
        model = small_model(data.alphabet, unit=data.unit)
        trainer = plain_trainer(max_steps=1, limit_val_batches=1)
        trainer.fit(model, data)
        trainer.save_checkpoint(best := tmp_path / "byte.ckpt")
    model = CharGPT.load_from_checkpoint(best)
    assert model.tokenizer.unit == model.hparams["unit"] == unit
    text = model.generate("ROMEO", max_new_tokens=20, seed=1)
    assert load(best).generate("ROMEO", max_new_tokens=20, seed=1) == text
    if unit == "char":  # the options of generation of its config are the defaults
        assert model.generation.top_k == 3
        data = CharDataModule(str(trained.folder / "text.txt"), 16, 8, data_dir=str(tmp_path))
        (values,) = plain_trainer().validate(model, data, verbose=False)
        logged = load(best).info["val_loss"]  # in bfloat16, where the hardware has it
        assert values["val/loss"] == pytest.approx(logged, abs=0.01)


# Resuming: the same weights, bit for bit, and the same losses.


def by_epochs(folder: Path) -> list[ModelCheckpoint]:
    """Lightning's own checkpoints: within epochs, and at their ends."""
    each = {"save_top_k": -1, "auto_insert_metric_name": False}
    return [
        ModelCheckpoint(folder, "{step}", every_n_train_steps=4, **each),
        ModelCheckpoint(folder, "val-{step}", monitor="val/loss", **each),
    ]


AVERAGED = {"optim": OptimOptions(average_decay=0.9)}
SHORT_FIRST = {"window_schedule": [[0, 0.5], [0.5, 1]]}
RUNS = {  # arguments of the model, of the data, of the Trainer; checkpoints to resume from
    "plain": ({}, {}, {}, ["8", "val-12", "16"]),
    "dropout, accumulation": (
        {"dropout": 0.1},
        {"seed": 2},
        {"accumulate_grad_batches": 2},
        ["4", "val-6", "12", "16"],
    ),
    "average": ({"dropout": 0.1} | AVERAGED, {}, {}, ["4", "12", "val-12"]),
    "validation by steps": (
        AVERAGED,
        SHORT_FIRST,
        {
            "check_val_every_n_epoch": None,
            "val_check_interval": 12,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.5,
        },
        ["8", "val-6", "val-18"],
    ),
    "epochs": ({}, {}, {"max_steps": -1, "max_epochs": 2}, ["8", "val-12"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, name):
    of_model, of_data, flags, files = RUNS[name]

    def fit(init: int, path: Path | None = None) -> tuple[CharGPT, Recorder]:
        data = small_data(tmp_path, **of_data)
        model = small_model(data.alphabet, init, **of_model)
        log = Recorder()
        trainer = plain_trainer(*by_epochs(tmp_path), **{"max_steps": 20, "logger": log} | flags)
        trainer.fit(model, data, ckpt_path=path)
        return model, log

    unbroken, log = fit(init=1)
    for file in files:
        resumed, rest = fit(2, tmp_path / f"{file}.ckpt")
        assert same_weights(resumed, unbroken), file
        at = int(file.removeprefix("val-"))
        for metric in ("train/loss", "val/loss"):
            expected = [point for point in log[metric] if point[0] > at]
            got = [point for point in rest[metric] if point[0] > at]
            assert got == expected, (file, metric)


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize("step", [5, 12, 17])
def test_a_run_that_was_stopped_resumes_from_its_last_checkpoint(tmp_path, fitted, step):
    def fit(init: int, *callbacks: L.Callback, **kwargs) -> CharGPT:
        model = small_model(fitted.data.alphabet, init)
        checkpoints = ModelCheckpoint(tmp_path, monitor="val/loss", save_last=True)
        plain_trainer(*callbacks, checkpoints, max_steps=20).fit(
            model, small_data(fitted.folder), **kwargs
        )
        return model

    stopped = fit(0, StopAt(step))
    assert not same_weights(stopped, fitted.model)
    assert load(tmp_path / "last.ckpt").info["step"] == step
    assert same_weights(fit(3, ckpt_path="last"), fitted.model)


# Each of the two with others' parts.


def test_batches_come_without_a_trainer_and_the_next_pass_has_others(tmp_path):
    loader = small_data(tmp_path).train_dataloader()
    passes = [torch.cat([idx for idx, targets in loader]) for _ in range(2)]
    assert passes[0].shape == passes[1].shape == (12 * 16, 16)
    assert not torch.equal(*passes)


@pytest.mark.parametrize("flags", [{}, {"check_val_every_n_epoch": None, "val_check_interval": 5}])
def test_after_a_fit_batches_come_as_before_it(tmp_path, flags):
    data = small_data(tmp_path, val_gap=True)
    plain_trainer(max_steps=5, **flags).fit(small_model(data.alphabet), data)
    assert len(data.train_dataloader()) == 12
    assert len(data.val_dataloader()) == len(data.eval_batches("val"))


class Bigrams(L.LightningModule):
    """Somebody else's module."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)
        self.seen: list[torch.Tensor] = []

    def loss(self, batch) -> torch.Tensor:
        idx, targets = batch
        return nn.functional.cross_entropy(
            self.table(idx).flatten(0, 1), targets.flatten(), ignore_index=-1
        )

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_the_data_serves_any_module_and_each_epoch_reads_the_text_once(tmp_path):
    data = small_data(tmp_path)
    model = Bigrams(len(data.alphabet))
    trainer = plain_trainer(max_epochs=2)
    trainer.fit(model, data)
    assert trainer.global_step == 24
    first, second = torch.cat(model.seen[:12]), torch.cat(model.seen[12:])
    assert not torch.equal(first, second)
    counts = [Counter(map(tuple, epoch.tolist())) for epoch in (first, second)]
    assert max(counts[0].values()) < 4  # windows of this text, which repeats itself
    assert trainer.callback_metrics["val/loss"] < 3


def test_the_data_serves_a_module_for_a_number_of_steps_and_a_resumed_run_reads_on(tmp_path):
    data = small_data(tmp_path)

    def fit(max_steps: int, **kwargs) -> list[torch.Tensor]:
        model = Bigrams(len(data.alphabet))
        checkpoints = ModelCheckpoint(tmp_path, "{step}", auto_insert_metric_name=False)
        flags = {"max_steps": max_steps, "limit_val_batches": 1}
        plain_trainer(checkpoints, **flags).fit(model, small_data(tmp_path), **kwargs)
        return model.seen

    unbroken = fit(20)
    assert len(unbroken) == 20
    half = fit(7)
    rest = fit(20, ckpt_path=tmp_path / "7.ckpt")
    assert torch.equal(torch.cat([*half, *rest]), torch.cat(unbroken))


def test_the_model_trains_on_any_loader_of_windows(fitted):
    ids = torch.randint(len(fitted.data.alphabet), (64, 9))
    pairs = TensorDataset(ids[:, :-1], ids[:, 1:])  # shorter than the block
    model = small_model(fitted.data.alphabet)
    log = Recorder()
    trainer = plain_trainer(max_epochs=3, logger=log, log_every_n_steps=2)
    trainer.fit(model, DataLoader(pairs, 16), DataLoader(pairs, 16))
    assert trainer.global_step == 12
    assert [step for step, _ in log["val/loss"]] == [4, 8, 12]
    losses = [loss for _, loss in log["val/loss"]]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_the_model_trains_without_validation(fitted):
    model = small_model(fitted.data.alphabet)
    trainer = plain_trainer(max_steps=2)
    trainer.fit(model, fitted.data.train_dataloader())
    assert trainer.global_step == 2


def test_a_corpus_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no_such\.txt"):
        _ = CharDataModule(str(tmp_path / "no_such.txt")).alphabet


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_run_is_resumed_and_its_checkpoint_loads_on_a_cpu(tmp_path):
    def fit(init: int, **kwargs) -> CharGPT:
        data = small_data(tmp_path)
        model = small_model(data.alphabet, init, dropout=0.1, **AVERAGED)
        checkpoints = by_epochs(tmp_path)
        flags = {"max_steps": 20, "accelerator": "gpu", "devices": 1, "deterministic": True}
        plain_trainer(*checkpoints, **flags).fit(model, data, **kwargs)
        return model.cpu()

    unbroken = fit(1)
    resumed = fit(2, ckpt_path=tmp_path / "8.ckpt")
    for p, q in zip(resumed.gpt.parameters(), unbroken.gpt.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert load(tmp_path / "16.ckpt").generate("ROMEO", max_new_tokens=5).startswith("ROMEO")
