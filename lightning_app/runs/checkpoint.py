"""Checkpoint files: written whole or not at all, and read as data that may be broken or hostile.

A checkpoint is Lightning's dictionary and one section of ours, `lightning_app`, which holds what
the file needs to stand alone. Everything in it is a tensor, a number, a string or a container of
them: it loads with `weights_only=True`.
"""

import errno
import os
import pickletools
import shutil
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.model.gpt import GPT, GPTConfig

CHECKPOINT_FORMAT = 1  # of our section; raise it when older programs could not read a file
SECTION = "lightning_app"
LEGACY_DEFAULTS = {  # of files without these
    "hold_out": "characters",
    "unit": "char",
    "rename": 0.0,
    "data_dir": "data",
    "generate": {},
    "origin": None,  # what file it was started from, "" for none; not known
}
PREVIOUS_NAME = "previous.ckpt"  # the last.ckpt before the newest
POSITIONS_LIMIT = 64 << 20  # bytes of rotary positions that a small file may ask for
PICKLE_LIMIT = 256 << 20  # bytes; what is no tensor takes some kilobytes, an alphabet or a megabyte
ALLOWED_GLOBALS = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
)  # by a pickle of `write_checkpoint`
FORBIDDEN_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
NETWORK_PREFIX = "gpt."  # what the network's weights are called inside the LightningModule


def write_checkpoint(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint whole or not at all; with `previous`, keep the old file under that name.

    Raises OSError for a full disk.
    """
    try:
        with atomic_write(path, previous) as file:
            torch.save(to_plain(state), file)
    except RuntimeError as error:  # torch hides a full disk behind its own error
        if shutil.disk_usage(path.parent).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def to_plain(value: Any) -> Any:
    """The same with bare numbers, strings and containers: parsers and torch hand out subclasses,
    which a safe reader refuses."""
    if isinstance(value, dict):
        return {to_plain(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own str() would name the member
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a checkpoint of this program. Raises UserError for anything else."""
    text = str(path)
    if "://" in text or text.startswith(("http:", "https:", "s3:", "gs:", "hf:")):
        raise UserError(f"{text} is a URL; download the file yourself and give its path")
    if not path.exists():
        raise UserError(f"{path} does not exist; give a checkpoint file, or --run NAME")
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint such as {path}/best.ckpt")
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except Exception as error:
        first = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"{path} is not a checkpoint, or damaged; use another one of the run ({first})"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get(SECTION), dict):
        raise UserError(f"{path} was not written by this program; train with fit to make one")
    version = state[SECTION].get("format")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path} is damaged: it does not say its format")
    if version > CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has format {version}, newer than this program's "
            f"{CHECKPOINT_FORMAT}; update the program"
        )
    section = state[SECTION] = LEGACY_DEFAULTS | state[SECTION]
    if isinstance(section.get("data"), dict):
        section["data"] = LEGACY_DEFAULTS | section["data"]
    return state


def check_archive(path: Path) -> None:
    """Raises ValueError for an archive that `write_checkpoint` does not make.

    Its entries are stored, not compressed, so none is larger than the file says; its pickle names
    tensors and dictionaries and nothing else. `weights_only` alone allows more than a checkpoint
    needs, and an allowed bytearray(10**10) would fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("it is compressed")
        if sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("its entries overlap")
        pickles = [e for e in entries if e.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_LIMIT:
            raise ValueError("it has no single description of its contents")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name == "GLOBAL":
                module, name = argument.split(" ")
                if module == "torch" and name.endswith("Storage"):
                    continue
                if argument not in ALLOWED_GLOBALS:
                    raise ValueError(f"it names {argument[:60]!r}")
            elif opcode.name in FORBIDDEN_OPCODES:
                raise ValueError(f"it uses {opcode.name}")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} is not as it was written")


@dataclass(frozen=True)
class TrainedModel:
    """A network to use, with what its checkpoint says about it."""

    gpt: GPT
    tokenizer: Tokenizer
    info: dict[str, Any]  # our section: data, figures, unigram counts, ...
    hyper_parameters: dict[str, Any]  # CharGPT's

    @property
    def unigram(self) -> np.ndarray:
        """The training text's character distribution, (V,) float64."""
        counts = np.array(self.info["counts"], dtype=np.float64)
        return counts / counts.sum()


class SkipInit(TorchFunctionMode):
    """Leaves new weights as they are: to fill them on the meta device, PyTorch would import its
    compiler, which takes a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))


def load(path: Path) -> TrainedModel:
    """The network in a checkpoint, in evaluation mode: for best.ckpt the weights that made its
    figure, for last.ckpt the average where one is kept. Raises UserError."""
    state = read_checkpoint(path)
    try:
        info, hyper_parameters = state[SECTION], dict(state["hyper_parameters"])
        alphabet = hyper_parameters["alphabet"]
        if not isinstance(alphabet, str):
            raise ValueError("the alphabet is no text")
        config = network_config(hyper_parameters)
        weights = {
            name.removeprefix(NETWORK_PREFIX): weight
            for name, weight in (info.get("average") or state["state_dict"]).items()
        }
        positions = config.block_size * config.head_dim * 4
        if config.n_layer > len(weights) or positions > max(POSITIONS_LIMIT, path.stat().st_size):
            raise ValueError("sizes beyond what the file holds")
        with torch.device("meta"), SkipInit():  # nothing is allocated by the file's numbers
            gpt = GPT(config)
        expected = {name: weight.shape for name, weight in gpt.state_dict().items()}
        if {name: weight.shape for name, weight in weights.items()} != expected:
            raise ValueError("weights and architecture do not match")
        if sum(w.numel() * w.element_size() for w in weights.values()) > path.stat().st_size:
            raise ValueError("weights beyond what the file holds")
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("weights are not finite")
        if len(info["counts"]) != len(alphabet):
            raise ValueError("counts and alphabet do not match")
        if not isinstance(info["generate"], dict):
            raise ValueError("its options for writing are none")
        gpt = GPT(config)
        gpt.load_state_dict(weights)
        tokenizer = Tokenizer(alphabet, info["unit"])
    except (
        *(KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError),
        UserError,
    ) as error:
        first = str(error).split("\n")[0][:120]
        raise UserError(f"{path} is damaged: {first}; use another checkpoint of the run") from None
    return TrainedModel(gpt.eval(), tokenizer, info, hyper_parameters)


def network_config(hyper_parameters: dict[str, Any]) -> GPTConfig:
    """The network's sizes from CharGPT's hyperparameters; numbers only, whatever the file holds."""
    sizes = {f.name: hyper_parameters[f.name] for f in fields(GPTConfig) if f.name != "vocab_size"}
    if not all(value is None or isinstance(value, (int, float)) for value in sizes.values()):
        raise ValueError("a size is not a number")
    return GPTConfig(vocab_size=len(hyper_parameters["alphabet"]), **sizes)


def checkpoint_summary(info: dict[str, Any]) -> str:
    """What a checkpoint says of itself, for messages."""
    loss = info.get("val_loss")
    return f"step {info['step']:,}" + (f", val/loss {loss:.4f}" if loss is not None else "")
