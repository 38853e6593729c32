"""CharDataModule: a text, by name or path, as batches of character windows."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from lightning_app.data.encoding import EncodedText, Unit, count_ids
from lightning_app.data.name_replacement import NameReplacer
from lightning_app.data.splits import HoldOut, check_shares, split_text
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.data.windows import count_eval_windows, eval_batch, read_windows, train_starts
from lightning_app.errors import UserError

Batch = tuple[Tensor, Tensor]  # idx, targets: int64 (B, T) each; target -1 is padding
AHEAD = 4096  # window starts computed at a time: one by one would cost a millisecond a batch


class TrainBatches:
    """The endless stream of training batches, from where the trainer stands on.

    What a step reads is decided by its number, whatever happened before; its micro-batches and
    processes take a slice of that each. A micro-batch is batch_size * block_size characters in
    windows of the size that the module's schedule gives it. Short ones are pieces of windows of
    block_size: a group of as many steps as a window has pieces takes the first piece of all their
    windows, then the second, and so on. So a step reads from many places, and an epoch still has
    every character once.
    """

    def __init__(self, data: "CharDataModule") -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        data, trainer = self.data, self.data.trainer
        ids, window_size = data.split("train"), trainer.lightning_module.window_size
        renamer = None
        if data.rename:
            renamer = NameReplacer(ids, data.alphabet, data.unit, data.rename, data.seed)
        k = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        accumulate = trainer.accumulate_grad_batches
        cycle = int(trainer.overfit_batches) if trainer.overfit_batches >= 1 else None
        while True:
            size = window_size(k)
            pieces = data.block_size // size
            length = pieces * accumulate  # micro-batches of a group
            first = k - k % length
            groups = max(1, AHEAD // (data.batch_size * trainer.world_size * length))
            starts = self.starts(first, groups, length)
            while k < first + groups * length and window_size(k) == size:
                group, n = starts[(k - first) // length], k
                if cycle:  # the Trainer's overfit_batches: the same few batches over and over
                    n = k % cycle
                    (group,) = self.starts(n - n % length, 1, length)
                piece, part = divmod(n % length, accumulate)
                mine = group.reshape(accumulate, trainer.world_size, -1)[part, trainer.global_rank]
                window = read_windows(ids, mine + piece * size, size)
                if renamer:
                    renamer.replace(window, mine)
                yield torch.from_numpy(window[:, :-1]), torch.from_numpy(window[:, 1:])
                k += 1

    def starts(self, first: int, groups: int, length: int) -> NDArray[np.int64]:
        """Where the windows of block_size of groups of `length` micro-batches start, from number
        `first` on: (groups, windows of a group), of all processes."""
        data = self.data
        n, global_size = len(data.split("train")), data.batch_size * data.trainer.world_size
        starts = train_starts(data.seed, first, global_size, data.block_size, n, groups * length)
        return starts.reshape(groups, -1)


class EvalBatches:
    """A stretch of the corpus in windows side by side, each character scored once.

    Processes take turns; all make the same number of batches, the last ones padded.
    """

    def __init__(self, data: "CharDataModule", first: int, last: int) -> None:
        self.data, self.first, self.last = data, first, last

    def __len__(self) -> int:
        count = count_eval_windows(self.first, self.last, self.data.eval_stride)
        return -(-count // (self.data.batch_size * self.data.trainer.world_size))

    def __iter__(self) -> Iterator[Batch]:
        data, trainer = self.data, self.data.trainer
        for i in range(len(self)):
            row = (i * trainer.world_size + trainer.global_rank) * data.batch_size
            rows = np.arange(row, row + data.batch_size)
            idx, targets = eval_batch(
                data.text.ids, self.first, self.last, data.block_size, data.eval_stride, rows
            )
            if data.ids_of is not None:
                idx, targets = data.ids_of[idx], np.where(targets < 0, -1, data.ids_of[targets])
            yield torch.from_numpy(idx), torch.from_numpy(targets)


class CharDataModule(L.LightningDataModule):
    """Characters of a text as training, validation and test windows.

    Args:
        corpus: The text: a UTF-8 file, a folder, a glob, or a name (shakespeare,
            tiny_shakespeare, text8, enwik8).
        block_size: Characters the model sees at once (its context).
        batch_size: Windows in a batch, per process; of shorter ones (--schedule.windows) it takes
            as many as make the same number of characters.
        splits: Shares of the text for training, validation and test, in this order; the last may
            be left out.
        hold_out: Whether splits are cut between characters, or where the nearest file begins: whole
            files of a folder or glob are then held out.
        unit: What a text is cut into: char, or byte, which takes any file as it is; null is byte
            for enwik8, else char.
        rename: How often a name is replaced by an invented one while training, the same throughout
            a window. Names are words that stand often in one fifth of the training text, and
            nowhere else; learned by heart they are expected where other names stand.
        data_dir: Where corpora and their encoded form are kept.
        seed: Decides the order of the windows.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        block_size: PositiveInt = 128,
        batch_size: PositiveInt = 32,
        splits: list[float] = (0.9, 0.05, 0.05),  # a list on the command line
        hold_out: HoldOut = "characters",
        unit: Unit | None = None,
        rename: ClosedUnitInterval = 0.0,
        data_dir: str = "data",
        seed: int = 1337,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.block_size = block_size
        self.batch_size = batch_size
        self.splits = list(splits)
        self.hold_out = hold_out
        self.unit = unit
        self.rename = rename
        self.data_dir = data_dir
        self.seed = seed
        check_shares(self.splits)
        self.eval_stride = block_size  # characters each evaluation window scores
        self.text: EncodedText | None = None
        self.ids_of: np.ndarray | None = None  # the network's id for each of the text's

    def prepare_data(self) -> None:
        """Build and encode the corpus (one process at a time; the others find it done)."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if self.text is not None:
            return
        divided = split_text(self.corpus, self.splits, self.hold_out, self.unit, self.data_dir)
        self.name, self.text, self.bounds = divided.found.name, divided.text, divided.bounds
        self.unit = self.text.unit

    def check_trainable(self) -> None:
        """Raises UserError when the training or validation split has no room for a window."""
        self.setup()
        train = self.bounds["train"][1]
        if train == 0:
            raise UserError(
                f"the train split is empty (--data.splits {self.splits}); give shares such as "
                "[0.9, 0.05, 0.05]"
            )
        if train <= self.block_size:
            raise UserError(
                f"the corpus {self.corpus} is too short: its training split has {train:,} "
                f"characters, and a window takes {self.block_size + 1:,}; use a longer text or a "
                f"smaller --data.block_size"
            )
        self.eval_batches("val")

    def read_as(self, alphabet: str) -> None:
        """Use a trained network's ids, which may know more characters. Raises UserError when the
        text has others."""
        self.setup()
        tokenizer = Tokenizer(alphabet, self.unit)
        if missing := [c for c in self.text.alphabet if c not in tokenizer.ids]:
            raise UserError(tokenizer.describe_missing(missing, f"the corpus {self.corpus}"))
        if alphabet != self.text.alphabet:
            self.ids_of = np.array([tokenizer.ids[c] for c in self.text.alphabet], dtype=np.int64)

    @property
    def alphabet(self) -> str:
        self.setup()
        return self.text.alphabet

    def split(self, name: str) -> np.ndarray:
        first, last = self.bounds[name]
        return self.text.ids[first:last]

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps, to find and to recognise the same data again."""
        return {
            "corpus": self.name,
            "splits": self.splits,
            "hold_out": self.hold_out,
            "unit": self.unit,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
            "data_dir": self.data_dir,
            "fingerprint": self.text.fingerprint,
            "characters": len(self.text.ids),
        }

    def counts(self) -> list[int]:
        """How often each character stands in the training split, (V,): the unigram model."""
        return count_ids(self.split("train"), len(self.text.alphabet)).tolist()

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self)

    def val_dataloader(self) -> list[EvalBatches]:
        """The validation split, and while fitting an equally long piece of the training split."""
        batches = [self.eval_batches("val")]
        if self.trainer.state.fn == TrainerFn.FITTING:
            length = min(batches[0].last - batches[0].first, self.bounds["train"][1])
            batches.append(EvalBatches(self, 0, length))
        return batches

    def test_dataloader(self) -> list[EvalBatches]:
        return [self.eval_batches("test")]

    def eval_batches(self, name: str) -> EvalBatches:
        first, last = self.bounds[name]
        if last - max(first, 1) < 1:
            remedy = "use `validate`, or give " if name == "test" else "give "
            what = "shares such as [0.9, 0.05, 0.05]"
            if self.hold_out == "files":
                what = "more files, larger shares, or --data.hold_out characters"
            raise UserError(
                f"the {name} split is empty (--data.splits {self.splits}); {remedy}{what}"
            )
        return EvalBatches(self, first, last)
