"""CharGPT, the LightningModule: the network, how it is trained, validated and used to generate."""

import math
import secrets
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_app.data.batches import Batch, check_batch
from lightning_app.data.encoding import Unit
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.data.windows import random_keys
from lightning_app.errors import UserError
from lightning_app.evaluation.metrics import CharacterLoss, loss_metrics
from lightning_app.generation.generate import generate_text
from lightning_app.generation.history import unigram_distribution
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.lightning_internals import batches_done, has_trainer, set_callback_metrics
from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character
from lightning_app.runs.checkpoint import (
    CHECKPOINT_FORMAT,
    SECTION,
    upgrade,
)
from lightning_app.torch_internals import ignore_in_ddp, set_up_compiler
from lightning_app.training.microbatch import MicrobatchedLoss, rows_per_microbatch
from lightning_app.training.optimizer import MuonAdamW, OptimOptions, parameter_groups
from lightning_app.training.schedules import ScheduleOptions, set_rates
from lightning_app.training.sharding import gather, shard
from lightning_app.training.throughput import Throughput
from lightning_app.training.weight_average import RawWeightsAfterErrors, WeightAverage

Options = TypeVar("Options", OptimOptions, ScheduleOptions, GenerateOptions)


def as_options(cls: type[Options], given: Options | dict[str, Any] | None) -> Options:
    """Options as an object: given as one, as a checkpoint's dict, or not at all (the defaults)."""
    return cls(**given) if isinstance(given, dict) else given or cls()


class CharGPT(L.LightningModule):
    """A character-level GPT that trains on batches of (idx, targets): int64 ids (B, T) each.

    Targets are the ids that follow those of idx; -1 is not scored. A second validation dataloader
    is a sample of the training text: the difference of the two losses is logged as val/gap. The
    options of training and generation have defaults; the arguments that follow the alphabet define
    the network. Raises UserError for sizes that cannot be built.

    Args:
        alphabet: The characters, sorted; a character's index is its id.
        block_size: Characters the network sees at once (its context).
        n_layer: Number of blocks.
        n_head: Attention heads in a block.
        n_embd: Width of the network; a multiple of twice n_head.
        n_kv_head: Key/value heads, each shared by n_head / n_kv_head query heads; null is n_head.
        mlp_size: Hidden width of the MLP; null is 8/3 n_embd.
        dropout: Fraction of the embedding's and each branch's outputs that is dropped in training.
        tie_embeddings: Use one matrix for embedding and logits.
        rope_theta: Base of the rotary positions. The usual 10,000 is made for contexts of
            thousands of characters; in one of 256, most dimensions would hardly rotate.
        ngram_rows: Rows of the tables that count which characters follow the last 2, 3, ... ones in
            the training text, such as [2048, 16384, 0, 65536], where 0 means no table: what follows
            from few characters is then looked up, not computed. What followed them so far in the
            window is counted too. null: no counts.
        unit: char, or byte for an alphabet of bytes.
        counts: How often each character occurs in the training text; a text without a prompt
            starts with a draw from this distribution. null: every character is equally likely.
        optim: How the optimizer changes weights.
        schedule: How learning rates change over the run.
        generation: Default options of `generate` and `predict_step`.
        seed: Determines dropout, and the texts of `predict_step`.
        num_samples: Texts for each prompt in `predict_step`.
        compile_network: Compile the network and the optimizer when training starts.
        gpt: An existing network of these sizes, instead of a new one.
    """

    def __init__(
        self,
        alphabet: str,
        block_size: PositiveInt = 128,
        n_layer: PositiveInt = 4,
        n_head: PositiveInt = 2,
        n_embd: PositiveInt = 192,
        n_kv_head: PositiveInt | None = None,
        mlp_size: PositiveInt | None = None,
        dropout: NonNegativeFloat = 0.0,
        tie_embeddings: bool = False,
        rope_theta: PositiveFloat = 500.0,
        ngram_rows: list[NonNegativeInt] | None = None,
        unit: Unit = "char",
        counts: list[int] | None = None,
        optim: OptimOptions | dict[str, Any] | None = None,
        schedule: ScheduleOptions | dict[str, Any] | None = None,
        generation: GenerateOptions | dict[str, Any] | None = None,
        seed: int = 1337,
        num_samples: int = 1,
        compile_network: bool = False,
        gpt: GPT | None = None,
    ) -> None:
        super().__init__()
        self.optim = as_options(OptimOptions, optim)
        self.schedule = as_options(ScheduleOptions, schedule)
        self.generation = as_options(GenerateOptions, generation)
        own = ["optim", "schedule", "generation", "num_samples", "compile_network", "gpt"]
        self.save_hyperparameters(ignore=own, logger=False)
        # A checkpoint holds plain values: it is read with weights_only=True.
        self.hparams.update({name: asdict(getattr(self, name)) for name in own[:3]})
        sizes = {f.name: self.hparams[f.name] for f in fields(GPTConfig) if f.name in self.hparams}
        config = GPTConfig(vocab_size=len(alphabet), **sizes)
        self.gpt = GPT(config) if gpt is None else gpt
        if gpt is None and self.gpt.ngrams is not None:
            self.gpt.ngrams.use_code_points(alphabet)
        tables = [name for name, _ in self.named_buffers() if name.startswith("gpt.ngrams.")]
        ignore_in_ddp(self, tables)  # each process counts the same text
        self.tokenizer = Tokenizer(alphabet, unit)
        self.num_samples, self.compile_network = num_samples, compile_network
        self.average = WeightAverage(self.gpt, self.optim.average_decay)
        self.train_loss = CharacterLoss()  # since the last time it was logged
        self.eval_loss = CharacterLoss()
        self.train_sample_loss = CharacterLoss()
        self.throughput = Throughput()
        self.last_loss: Tensor | None = None  # of the last micro-batch
        self.gradient_norm: Tensor | None = None
        self.eval_metrics: dict[str, float] = {}  # of the last validation or test

    def forward(self, idx: Tensor) -> Tensor:
        """Logits (B, T, V) of the character after each of `idx` (B, T)."""
        return self.gpt(idx)

    # Training

    def configure_model(self) -> None:
        """For ModelParallelStrategy: each process keeps its part of every block (FSDP2)."""
        if self.device_mesh is not None and not isinstance(self.gpt, FSDPModule):
            shard(self.gpt, self.device_mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        if self.compile_network and stage == "fit":
            set_up_compiler()
            self.gpt.compile(dynamic=False)  # in place: the state_dict keeps its names

    def configure_callbacks(self) -> list[L.Callback]:
        callbacks = getattr(self.trainer, "callbacks", [])  # set by its connectors
        attached = any(isinstance(c, RawWeightsAfterErrors) for c in callbacks)
        return [] if attached else [RawWeightsAfterErrors(self.average)]

    def configure_optimizers(self) -> MuonAdamW:
        return MuonAdamW(parameter_groups(self.gpt, self.optim), self.compile_network)

    def on_train_start(self) -> None:
        """Apply the module's options to the optimizer, which may have been restored from a
        checkpoint, and give callbacks the metrics of the last validation until the next one."""
        if self.gpt.ngrams is not None and not self.gpt.ngrams.has_counted:
            raise UserError(
                "the n-gram tables have not counted the training text; before training call "
                "model.gpt.ngrams.count(data.ids('train'))"
            )
        self.average.use(False)
        metrics = {name: torch.tensor(value) for name, value in self.eval_metrics.items()}
        set_callback_metrics(self.trainer, metrics)
        groups = self.trainer.optimizers[0].param_groups
        for group, fresh in zip(groups, parameter_groups(self.gpt, self.optim), strict=True):
            group.update({k: v for k, v in fresh.items() if k != "params"})

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the run, -1 if the Trainer does not know them."""
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        steps = trainer.estimated_stepping_batches  # from max_epochs and the dataloader's length
        return int(steps) if math.isfinite(steps) else -1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers with (seed, micro-batch, process), so that a resumed run draws
        the same ones; and set the learning rates of the step."""
        k = batches_done(self.trainer)
        seed = int(random_keys(self.hparams["seed"], k, self.trainer.global_rank)[0] >> 1)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)
        groups = self.trainer.optimizers[0].param_groups
        set_rates(groups, self.global_step, self.max_steps, self.schedule)
        self.throughput.start()
        self.throughput.add(batch[0].numel() * self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_batch(batch, batch_idx)
        idx, targets = batch[:2]
        rows = rows_per_microbatch(*idx.shape)
        undivided = rows == len(idx) or self.device.type != "cpu"
        undivided |= self.device_mesh is not None  # FSDP2 sums gradients in hooks
        if undivided:
            losses = self.losses_in_training_text(*batch)
            mean = losses.mean()
        else:
            weights = self.gpt.parameters()
            mean, losses = MicrobatchedLoss.apply(
                self.losses_in_training_text, batch, rows, *weights
            )
        self.train_loss.update(losses, targets)
        self.last_loss = mean.detach()
        return mean

    def losses(self, idx: Tensor, targets: Tensor, begins: Tensor | None = None) -> Tensor:
        """The shared step: nats of each character, (B * T,)."""
        return loss_per_character(self.gpt(idx, begins=begins), targets)

    def losses_in_training_text(
        self, idx: Tensor, targets: Tensor, begins: Tensor | None = None
    ) -> Tensor:
        """`losses` of windows of the training text. Raises UserError if n-gram tables, which have
        counted it, do not get to know where they begin."""
        if self.gpt.ngrams is not None and begins is None:
            raise UserError(
                "n-gram tables need to know where the windows of a batch begin in the text; give "
                "the data module with_begins=True"
            )
        return self.losses(idx, targets, begins)

    def check_batch(self, batch: Batch, batch_idx: int) -> None:
        """Raises UserError for a batch that the network cannot read.

        On an accelerator only the ids of the first batch are checked: each check waits for it.
        """
        check_ids = self.device.type == "cpu" or batch_idx == 0
        check_batch(batch, self.gpt.config.block_size, len(self.tokenizer), check_ids)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """A run ends with a validation, also where max_steps is reached in the middle of an
        epoch."""
        if 0 < self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True  # Lightning validates before it stops

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients as the Trainer's flags say; log the norm that they had before."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradient_clip_algorithm == "value" and gradient_clip_val:
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        elif self.is_log_step(self.global_step + 1):
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One optimizer step, then the update of the weight average and the log."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        step = self.global_step + 1  # counted when this returns
        if self.optim.average_decay:
            self.average.update(step)
        log = self.is_log_step(step)
        if log or self.device.type == "cpu":  # an accelerator would have to be waited for
            self.check_finite(step)
        if log:
            self.log_training(step)

    def is_log_step(self, step: int) -> bool:
        """Whether training is logged after step number `step` (1 is the first)."""
        last = 0 < self.trainer.max_steps <= step
        interval: int = getattr(self.trainer, "log_every_n_steps", 0)  # set by its connectors
        return last or (interval > 0 and step % interval == 0)

    def check_finite(self, step: int) -> None:
        """Raises UserError if the last loss is not a finite number."""
        if self.last_loss is not None and not math.isfinite(value := float(self.last_loss)):
            raise self.diverged(f"the loss is {value}", step)

    def check_finite_weights(self, step: int) -> None:
        """Raises UserError if a weight is not a finite number: the last step may have been too
        large, which its loss, from before the step, does not show."""
        for p in self.parameters():
            local = p.to_local() if isinstance(p, DTensor) else p
            if not torch.isfinite(local).all():
                raise self.diverged("a weight is not a finite number", step)

    def diverged(self, what: str, step: int) -> UserError:
        groups = self.trainer.optimizers[0].param_groups
        rates = ", ".join(f"{g['name']} {g['peak_lr']:g}" for g in groups)
        clip = "" if self.trainer.gradient_clip_val else " or set --trainer.gradient_clip_val 1"
        return UserError(
            f"{what} at step {step:,}: training diverged; lower "
            f"--optim.learning_rate and --optim.muon_learning_rate (now {rates}){clip}; "
            "the checkpoints saved before this step are kept"
        )

    def log_training(self, step: int) -> None:
        """Log the mean loss of all characters since the last call, the speed, the gradient norm and
        the learning rates."""
        loss = float(self.train_loss.compute())
        self.train_loss.reset()
        values = {f"train/{name}": value for name, value in loss_metrics(loss).items()}
        values["train/characters_per_second"] = self.throughput.characters_per_second()
        if self.gradient_norm is not None:
            values["train/gradient_norm"] = float(gather(self.gradient_norm))
        for group in self.trainer.optimizers[0].param_groups:
            values[f"train/learning_rate/{group['name']}"] = group["lr"]
        self.log_at_step(values, step)

    def log_at_step(self, values: dict[str, float], step: int) -> None:
        """Log to callbacks and loggers, with the number of optimizer steps done. (`self.log` would
        give the loggers a number that is one less.)"""
        metrics = {name: torch.tensor(value) for name, value in values.items()}
        set_callback_metrics(self.trainer, metrics)
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=step)

    # Evaluation

    def on_validation_start(self) -> None:
        self.throughput.pause()
        self.average.use(True)

    def on_validation_epoch_start(self) -> None:
        self.eval_loss.reset()
        self.train_sample_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch, batch_idx)
        if dataloader_idx:
            self.train_sample_loss.update(self.losses_in_training_text(*batch), batch[1])
        else:
            self.eval_loss.update(self.losses(*batch), batch[1])

    def on_validation_epoch_end(self) -> None:
        loss = float(self.eval_loss.compute())
        values = {f"val/{name}": value for name, value in loss_metrics(loss).items()}
        if self.train_sample_loss.count:
            values["val/gap"] = loss - float(self.train_sample_loss.compute())
        self.log_evaluation(values)

    def on_validation_end(self) -> None:
        self.average.use(False)

    def on_test_start(self) -> None:
        self.average.use(True)

    def on_test_epoch_start(self) -> None:
        self.eval_loss.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.check_batch(batch, batch_idx)
        self.eval_loss.update(self.losses(*batch), batch[1])

    def on_test_epoch_end(self) -> None:
        loss = float(self.eval_loss.compute())
        self.log_evaluation({f"test/{name}": value for name, value in loss_metrics(loss).items()})

    def on_test_end(self) -> None:
        self.average.use(False)

    def log_evaluation(self, values: dict[str, float]) -> None:
        """Log to callbacks and loggers, except the metrics of the sanity check, which scores only
        a few batches."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        tensors = {k: torch.tensor(v) for k, v in values.items()}
        # None is as True, without a warning where there is no logger
        self.log_dict(tensors, logger=False if fitting else None, prog_bar=True)
        if self.trainer.sanity_checking:
            return
        self.eval_metrics = values
        if fitting:
            self.log_at_step(values, self.global_step)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `lightning_app.load` needs. If the weights are averaged, the state_dict is the
        average, and the raw weights are stored under RAW_WEIGHTS."""
        checkpoint.setdefault(SECTION, {}).update(
            format=CHECKPOINT_FORMAT,
            step=self.global_step,
            unit=self.hparams["unit"],
            counts=self.hparams["counts"],
            val_loss=self.eval_metrics.get("val/loss"),
            metrics=self.eval_metrics,
            # a resumed run logs the same means
            train_loss=[float(self.train_loss.total), int(self.train_loss.count)],
        )
        self.average.write(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose the weights to load: training resumes from the raw ones, everything else uses the
        average.

        The hook runs before Lightning loads the state_dict; with ShardedStrategy, after.
        """
        upgrade(checkpoint)
        self.average.reset()
        section = checkpoint.get(SECTION, {})
        unit = section.get("unit", self.hparams["unit"])
        if unit != self.hparams["unit"]:  # version 0.1 stored it in the section only
            self.hparams["unit"] = unit
            self.tokenizer = Tokenizer(self.hparams["alphabet"], unit)
        if not has_trainer(self) or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.eval_metrics = section.get("metrics", {})
        total, count = section.get("train_loss", (0.0, 0))
        self.train_loss.total = torch.tensor(total, dtype=torch.float64)
        self.train_loss.count = torch.tensor(count)
        self.average.read(checkpoint, weights_are_loaded=self.device_mesh is not None)

    # Generation

    @property
    def unigram(self) -> np.ndarray | None:
        """The training text's distribution of characters, (V,) float64, or None if not known."""
        return unigram_distribution(self.hparams["counts"])

    def generate(self, prompt: str = "", *, seed: int | None = None, **options: Any) -> str:
        """The prompt and its continuation by the network.

        `options` are those of GenerateOptions (max_new_tokens, temperature, sampling, top_k, top_p,
        min_p, repetition_penalty, stop); they replace the module's own. The same seed gives the
        same text; without a seed the text is random. Raises UserError for characters outside the
        alphabet, and for options that are out of range or contradict each other.
        """
        return self.generate_texts([prompt], self.generation.updated(**options), seed, 1)[0]

    def predict_step(self, batch: list[str], batch_idx: int = 0) -> list[str]:
        """The texts of a batch of prompts, with the prompts; all samples of a prompt in a row."""
        seed = self.hparams["seed"] + batch_idx
        return self.generate_texts(batch, self.generation, seed, self.num_samples)

    def generate_texts(
        self,
        prompts: list[str],
        options: GenerateOptions,
        seed: int | None = None,
        num_samples: int = 1,
    ) -> list[str]:
        """`num_samples` texts for each prompt, with the prompt; those of a prompt in a row."""
        training = self.gpt.training
        self.gpt.eval()
        try:
            with self.average.used():
                texts = list(
                    generate_text(
                        self.gpt,
                        self.tokenizer,
                        prompts,
                        options,
                        secrets.randbelow(2**32) if seed is None else seed,
                        num_samples,
                        self.unigram,
                    )
                )
        finally:
            self.gpt.train(training)
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        return [prompt + text for prompt, text in zip(repeated, texts, strict=True)]
