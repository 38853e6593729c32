"""Batches of character windows, as iterables that work with a Trainer and without one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_app.data.name_replacement import NameReplacer
from lightning_app.data.windows import (
    TrainStream,
    WindowSchedule,
    count_eval_windows,
    eval_batch,
    train_batch,
    window_size,
    windows_per_epoch,
)
from lightning_app.errors import UserError

# idx, targets: int64 (B, T) each; a target of -1 is padding. With `with_begins` also where each
# window begins in the text, (B,).
Batch = tuple[Tensor, ...]


@dataclass
class TrainBatches:
    """Training micro-batches of one process, an epoch at a time.

    The content of a micro-batch depends on its number alone, so a resumed run reads the same
    characters as one that was never stopped. An epoch begins with micro-batch number `position()`,
    or where the last one ended; a loop without a Trainer can save that place with `state_dict`.
    """

    ids: NDArray  # of the training text
    stream: TrainStream
    process: int  # of stream.processes
    schedule: WindowSchedule
    max_steps: int  # of the run, for the schedule; -1 if not known
    length: int | None  # micro-batches in an epoch; None for an endless one
    position: Callable[[], int] | None = None  # number of the micro-batch that comes next
    cycle: int | None = None  # repeat this many micro-batches, the first ones
    replacer: NameReplacer | None = None
    with_begins: bool = False
    next_batch: int = 0  # number of the micro-batch that comes next, without `position`

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the stream of training batches is endless")
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        k = self.next_batch if self.position is None else self.position()
        end = None if self.length is None else k + self.length
        while end is None or k < end:
            self.next_batch = k + 1
            yield self.batch(k)
            k += 1

    def state_dict(self) -> dict[str, Any]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_batch = state["next_batch"]

    def batch(self, k: int) -> Batch:
        """Micro-batch number k of this process."""
        s = self.stream
        size = window_size(k // s.accumulate, self.max_steps, s.block_size, self.schedule)
        step, micro_batch = divmod(k % self.cycle if self.cycle else k, s.accumulate)
        windows, keys = train_batch(self.ids, s, step, micro_batch, self.process, size)
        if self.replacer is not None:
            self.replacer.replace(windows, keys)
        pair = torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])
        # those of the windows of block_size that they are parts of
        return (*pair, torch.from_numpy(keys)) if self.with_begins else pair


def check_batch(batch: Batch, block_size: int, vocab_size: int, check_ids: bool) -> None:
    """Raises UserError for a batch that a network of these sizes cannot read.

    `check_ids` also looks at the ids, which waits for an accelerator.
    """
    idx, targets = batch[:2]
    if idx.ndim != 2 or idx.shape != targets.shape:
        raise UserError(
            f"a batch has idx {tuple(idx.shape)} and targets {tuple(targets.shape)}; both must "
            "be (rows, characters)"
        )
    if idx.size(1) > block_size:
        raise UserError(
            f"a batch has windows of {idx.size(1):,} characters, more than the network's "
            f"block_size {block_size:,}"
        )
    if not check_ids:
        return
    lowest = min(int(idx.min()), int(targets.min()) + 1)  # a target may be -1
    highest = max(int(idx.max()), int(targets.max()))
    if lowest < 0 or highest >= vocab_size:
        found = highest if highest >= vocab_size else min(int(idx.min()), int(targets.min()))
        raise UserError(
            f"a batch has the id {found}, but the alphabet has {vocab_size:,} characters, with "
            f"ids from 0 to {vocab_size - 1:,}; a target of -1 is not scored"
        )


def batches_per_pass(stream: TrainStream) -> int:
    """How many micro-batches read the training text about once: at least one complete step."""
    windows = windows_per_epoch(stream.characters, stream.block_size)
    per_step = stream.batch_size * stream.processes * stream.accumulate
    return max(1, windows // per_step) * stream.accumulate


@dataclass
class EvalBatches(Sequence[Batch]):
    """The characters first..last-1 of a text in consecutive windows, each scored exactly once.

    Batches are given to the processes in turn. All processes have the same number; the last batches
    are padded.
    """

    ids: NDArray  # of the text, all splits
    first: int
    last: int
    block_size: int
    stride: int  # characters that a window scores, at its end
    batch_size: int
    process: int = 0
    processes: int = 1
    id_map: NDArray[np.int64] | None = None  # (V of the text,): the network's ids
    with_begins: bool = False

    def __len__(self) -> int:
        count = count_eval_windows(self.first, self.last, self.stride)
        return -(-count // (self.batch_size * self.processes))

    @overload
    def __getitem__(self, i: int) -> Batch: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Batch]: ...
    def __getitem__(self, i: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        row = (i * self.processes + self.process) * self.batch_size
        rows = np.arange(row, row + self.batch_size)
        idx, targets, begins = eval_batch(
            self.ids, self.first, self.last, self.block_size, self.stride, rows
        )
        if self.id_map is not None:
            idx, targets = self.id_map[idx], np.where(targets < 0, -1, self.id_map[targets])
        pair = torch.from_numpy(idx), torch.from_numpy(targets)
        return (*pair, torch.from_numpy(begins)) if self.with_begins else pair
