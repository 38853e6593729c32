"""Laws of CharGPT in a Trainer: schedules, averaged weights, evaluation, batches it refuses."""

import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_app.errors import UserError
from lightning_app.evaluation.metrics import CharacterLoss
from lightning_app.model.gpt import GPT, loss_per_character
from lightning_app.runs.checkpoint import RAW_WEIGHTS, load, read_checkpoint
from lightning_app.training.module import CharGPT
from lightning_app.training.optimizer import OptimOptions
from lightning_app.training.schedules import ScheduleOptions
from tests.helpers import Recorder, plain_trainer, same_weights, small_data, small_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


def score(gpt: GPT, batches) -> float:
    """The mean loss of all characters of the batches, without a Trainer."""
    metric = CharacterLoss()
    with torch.no_grad():
        for idx, targets in batches:
            metric.update(loss_per_character(gpt(idx), targets), targets)
    return float(metric.compute())


# Steps and schedules.


class Rates(L.Callback):
    """Keeps each step's learning rate and weight decay of the first group."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, *args) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


def rates(data, **flags) -> list[tuple[float, float]]:
    schedule = ScheduleOptions(warmup_steps=0, decay_fraction=1.0)
    optim = OptimOptions(weight_decay=0.1, final_weight_decay=0.5)
    model = small_model(data.alphabet, optim=optim, schedule=schedule)
    callback = Rates()
    plain_trainer(callback, **flags).fit(model, data)
    return callback.seen


def test_schedules_reach_their_end_when_epochs_are_counted(data):
    by_epochs = rates(data, max_epochs=2)
    assert len(by_epochs) == 24
    assert by_epochs == rates(data, max_steps=24)
    learning_rates, decays = zip(*by_epochs, strict=True)
    assert learning_rates[0] == 0.03
    assert learning_rates[-1] == pytest.approx(0.03 / 24)
    assert list(decays) == pytest.approx([0.1 + 0.4 * i / 24 for i in range(24)])


def test_a_run_limited_by_time_alone_keeps_its_rates(data):
    seen = rates(data, max_steps=-1, max_epochs=-1, max_time={"seconds": 0.3})
    assert seen
    assert set(seen) == {(0.03, 0.1)}


def test_the_last_step_is_logged_and_validated_wherever_it_falls(data):
    log = Recorder()
    trainer = plain_trainer(max_steps=17, logger=log)
    trainer.fit(small_model(data.alphabet), data)
    assert [step for step, _ in log["train/loss"]] == [5, 10, 15, 17]
    assert [step for step, _ in log["val/loss"]] == [12, 17]


def test_the_training_loss_is_the_mean_of_all_characters_since_the_last_one(data):
    log = Recorder()
    model = small_model(data.alphabet, optim=OptimOptions(learning_rate=1e-30, name="adamw"))
    trainer = plain_trainer(max_steps=10, logger=log, accumulate_grad_batches=2)
    trainer.fit(model, data)  # the weights stay
    batches = list(data.train_dataloader())
    batches += list(data.train_dataloader())  # 10 steps are 20 micro-batches: all, and 8 again
    assert log["train/loss"][0][1] == pytest.approx(score(model.gpt, batches[:10]), rel=1e-5)
    assert log["train/perplexity"][0][1] == pytest.approx(math.exp(log["train/loss"][0][1]))


def test_the_gradients_norm_is_that_before_clipping(data):
    norms = []
    for clip in (None, 1e-3):
        log = Recorder()
        flags = {"max_steps": 1, "gradient_clip_val": clip, "log_every_n_steps": 1}
        plain_trainer(logger=log, **flags).fit(small_model(data.alphabet), data)
        norms += [value for _, value in log["train/gradient_norm"]]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 1e-3


def test_a_loss_that_is_not_finite_ends_the_run_with_the_remedy(data):
    model = small_model(data.alphabet)
    torch.nn.init.constant_(model.gpt.embedding.weight, math.nan)
    with pytest.raises(UserError, match=r"nan at step 1: .*--optim\.learning_rate"):
        plain_trainer(max_steps=3, num_sanity_val_steps=0).fit(model, data)


def test_dropout_repeats_with_the_seed_whatever_was_drawn_before(data):
    models = []
    for draws, seed in ((0, 1), (5, 1), (5, 2)):
        model = small_model(data.alphabet, dropout=0.3, seed=seed)
        torch.rand(draws)
        plain_trainer(max_steps=3).fit(model, data)
        models.append(model)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_a_module_can_be_fitted_again(data):
    model = small_model(data.alphabet)
    for steps in (2, 5):
        trainer = plain_trainer(max_steps=steps)
        trainer.fit(model, data)
        assert trainer.global_step == steps
    again = plain_trainer(max_steps=2)
    again.fit(model, data)
    again.fit_loop.epoch_loop.max_steps = 4  # the same Trainer, for longer
    again.fit(model, data)
    assert again.global_step == 4


# Batches.


def loader(*batches) -> DataLoader:
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize(
    ("idx", "targets", "numbers"),
    [
        (torch.zeros(2, 17), torch.zeros(2, 17), ("17", "16")),
        (torch.zeros(2, 8), torch.zeros(2, 7), ("(2, 8)", "(2, 7)")),
        (torch.zeros(8), torch.zeros(8), ("(8,)",)),
        (torch.full((2, 8), 43), torch.zeros(2, 8), ("43", "0 to 42")),
        (torch.zeros(2, 8), torch.full((2, 8), 43), ("43", "0 to 42")),
        (torch.full((2, 8), -1), torch.zeros(2, 8), ("-1", "0 to 42")),
        (torch.zeros(2, 8), torch.full((2, 8), -100), ("-100", "0 to 42")),
    ],
)
def test_a_batch_that_the_network_cannot_read_is_refused_with_both_numbers(
    data, idx, targets, numbers
):
    assert len(data.alphabet) == 43
    batches = loader((idx.long(), targets.long()))
    model = small_model(data.alphabet)
    trainers = plain_trainer(max_steps=1), plain_trainer()
    acts = (
        lambda: trainers[0].fit(model, batches),
        lambda: trainers[1].validate(model, batches, verbose=False),
        lambda: trainers[1].test(model, batches, verbose=False),
    )
    for act in acts:
        with pytest.raises(UserError) as error:
            act()
        assert all(number in str(error.value) for number in numbers), str(error.value)


def test_targets_of_minus_1_are_not_scored(data):
    ids = torch.randint(43, (4, 9))
    idx, targets = ids[:, :-1], ids[:, 1:].clone()
    model = small_model(data.alphabet)
    whole = score(model.gpt, [(idx[:2], targets[:2])])
    targets[2:] = -1
    (values,) = plain_trainer().validate(model, loader((idx, targets)), verbose=False)
    assert values["val/loss"] == pytest.approx(whole, rel=1e-6)


# Validation.


def test_the_sanity_checks_part_of_a_validation_reaches_no_logger(data):
    log = Recorder()
    model = small_model(data.alphabet)
    trainer = plain_trainer(max_steps=5, logger=log, num_sanity_val_steps=1)
    trainer.fit(model, data)
    assert [step for step, _ in log["val/loss"]] == [5]


def test_with_a_second_dataloader_the_gap_is_the_difference_of_the_losses(data, tmp_path):
    gap = small_data(tmp_path, val_gap=True)
    log = Recorder()
    model = small_model(data.alphabet)
    plain_trainer(max_steps=5, logger=log).fit(model, gap)
    val = data.eval_batches("val")
    sample = score(model.gpt, data.eval_range(0, val.last - val.first))
    assert log["val/gap"][0][1] == pytest.approx(score(model.gpt, val) - sample, abs=1e-6)


# Averaged weights.


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """A run of 12 steps that validated and saved after 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("averaged")
    log = Recorder()
    model = small_model(data.alphabet, optim=OptimOptions(average_decay=0.9))
    name = {"filename": "{step}", "auto_insert_metric_name": False}
    checkpoints = ModelCheckpoint(folder, monitor="val/loss", save_last=True, save_top_k=-1, **name)
    trainer = plain_trainer(checkpoints, max_steps=12, logger=log, val_check_interval=4)
    trainer.fit(model, data)
    return SimpleNamespace(
        folder=folder, model=model, trainer=trainer, losses=dict(log["val/loss"]), log=log
    )


def test_averaged_weights_are_not_the_last_ones(averaged, data):
    raw = score(averaged.model.gpt, data.eval_batches("val"))
    assert abs(raw - averaged.losses[12]) > 1e-4


@pytest.mark.parametrize(("file", "step"), [("4", 4), ("8", 8), ("last", 12)])
def test_whatever_reads_a_checkpoint_uses_the_average_that_made_its_loss(
    averaged, data, file, step
):
    path = averaged.folder / f"{file}.ckpt"
    loss = pytest.approx(averaged.losses[step], rel=1e-6)
    batches = data.eval_batches("val")
    assert load(path).info["val_loss"] == loss
    assert score(load(path).gpt, batches) == loss
    loaded = CharGPT.load_from_checkpoint(path)
    assert score(loaded.gpt.eval(), batches) == loss
    (fresh,) = plain_trainer().validate(loaded, data, verbose=False)
    assert fresh["val/loss"] == loss
    # the same module and Trainer, which still hold the average of the last step
    for trainer in (averaged.trainer, plain_trainer()):
        (values,) = trainer.validate(averaged.model, data, ckpt_path=path, verbose=False)
        assert values["val/loss"] == loss
        (values,) = trainer.test(averaged.model, data, ckpt_path=path, verbose=False)
        assert values["test/loss"] == pytest.approx(
            score(load(path).gpt, data.eval_batches("test")), rel=1e-6
        )
    state = read_checkpoint(path)
    raw = state[RAW_WEIGHTS]
    assert set(raw) == set(state["state_dict"])
    assert not torch.equal(raw["gpt.norm.weight"], state["state_dict"]["gpt.norm.weight"])


@pytest.mark.parametrize("file", ["4", "8"])
def test_training_resumes_from_the_raw_weights_and_generates_with_the_average(averaged, data, file):
    path = averaged.folder / f"{file}.ckpt"
    optim = OptimOptions(average_decay=0.9)
    resumed = small_model(data.alphabet, 1, optim=optim)

    class Seen(L.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            raw = read_checkpoint(path)[RAW_WEIGHTS]
            for name, p in pl_module.named_parameters():
                assert torch.equal(p, raw[name])

    log = Recorder()
    flags = {"max_steps": 12, "logger": log, "val_check_interval": 4}
    checkpoint = ModelCheckpoint(averaged.folder, monitor="val/loss", save_top_k=-1)
    plain_trainer(Seen(), checkpoint, **flags).fit(resumed, data, ckpt_path=path)
    assert log["val/loss"][-1] == (12, averaged.losses[12])
    options = {"max_new_tokens": 40, "seed": 3}
    text = load(averaged.folder / "last.ckpt").generate("ROMEO", **options)
    assert resumed.generate("ROMEO", **options) == text
    resumed.average.reset()  # by the raw weights, which are another network
    assert resumed.generate("ROMEO", **options) != text


def test_weights_alone_are_the_average(averaged, data, tmp_path):
    model = CharGPT.load_from_checkpoint(averaged.folder / "last.ckpt")
    trainer = plain_trainer()
    trainer.validate(model, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    loss = score(load(tmp_path / "weights.ckpt").gpt, data.eval_batches("val"))
    assert loss == pytest.approx(averaged.losses[12], rel=1e-6)


class Broken(L.Callback):
    def on_validation_batch_end(self, trainer, pl_module, *args) -> None:
        if not trainer.sanity_checking:
            assert pl_module.average.swapped
            raise KeyError("a mistake of the user's callback")


def test_after_an_error_in_a_validation_the_module_has_its_raw_weights(data):
    model = small_model(data.alphabet, optim=OptimOptions(average_decay=0.9))
    with pytest.raises(KeyError):
        plain_trainer(Broken(), max_steps=3).fit(model, data)
    assert not model.average.swapped
    whole = small_model(data.alphabet, optim=OptimOptions(average_decay=0.9))
    plain_trainer(max_steps=3).fit(whole, data)
    assert same_weights(model, whole)


def test_a_run_without_an_average_forgets_the_one_that_the_module_had(averaged, data, tmp_path):
    plain = small_model(data.alphabet)
    trainer = plain_trainer(max_steps=2)
    trainer.fit(plain, data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    model = small_model(data.alphabet, optim=OptimOptions(average_decay=0.9))
    plain_trainer(max_steps=2).fit(model, data)
    (values,) = plain_trainer().validate(
        model, data, ckpt_path=tmp_path / "plain.ckpt", verbose=False
    )
    assert values["val/loss"] == pytest.approx(score(plain.gpt, data.eval_batches("val")))


# Arguments.


def test_options_may_be_objects_or_plain_mappings():
    optim = OptimOptions(average_decay=0.5)
    model = small_model("ab", optim=optim, schedule={"warmup_steps": 3})
    assert model.optim == optim
    assert model.schedule == ScheduleOptions(warmup_steps=3)
    assert model.hparams["optim"]["average_decay"] == 0.5


def test_sizes_that_cannot_be_built_are_refused():
    with pytest.raises(UserError, match="n_embd"):
        small_model("ab", n_embd=15)


def test_a_text_without_a_prompt_starts_with_a_draw_from_the_counts():
    model = small_model("abc", counts=[0, 0, 7])
    texts = model.generate_texts([""], model.generation.updated(max_new_tokens=1), 1, 20)
    assert set(texts) == {"c"}


def test_an_existing_network_is_used_as_it_is():
    gpt = small_model("ab").gpt
    assert small_model("ab", gpt=gpt).gpt is gpt


def test_generating_leaves_the_mode_as_it_was():
    model = small_model("ab", dropout=0.5)
    for mode in (True, False):
        model.train(mode)
        model.generate("a", max_new_tokens=2)
        assert model.gpt.training is mode


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_on_a_gpu_the_module_trains_validates_and_generates(data, precision):
    model = small_model(data.alphabet, dropout=0.1, optim=OptimOptions(average_decay=0.9))
    log = Recorder()
    trainer = plain_trainer(
        max_steps=12, logger=log, accelerator="gpu", devices=1, precision=precision
    )
    trainer.fit(model, data)
    assert log["val/loss"][0][0] == 12
    assert math.isfinite(log["val/loss"][0][1])
    assert len(model.generate("ROMEO", max_new_tokens=5, seed=1)) == 10
