"""CharDataModule: a text, by name or path, as batches of character windows."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from numpy.typing import NDArray

from lightning_app.data.batches import EvalBatches, TrainBatches, batches_per_pass
from lightning_app.data.encoding import EncodedText, Unit, count_ids
from lightning_app.data.name_replacement import NameReplacer
from lightning_app.data.splits import HoldOut, SplitText, TextSource
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.data.windows import TrainStream, check_window_schedule
from lightning_app.errors import UserError
from lightning_app.lightning_internals import batches_before_epoch, batches_done


class CharDataModule(L.LightningDataModule):
    """Characters of a text as training, validation and test batches of (idx, targets).

    Works with any LightningModule that takes such batches, and without a Trainer. With a Trainer
    that counts epochs, an epoch is one pass over the training text, or the complete run if
    max_steps is less. A batch is a function of the seed and its number alone, so a resumed run
    reads the same characters as one that was never stopped.

    Args:
        corpus: The text: a UTF-8 file, a folder, a glob, or a name (shakespeare,
            tiny_shakespeare, text8, enwik8).
        block_size: Characters the model sees at once (its context).
        batch_size: Windows in a batch, per process. If windows are shorter (window_schedule), a
            batch has more of them, so that the number of characters is the same.
        splits: Fractions of the text for training, validation and test, in this order; the last
            may be left out.
        hold_out: characters: splits are cut at a character; files: at the nearest beginning of a
            file, so that complete files of a folder or glob are held out.
        unit: What has an id: char, a character of UTF-8 text, or byte, a byte of any file; null is
            byte for enwik8 and char for all others.
        replace_names: Probability that a name in a training window is replaced by an invented one,
            the same throughout the window. Names are words that occur often in one fifth of the
            training text and nowhere else; without replacement the model memorises them and
            predicts them where other names occur.
        window_schedule: Pairs [from, size]: from this fraction of the run on, training windows have
            this fraction of block_size, and a batch has more of them. Early in a run short windows
            are enough: attention takes less time, and a batch shows more places of the text.
        data_dir: Folder for downloaded corpora and encoded texts.
        seed: Determines the order of the windows.
        val_gap: In `fit`, also score a part of the training text as long as the validation split,
            as a second validation dataloader (CharGPT logs the difference as val/gap).
        alphabet: Use the ids of this alphabet (a trained network's), which must have every
            character of the text; null is the alphabet of the text.
        eval_stride: Characters that each evaluation window scores, at its end; null is all of them.
        with_begins: Batches of the training text are (idx, targets, begins): also where each window
            begins in the text, (B,), which n-gram tables need to leave out its part of the text.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        block_size: PositiveInt = 128,
        batch_size: PositiveInt = 32,
        splits: list[float] = (0.9, 0.05, 0.05),  # type: ignore[assignment]  # a list in help texts
        hold_out: HoldOut = "characters",
        unit: Unit | None = None,
        replace_names: ClosedUnitInterval = 0.0,
        window_schedule: list[list[float]] = ((0.0, 1.0),),  # type: ignore[assignment]
        data_dir: str = "data",
        seed: int = 1337,
        val_gap: bool = False,
        alphabet: str | None = None,
        eval_stride: int | None = None,
        with_begins: bool = False,
    ) -> None:
        super().__init__()
        self.source = TextSource(str(corpus), splits, hold_out, unit, str(data_dir))
        self.block_size, self.batch_size = block_size, batch_size
        self.replace_names, self.seed, self.val_gap = replace_names, seed, val_gap
        self.window_schedule = [list(pair) for pair in window_schedule]
        check_window_schedule(self.window_schedule, block_size)
        self.eval_stride = eval_stride or block_size
        self.with_begins = with_begins
        self.given_alphabet = alphabet
        self._split_text: SplitText | None = None
        self._id_map: NDArray[np.int64] | None = None

    # The text

    def prepare_data(self) -> None:
        """Build and encode the corpus: one process does this, the others wait for it."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the text. Raises UserError if it is missing, empty or not UTF-8, or if it has
        characters that the given alphabet lacks."""
        if self._split_text is not None:
            return
        split_text = self.source.read()
        text = split_text.text
        if self.given_alphabet not in (None, text.alphabet):
            tokenizer = Tokenizer(self.given_alphabet, text.unit)
            if missing := [c for c in text.alphabet if c not in tokenizer.ids]:
                raise UserError(
                    tokenizer.describe_missing(missing, f"the corpus {self.source.corpus}")
                )
            self._id_map = np.array([tokenizer.ids[c] for c in text.alphabet], dtype=np.int64)
        self._split_text = split_text

    @property
    def split_text(self) -> SplitText:
        """The corpus, encoded, with the boundaries of its splits."""
        self.setup()
        assert self._split_text is not None
        return self._split_text

    @property
    def text(self) -> EncodedText:
        return self.split_text.text

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """First and one-past-last character of each split."""
        return self.split_text.bounds

    @property
    def alphabet(self) -> str:
        """The characters, sorted; a character's index is its id."""
        return self.given_alphabet or self.text.alphabet

    @property
    def unit(self) -> Unit:
        return self.text.unit

    def ids(self, split: str) -> NDArray[np.integer]:
        """The ids of a split ("train", "val" or "test"), (n,)."""
        ids = self.split_text.ids(split)
        return ids if self._id_map is None else self._id_map[ids]

    def counts(self) -> list[int]:
        """How often each character occurs in the training split, (V,): the unigram model."""
        return count_ids(self.ids("train"), len(self.alphabet)).tolist()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores, so that the same data can be found and recognised."""
        return {
            "corpus": self.split_text.corpus.name,
            "folder": os.getcwd(),  # a corpus below it may move together with it
            "splits": self.source.splits,
            "hold_out": self.source.hold_out,
            "unit": self.unit,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
            "data_dir": self.source.data_dir,
            "fingerprint": self.text.fingerprint,
            "characters": len(self.text.ids),
            "counts": self.counts(),
            "bounds": {name: list(bounds) for name, bounds in self.bounds.items()},
        }

    # Batches

    @property
    def running_trainer(self) -> L.Trainer | None:
        """The Trainer while it runs; a run that is over no longer decides what is read."""
        running = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        return self.trainer if running else None

    def check_train_split(self) -> None:
        """Raises UserError if the training split is shorter than one window."""
        train = self.bounds["train"][1]
        if train == 0:
            raise UserError(
                f"the train split is empty (--data.splits {self.source.splits}); give fractions "
                "such as [0.9, 0.05, 0.05]"
            )
        if train <= self.block_size:
            raise UserError(
                f"the corpus {self.source.corpus} is too short: its training split has {train:,} "
                f"characters, and a window takes {self.block_size + 1:,}; use a longer text or a "
                "smaller --data.block_size"
            )

    def train_dataloader(self) -> TrainBatches:
        self.check_train_split()
        trainer = self.running_trainer
        stream = TrainStream(
            seed=self.seed,
            characters=len(self.split_text.ids("train")),
            block_size=self.block_size,
            batch_size=self.batch_size,
            accumulate=trainer.accumulate_grad_batches if trainer else 1,
            processes=trainer.world_size if trainer else 1,
        )
        ids = self.ids("train")
        replacer = None
        if self.replace_names:
            replacer = NameReplacer(ids, self.alphabet, self.unit, self.replace_names, self.seed)
        length = batches_per_pass(stream)
        if trainer is None:
            options: dict[str, Any] = {"replacer": replacer, "with_begins": self.with_begins}
            return TrainBatches(ids, stream, 0, self.window_schedule, -1, length, **options)
        # counts steps, not epochs; and a trial may have more batches than a short text
        trial: int = getattr(trainer, "fast_dev_run", 0)  # set by its connectors
        endless = trainer.check_val_every_n_epoch is None or bool(trial)
        if not endless and trainer.max_steps > 0:
            rest = trainer.max_steps * stream.accumulate - batches_before_epoch(trainer)
            length = max(1, min(length, rest))
        overfit: float = getattr(trainer, "overfit_batches", 0.0)
        return TrainBatches(
            ids,
            stream,
            trainer.global_rank,
            self.window_schedule,
            trainer.max_steps,
            None if endless else length,
            lambda: batches_done(trainer),
            int(overfit) if overfit >= 1 else None,
            replacer,
            self.with_begins,
        )

    def val_dataloader(self) -> EvalBatches | Sequence[EvalBatches]:
        val = self.eval_batches("val")
        trainer = self.running_trainer
        if not self.val_gap or trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return val
        length = min(val.last - val.first, self.bounds["train"][1])
        return [val, replace(self.eval_range(0, length), with_begins=self.with_begins)]

    def test_dataloader(self) -> EvalBatches:
        return self.eval_batches("test")

    def eval_batches(self, split: str) -> EvalBatches:
        """The windows that score a split. Raises UserError if it is empty."""
        first, last = self.bounds[split]
        if last - max(first, 1) < 1:
            remedy = "use `validate`, or give " if split == "test" else "give "
            what = "fractions such as [0.9, 0.05, 0.05]"
            if self.source.hold_out == "files":
                what = "more files, larger fractions, or --data.hold_out characters"
            raise UserError(
                f"the {split} split is empty (--data.splits {self.source.splits}); {remedy}{what}"
            )
        return self.eval_range(first, last)

    def eval_range(self, first: int, last: int) -> EvalBatches:
        """The windows that score the characters first..last-1 of the corpus."""
        trainer = self.running_trainer
        return EvalBatches(
            self.text.ids,
            first,
            last,
            self.block_size,
            self.eval_stride,
            self.batch_size,
            trainer.global_rank if trainer else 0,
            trainer.world_size if trainer else 1,
            self._id_map,
        )
