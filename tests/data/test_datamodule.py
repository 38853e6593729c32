"""Laws of the data: the stream of training batches, evaluation, other alphabets."""

import re
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from lightning_app.data.datamodule import CharDataModule
from lightning_app.data.windows import train_starts
from tests.helpers import refusal

# Every three characters in a row occur once, so a window tells where it lies.
TEXT = "".join(chr(97 + i % 26) + chr(65 + i // 26) + chr(97 + i // 7 % 26) for i in range(200))


@pytest.fixture
def make(tmp_path):
    """A CharDataModule on a text of one's own."""

    def make(text: str = TEXT, **options) -> CharDataModule:
        file = tmp_path / "corpus.txt"
        file.write_text(text, encoding="utf-8", newline="")
        options = {"block_size": 8, "batch_size": 4, "seed": 1} | options
        return CharDataModule(str(file), data_dir=str(tmp_path / "data"), **options)

    return make


def trainer(
    world_size=1,
    global_rank=0,
    processed=0,
    overfit_batches=0.0,
    fn=TrainerFn.FITTING,
    accumulate=1,
):
    """As much of a Trainer as data looks at."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=processed))
    return SimpleNamespace(
        max_steps=100,
        check_val_every_n_epoch=None,
        world_size=world_size,
        global_rank=global_rank,
        overfit_batches=overfit_batches,
        accumulate_grad_batches=accumulate,
        state=SimpleNamespace(fn=fn, status=TrainerStatus.RUNNING),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )


def train_batches(module: CharDataModule, count: int, **of_trainer) -> torch.Tensor:
    """Inputs and targets of the next batches, (count, B, 2, T)."""
    module.setup()
    module.trainer = trainer(**of_trainer)
    return torch.stack([torch.stack(b, 1) for b in islice(module.train_dataloader(), count)])


# Before training.


def test_nothing_is_read_before_setup():
    CharDataModule("no/such/corpus", data_dir="/no/such/folder")


def test_a_text_too_short_to_train_on_is_refused_with_both_sizes(make):
    message = refusal(make(TEXT[:1000], block_size=1500, splits=[0.9, 0.1]).check_train_split)
    assert "540 characters" in message
    assert "1,501" in message
    assert "--data.block_size" in message


def test_the_smallest_training_split_is_a_block_and_one_character(make):
    make(TEXT[:20], block_size=9, splits=[0.5, 0.5]).check_train_split()
    refusal(make(TEXT[:20], block_size=10, splits=[0.5, 0.5]).check_train_split)


def test_an_empty_validation_split_is_refused(make):
    message = refusal(make(splits=[1.0]).val_dataloader)
    assert "val split is empty (--data.splits [1.0])" in message
    assert "[0.9, 0.05, 0.05]" in message


def test_an_empty_test_split_is_refused_naming_validate(make):
    module = make(splits=[0.9, 0.1])
    module.check_train_split()
    message = refusal(module.test_dataloader)
    assert "test split is empty (--data.splits [0.9, 0.1])" in message
    assert "`validate`" in message


# Training.


def test_targets_are_the_inputs_shifted_by_one_and_come_from_the_training_split(make):
    module = make(splits=[0.5, 0.5])
    batches = train_batches(module, 50)
    assert batches.dtype == torch.int64
    assert batches.shape == (50, 4, 2, 8)
    x, y = batches.unbind(2)
    assert (x[..., 1:] == y[..., :-1]).all()
    text = TEXT[:300]
    for window in torch.cat((x, y[..., -1:]), -1).flatten(0, 1):
        assert "".join(module.alphabet[i] for i in window) in text


def test_training_batch_k_is_global_batch_k(make):
    module = make()
    for k, batch in enumerate(train_batches(module, 20)):
        starts = train_starts(1, k, 4, 8, 540)
        assert batch[:, 0, 0].tolist() == module.text.ids[starts].tolist()


def test_one_process_with_batch_8_sees_what_two_with_batch_4_see(make):
    alone = train_batches(make(batch_size=8), 40)
    two = [train_batches(make(), 40, world_size=2, global_rank=rank) for rank in range(2)]
    assert (torch.cat(two, 1) == alone).all()
    assert not (two[0] == two[1]).all()


@pytest.mark.parametrize("processed", [1, 7, 100])
def test_the_stream_goes_on_where_the_trainer_stands(make, processed):
    unbroken = train_batches(make(), processed + 5)
    assert (train_batches(make(), 5, processed=processed) == unbroken[processed:]).all()


def test_another_seed_is_another_order(make):
    assert not (train_batches(make(), 1) == train_batches(make(seed=2), 1)).all()


def test_overfit_batches_repeats_the_first_batches(make):
    first = train_batches(make(), 3)
    cycled = train_batches(make(), 7, overfit_batches=3, processed=4)
    for j, batch in enumerate(cycled, 4):
        assert (batch == first[j % 3]).all()


def test_each_process_reads_its_share_of_short_windows_and_of_replaced_names(make):
    text = "\n".join(f"{'ABCDE'[i // 80] * 3} and {'KLMNO'[i // 80] * 3}" for i in range(400))
    options = {"replace_names": 0.7, "window_schedule": [[0, 0.5], [0.1, 1]], "splits": [1.0]}
    alone = train_batches(make(text, batch_size=8, **options), 10)
    two = [train_batches(make(text, **options), 10, world_size=2, global_rank=i) for i in range(2)]
    assert alone.shape == (10, 16, 2, 4)
    assert (torch.cat(two, 1) == alone).all()
    options["replace_names"] = 0
    assert not (alone == train_batches(make(text, batch_size=8, **options), 10)).all()


def test_counts_are_the_characters_of_the_training_split(make):
    module = make(splits=[0.5, 0.5])
    module.setup()
    assert module.counts() == [TEXT[:300].count(c) for c in module.alphabet]
    assert module.counts() != [TEXT.count(c) for c in module.alphabet]


# Evaluation.


def test_processes_share_the_windows_of_a_split(make):
    module = make()
    whole = module.val_dataloader()
    for rank in range(2):
        module.trainer = trainer(2, rank, fn=TrainerFn.VALIDATING)
        share = module.val_dataloader()
        for i in range(len(share)):
            if 2 * i + rank < len(whole):
                assert torch.equal(share[i][1], whole[2 * i + rank][1])


def test_with_val_gap_a_training_sample_as_long_as_validation_is_scored_too_while_fitting(make):
    module = make(splits=[0.8, 0.2], val_gap=True)
    module.setup()
    module.trainer = trainer()
    val, train = module.val_dataloader()
    assert (val.first, val.last) == (480, 600)
    assert (train.first, train.last) == (0, 120)
    module.trainer = trainer(fn=TrainerFn.VALIDATING)
    val = module.val_dataloader()
    assert (val.first, val.last) == (480, 600)


def test_without_val_gap_validation_is_one_dataloader(make):
    module = make(splits=[0.8, 0.2])
    module.trainer = trainer()
    assert module.val_dataloader().first == 480


def test_that_sample_never_leaves_the_training_split(make):
    module = make(splits=[0.2, 0.8], val_gap=True)
    module.setup()
    module.trainer = trainer()
    _, train = module.val_dataloader()
    assert (train.first, train.last) == (0, 120)


# Another network's alphabet.


def test_another_alphabet_gives_its_ids_and_keeps_padding(make):
    own, mapped = (
        list(make("acab" * 5, splits=[0.5, 0.5], alphabet=alphabet).val_dataloader())
        for alphabet in (None, "\nabcé")
    )
    for (idx, targets), (mapped_idx, mapped_targets) in zip(own, mapped, strict=True):
        assert (mapped_idx == idx + 1).all()
        assert (mapped_targets[targets >= 0] == targets[targets >= 0] + 1).all()
        assert (mapped_targets[targets < 0] == -1).all()
        assert (targets < 0).any()
        assert mapped_targets.dtype == mapped_idx.dtype == torch.int64


def test_characters_that_another_alphabet_lacks_are_refused_by_name(make):
    message = refusal(make("naïve 天", alphabet=" aenv").setup)
    assert "'ï' (U+00EF LATIN SMALL LETTER I WITH DIAERESIS)" in message
    assert "U+5929" in message
    assert "corpus.txt" in message


def test_the_refusal_names_no_position_but_the_characters_in_the_corpus(make):
    # Once the place in the alphabet was given as if it were one in the text.
    message = refusal(make("aaaaaaaaaaaé", alphabet="a").setup)
    assert re.findall(r"position (\d+)", message) in ([], ["11"])


# Without a Trainer, and by epochs.


def test_without_a_trainer_an_epoch_is_one_pass_over_the_training_text(make):
    module = make(splits=[0.9, 0.1])
    batches = list(module.train_dataloader())
    assert len(batches) == len(module.train_dataloader()) == (540 - 8) // 8 // 4
    expected = train_batches(make(splits=[0.9, 0.1]), len(batches))
    assert (torch.stack([torch.stack(b, 1) for b in batches]) == expected).all()


@pytest.mark.parametrize(("max_steps", "length"), [(1000, 16), (10, 10), (-1, 16)])
def test_an_epoch_of_a_trainer_is_a_pass_or_the_rest_of_the_run(make, max_steps, length):
    module = make(splits=[0.9, 0.1])
    module.trainer = trainer()
    module.trainer.max_steps, module.trainer.check_val_every_n_epoch = max_steps, 1
    counters = SimpleNamespace(processed=0, ready=0)
    module.trainer.fit_loop.epoch_progress = SimpleNamespace(current=counters)
    assert len(module.train_dataloader()) == length


# What a checkpoint keeps.


def test_the_description_finds_and_recognises_the_same_data_again(make):
    module = make(splits=[0.8, 0.2])
    module.setup()
    kept = module.state_dict()
    names = ("corpus", "splits", "hold_out", "unit", "block_size", "batch_size")
    options = {name: kept[name] for name in names}
    again = CharDataModule(**options, data_dir=module.source.data_dir)
    again.setup()
    assert again.state_dict() == kept
    assert again.bounds == module.bounds
    changed = make(TEXT + "!", splits=[0.8, 0.2])
    changed.setup()
    assert changed.state_dict()["fingerprint"] != kept["fingerprint"]


def test_a_corpus_is_described_by_a_path_that_does_not_depend_on_the_folder_one_is_in(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(TEXT)
    module = CharDataModule("corpus.txt", data_dir="data")
    module.setup()
    assert module.state_dict()["corpus"] == str(tmp_path / "corpus.txt")
