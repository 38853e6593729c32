"""Laws of checkpoint files: whole or absent, read as data that may be broken or hostile."""

import enum
import errno
import os
import pickle
import shutil
import signal
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from lightning_app.runs.checkpoint import (
    CHECKPOINT_FORMAT,
    LEGACY_DEFAULTS,
    NETWORK_PREFIX,
    RAW_WEIGHTS,
    SECTION,
    checkpoint_summary,
    load,
    read_checkpoint,
    to_plain,
    write_checkpoint,
)
from tests.helpers import ALPHABET, SIZES, refusal, weights
from tests.helpers import random_network as network
from tests.helpers import small_checkpoint as checkpoint


def refused_as_damaged(tmp_path: Path, state: dict) -> str:
    path = tmp_path / "bad.ckpt"
    torch.save(state, path)
    message = refusal(load, path)
    assert str(path) in message
    assert "damaged" in message
    return message


# Writing.


def test_what_is_written_is_read_back(tmp_path):
    state = checkpoint()
    write_checkpoint(state, tmp_path / "a" / "b" / "last.ckpt")
    back = read_checkpoint(tmp_path / "a" / "b" / "last.ckpt")
    for name, weight in state["state_dict"].items():
        assert torch.equal(back["state_dict"].pop(name), weight)
    state["state_dict"] = {}
    assert back == state
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["last.ckpt"]


def of_format_1(state: dict) -> dict:
    """The same checkpoint as version 0.1 wrote it."""
    for name in LEGACY_DEFAULTS:
        state[SECTION].pop(name, None)
    state[SECTION]["format"] = 1
    return state


def test_a_file_of_format_1_says_what_it_meant_without_saying(tmp_path):
    state = of_format_1(checkpoint())
    state[SECTION] |= {"data": {"corpus": "shakespeare"}, "generate": {"top_k": 3}, "rename": 0.7}
    state[SECTION]["schedule"] = {"name": "linear", "windows": [[0, 0.5], [0.5, 1]]}
    state["callbacks"] = {"EarlyStopping{'monitor': 'val/loss'}": {"wait_count": 2}}
    write_checkpoint(state, tmp_path / "old.ckpt")
    back = read_checkpoint(tmp_path / "old.ckpt")
    section = back[SECTION]
    assert (section["unit"], section["replace_names"]) == ("char", 0.7)
    assert section["schedule"] == {"name": "linear"}
    assert section["window_schedule"] == [[0, 0.5], [0.5, 1]]
    assert back["callbacks"]["StopWithoutImprovement{'monitor': 'val/loss'}"] == {"wait_count": 2}
    trained = load(tmp_path / "old.ckpt")
    assert trained.tokenizer.unit == "char"
    assert trained.data["corpus"] == "shakespeare"
    assert trained.generation == {"top_k": 3}


def test_the_file_before_is_kept_under_the_name_asked_for(tmp_path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write_checkpoint({"step": 1}, last, previous)
    assert not previous.exists()
    for step in (2, 3):
        write_checkpoint({"step": step}, last, previous)
        assert torch.load(last) == {"step": step}
        assert torch.load(previous) == {"step": step - 1}


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hidden_full_disk(*args):
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")


def interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "failure", "raised"),
    [
        (torch, full_disk, OSError),
        (torch, hidden_full_disk, OSError),
        (torch, interrupted, KeyboardInterrupt),
        (os, full_disk, OSError),
    ],
)
def test_a_failure_while_saving_leaves_the_old_files_and_nothing_else(
    tmp_path, monkeypatch, where, failure, raised
):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2):
        write_checkpoint({"step": step}, last, previous)

    def save(state, file):
        file.write(b"half a check")
        failure()

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        broken.setattr(*((torch, "save", save) if where is torch else (os, "fsync", failure)))
        with pytest.raises(raised):
            write_checkpoint({"step": 3}, last, previous)
    assert torch.load(last) == {"step": 2}
    assert torch.load(previous) == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("call", "nth"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, call, nth):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2):
        write_checkpoint({"step": step}, last, previous)
    child = os.fork()
    if child == 0:
        real, calls = getattr(os, call), []

        def killed(*args):
            calls.append(args)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        setattr(os, call, killed)
        try:
            write_checkpoint({"step": 3}, last, previous)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # the kill did happen
    newest = last if last.exists() else previous
    assert torch.load(newest) == {"step": 2}
    write_checkpoint({"step": 3}, last, previous)  # and the next one writes over what was left
    assert torch.load(last) == {"step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


class Name(str):
    pass


class Kind(str, enum.Enum):  # noqa: UP042
    WARM = "warm"


class Count(int):
    pass


class Rate(float):
    pass


def test_subclasses_of_plain_values_are_written_plain(tmp_path):
    path = tmp_path / "last.ckpt"
    state = checkpoint() | {
        "rest": defaultdict(
            list, {Name("n"): [Count(3), Rate(0.5), (PositiveInt(2), PositiveFloat(0.1))]}
        ),
        "nested": OrderedDict(a=OrderedDict(b=True, c=None)),
    }
    write_checkpoint(state, path)
    back = torch.load(path, weights_only=True)
    assert back["rest"] == {"n": [3, 0.5, [2, 0.1]]}
    assert back["nested"] == {"a": {"b": True, "c": None}}
    assert type(back["nested"]["a"]["b"]) is bool
    assert type(next(iter(back["rest"]))) is str
    assert [type(value) for value in back["rest"]["n"]] == [int, float, list]


def test_a_string_with_a_face_of_its_own_is_written_as_its_characters():
    # str() of an enumeration's member is the member's name.
    assert to_plain([Kind.WARM]) == ["warm"]
    assert type(to_plain(Kind.WARM)) is str


# Reading.


def test_what_is_not_there_is_said(tmp_path):
    message = refusal(read_checkpoint, tmp_path / "none.ckpt")
    assert f"{tmp_path}/none.ckpt does not exist" in message


def test_a_folder_is_refused_with_a_file_to_try(tmp_path):
    assert f"{tmp_path}/best.ckpt" in refusal(read_checkpoint, tmp_path)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.ckpt", "http://a/b", "s3://bucket/a.ckpt", "hf://a", "gs://a"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_url_is_refused_as_one(url, kind):
    assert "is a URL" in refusal(read_checkpoint, kind(url))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    for content in (b"", b"\x00", b"garbage\nand more", b"PK\x03\x04" + b"x" * 100, b"\x80\x02."):
        path.write_bytes(content)
        assert f"{path} is not a checkpoint" in refusal(read_checkpoint, path)


def test_a_truncated_checkpoint_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(checkpoint(), path)
    whole = path.read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(read_checkpoint, path)


@pytest.mark.parametrize(
    "foreign",
    [
        {"weight": torch.ones(2)},
        {"state_dict": {}, "hyper_parameters": {}},
        {SECTION: [1]},
        [1, 2],
        torch.ones(2),
        None,
    ],
)
def test_another_programs_file_is_refused_as_such(tmp_path, foreign):
    path = tmp_path / "a.ckpt"
    torch.save(foreign, path)
    assert "was not written by this program" in refusal(read_checkpoint, path)


def test_a_newer_format_asks_for_an_update(tmp_path):
    path = tmp_path / "a.ckpt"
    state = checkpoint()
    state[SECTION]["format"] = CHECKPOINT_FORMAT + 1
    torch.save(state, path)
    assert "update" in refusal(read_checkpoint, path)


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.5])
def test_a_format_that_is_none_is_damage(tmp_path, version):
    path = tmp_path / "a.ckpt"
    torch.save({SECTION: {"format": version}}, path)
    assert "damaged" in refusal(read_checkpoint, path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def pickled(state: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(state, protocol=2))


@pytest.mark.parametrize("dump", [torch.save, pickled])
def test_code_in_a_checkpoint_does_not_run(tmp_path, dump):
    marker, path = tmp_path / "ran", tmp_path / "a.ckpt"
    state = {SECTION: {"format": CHECKPOINT_FORMAT}, "payload": Payload(marker)}
    dump(state, path)
    refusal(read_checkpoint, path)
    refusal(load, path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(state))
    assert marker.exists()  # the payload is a live one


# A network to use.


@pytest.mark.parametrize(
    "sizes", [{}, {"tie_embeddings": True}, {"n_kv_head": 1}, {"n_layer": 3}, {"mlp_size": None}]
)
def test_a_loaded_network_gives_the_same_logits(tmp_path, sizes):
    gpt = network(1, **sizes).eval()
    write_checkpoint(checkpoint(gpt, **sizes), tmp_path / "a.ckpt")
    trained = load(tmp_path / "a.ckpt")
    idx = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0]])
    assert torch.equal(trained.gpt(idx), gpt(idx))
    assert not trained.gpt.training  # dropout is off
    assert trained.tokenizer.alphabet == ALPHABET
    assert trained.info["step"] == 10


def test_of_a_file_of_format_1_the_average_is_what_is_used(tmp_path):
    raw, average = network(1), network(2).eval()
    state = of_format_1(checkpoint(raw))
    state[SECTION]["average"] = weights(average)
    write_checkpoint(state, tmp_path / "last.ckpt")
    idx = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(load(tmp_path / "last.ckpt").gpt(idx), average(idx))
    back = read_checkpoint(tmp_path / "last.ckpt")[RAW_WEIGHTS]
    assert all(torch.equal(back[name], w) for name, w in weights(raw).items())


def test_the_raw_weights_in_best_are_not_what_is_used(tmp_path):
    raw, average = network(1), network(2).eval()
    state = checkpoint(average)
    state[RAW_WEIGHTS] = weights(raw)
    write_checkpoint(state, tmp_path / "best.ckpt")
    idx = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(load(tmp_path / "best.ckpt").gpt(idx), average(idx))


def test_the_unigram_model_is_the_share_of_each_character(tmp_path):
    write_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    unigram = load(tmp_path / "a.ckpt").unigram
    assert unigram.tolist() == [count / 16 for count in (3, 0, 5, 1, 1, 2, 4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = checkpoint()
    state["state_dict"][f"{NETWORK_PREFIX}norm.weight"][3] = value
    assert "not finite" in refused_as_damaged(tmp_path, state)


def lose(state):
    del state["state_dict"][f"{NETWORK_PREFIX}norm.weight"]


def add(state):
    state["state_dict"][f"{NETWORK_PREFIX}more"] = torch.ones(1)


def turn(state):
    name = f"{NETWORK_PREFIX}blocks.0.mlp.gate_proj.weight"
    state["state_dict"][name] = state["state_dict"][name].T


def stretch(state):  # would broadcast
    state["state_dict"][f"{NETWORK_PREFIX}norm.weight"] = torch.ones(1)


def replace(state):
    state["state_dict"][f"{NETWORK_PREFIX}norm.weight"] = "ones"


@pytest.mark.parametrize("damage", [lose, add, turn, stretch, replace])
def test_weights_that_are_not_the_architectures_are_refused(tmp_path, damage):
    state = checkpoint()
    damage(state)
    refused_as_damaged(tmp_path, state)


@pytest.mark.parametrize("size", ["n_layer", "n_embd", "mlp_size"])
def test_sizes_that_are_not_the_weights_are_refused(tmp_path, size):
    state = checkpoint()
    state["hyper_parameters"][size] *= 2
    assert "do not match" in refused_as_damaged(tmp_path, state)


@pytest.mark.parametrize(
    ("size", "value"),
    [("n_layer", "2"), ("n_embd", "8"), ("n_layer", [1]), ("n_layer", 1.5), ("n_head", {})],
)
def test_sizes_that_are_no_numbers_are_refused(tmp_path, size, value):
    state = checkpoint()
    state["hyper_parameters"][size] = value
    refused_as_damaged(tmp_path, state)


@pytest.mark.parametrize("size", ["n_layer", "n_head", "block_size", "dropout"])
def test_sizes_that_no_network_has_are_refused_in_one_line(tmp_path, size):
    state = checkpoint()
    state["hyper_parameters"][size] = -1
    torch.save(state, tmp_path / "bad.ckpt")
    assert size in refusal(load, tmp_path / "bad.ckpt")


@pytest.mark.parametrize("missing", ["state_dict", "hyper_parameters"])
def test_a_checkpoint_without_a_part_is_refused(tmp_path, missing):
    state = checkpoint()
    del state[missing]
    assert missing in refused_as_damaged(tmp_path, state)


@pytest.mark.parametrize("name", ["alphabet", *SIZES])
def test_a_checkpoint_without_a_hyperparameter_is_refused(tmp_path, name):
    state = checkpoint()
    del state["hyper_parameters"][name]
    assert name in refused_as_damaged(tmp_path, state)


@pytest.mark.parametrize(
    "alphabet",
    [ALPHABET[::-1], "\n aacé天", ALPHABET[:-1], ALPHABET + "😀", "", 7, None],
    ids=["unsorted", "repeated", "short", "long", "empty", "number", "none"],
)
def test_an_alphabet_that_cannot_be_the_networks_is_refused(tmp_path, alphabet):
    state = checkpoint()
    state["hyper_parameters"]["alphabet"] = alphabet
    torch.save(state, tmp_path / "bad.ckpt")
    refusal(load, tmp_path / "bad.ckpt")


@pytest.mark.parametrize("counts", [[1, 2], [], 7])
def test_counts_of_another_alphabet_are_refused(tmp_path, counts):
    state = checkpoint()
    state[SECTION]["counts"] = counts
    refused_as_damaged(tmp_path, state)


def test_a_checkpoint_says_its_step_and_figure():
    assert checkpoint_summary({"step": 1234, "val_loss": 1.46973}) == (
        "step 1,234, val/loss 1.4697"
    )
    assert checkpoint_summary({"step": 5, "val_loss": None}) == "step 5"
