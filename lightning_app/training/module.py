"""CharGPT, the LightningModule: one step for training, validation and test around the network."""

import lightning as L
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_app.data.datamodule import Batch
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.data.windows import random_keys
from lightning_app.errors import UserError
from lightning_app.evaluation.metrics import CharacterLoss, loss_metrics
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT, GPTConfig, loss_per_character
from lightning_app.runs.checkpoint import SECTION
from lightning_app.training.compile import set_up_compiler
from lightning_app.training.microbatch import MicrobatchedLoss, rows_per_microbatch
from lightning_app.training.optimizer import MuonAdamW, OptimOptions, parameter_groups
from lightning_app.training.schedules import ScheduleOptions, set_rates, window_size


class CharGPT(L.LightningModule):
    """A character-level GPT: the network and how it learns.

    Its arguments define the network alone, and are saved with it; how to train and to write are the
    attributes `optim`, `schedule`, `generate` and `compile_network`.

    Args:
        alphabet: The characters, sorted; a character's place is its id.
        block_size: Characters the network sees at once (its context).
        n_layer: Blocks.
        n_head: Attention heads in a block.
        n_embd: Width of the network; a multiple of twice n_head.
        n_kv_head: Key/value heads, each shared by n_head / n_kv_head query heads; null is n_head.
        mlp_size: Hidden width of the MLP; null is 8/3 n_embd.
        dropout: Share of the embedding's and each branch's outputs dropped in training.
        tie_embeddings: Use one matrix for embedding and logits.
        rope_theta: Base of the rotary positions. The usual 10,000 is made for contexts of
            thousands; in one of 256 it leaves most pairs of dimensions standing still.
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        config = {k: v for k, v in self.hparams.items() if k != "alphabet"}
        self.gpt = GPT(GPTConfig(vocab_size=len(alphabet), **config))
        self.tokenizer = Tokenizer(alphabet)
        self.optim = OptimOptions()
        self.schedule = ScheduleOptions()
        self.generate = GenerateOptions()
        self.generate_seed, self.num_samples = 0, 1
        self.compile_network = False
        self.unigram = None  # the training text's character distribution, for empty prompts
        self.train_loss = CharacterLoss()  # since the last time it was logged
        self.eval_loss = CharacterLoss()
        self.train_piece_loss = CharacterLoss()
        self.gradient_norm: Tensor | None = None
        self.figures: dict[str, float] = {}  # of the last validation or test

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """A file whose weights are the average keeps the raw ones, which training goes on from."""
        if "raw" not in checkpoint[SECTION]:
            return
        if self.device_mesh is not None:  # the strategy has read the average already
            raise UserError("best.ckpt holds averaged weights; sharded, resume from last.ckpt")
        checkpoint["state_dict"] = checkpoint[SECTION]["raw"]

    # Training

    def configure_model(self) -> None:
        """ModelParallelStrategy: each process keeps its share of every block (FSDP2)."""
        if self.device_mesh is None or isinstance(self.gpt, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for part in (*self.gpt.blocks, self.gpt):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)

    def setup(self, stage: str) -> None:
        if self.compile_network and stage == "fit":
            set_up_compiler()
            self.gpt.compile(dynamic=False)  # in place: the state_dict keeps its names

    def configure_optimizers(self) -> MuonAdamW:
        return MuonAdamW(parameter_groups(self.gpt, self.optim), self.compile_network)

    def on_train_start(self) -> None:
        """Today's options hold, also for an optimizer restored from a checkpoint."""
        groups = self.trainer.optimizers[0].param_groups
        for group, fresh in zip(groups, parameter_groups(self.gpt, self.optim), strict=True):
            group.update({k: v for k, v in fresh.items() if k != "params"})

    def window_size(self, batch: int) -> int:
        """How many characters the windows of micro-batch number `batch` have."""
        step = batch // self.trainer.accumulate_grad_batches
        return window_size(step, self.trainer.max_steps, self.hparams.block_size, self.schedule)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Everything random in a step comes from (seed, batch, process), so it can be repeated."""
        loop = self.trainer.fit_loop.epoch_loop
        k = loop.batch_progress.total.processed
        seed = int(random_keys(self.trainer.datamodule.seed, k, self.trainer.global_rank)[0] >> 1)
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)
        groups = self.trainer.optimizers[0].param_groups
        set_rates(groups, self.global_step, self.trainer.max_steps, self.schedule)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        idx, targets = batch
        rows = rows_per_microbatch(*idx.shape)
        whole = rows == len(idx) or self.device.type != "cpu"
        whole |= self.device_mesh is not None  # FSDP2 sums gradients in hooks of its own
        if whole:
            losses = self.losses(idx, targets)
            mean = losses.mean()
        else:
            mean, losses = MicrobatchedLoss.apply(
                self.losses, idx, targets, rows, *self.gpt.parameters()
            )
        self.train_loss.update(losses, targets)
        return mean

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The shared step: nats of each character, (B * T,)."""
        return loss_per_character(self.gpt(idx), targets)

    def logs(self, step: int) -> bool:
        """Whether training is logged after so many steps."""
        return step % self.trainer.log_every_n_steps == 0 or step >= self.trainer.max_steps

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        """Clip as the Trainer's flags say, and keep the norm from before it for the log."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        if gradient_clip_algorithm == "value" and gradient_clip_val:
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        elif self.logs(self.global_step + 1):
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self.eval_loss.reset()
        self.train_piece_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        metric = self.train_piece_loss if dataloader_idx else self.eval_loss
        metric.update(self.losses(*batch), batch[1])

    def on_validation_epoch_end(self) -> None:
        loss = float(self.eval_loss.compute())
        values = {f"val/{name}": value for name, value in loss_metrics(loss).items()}
        if self.train_piece_loss.count:
            values["val/gap"] = loss - float(self.train_piece_loss.compute())
        self.report(values)

    def on_test_epoch_start(self) -> None:
        self.eval_loss.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.eval_loss.update(self.losses(*batch), batch[1])

    def on_test_epoch_end(self) -> None:
        loss = float(self.eval_loss.compute())
        self.report({f"test/{name}": value for name, value in loss_metrics(loss).items()})

    def report(self, values: dict[str, float]) -> None:
        """To callbacks by Lightning's way; to the loggers with the number of steps taken."""
        self.figures = values
        self.log_dict({k: torch.tensor(v) for k, v in values.items()}, logger=False)
        if self.trainer.state.fn == TrainerFn.FITTING:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.global_step)

    # Writing

    def predict_step(self, batch: list[str], batch_idx: int = 0) -> list[str]:
        """Texts for a batch of prompts, prompts included, `num_samples` of each in a row; how to
        choose characters is the attribute `generate`."""
        written = generate_text(
            self.gpt,
            self.tokenizer,
            batch,
            self.generate,
            self.generate_seed,
            self.num_samples,
            self.unigram,
        )
        prompts = [prompt for prompt in batch for _ in range(self.num_samples)]
        return [prompt + text for prompt, text in zip(prompts, written, strict=True)]
