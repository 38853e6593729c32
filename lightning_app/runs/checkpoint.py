"""Checkpoint files: written completely or not at all, and read without executing anything in them.

A checkpoint is Lightning's dictionary with one section of ours, `lightning_app`, so that the file
can be used without its config and its text. Everything in it is a tensor, a number, a string or a
container of them: it loads with `weights_only=True`.
"""

import errno
import glob
import os
import pickletools
import secrets
import shutil
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_app.data.splits import TextSource
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.generation.generate import generate_text
from lightning_app.generation.history import unigram_distribution
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT, GPTConfig
from lightning_app.torch_internals import SkipInit

CHECKPOINT_FORMAT = 2  # raise it if an older version could not read a new file, or read it wrongly
SECTION = "lightning_app"
DATA = "CharDataModule"  # where Lightning keeps the datamodule's state
# In a run with averaged weights, the weights from which training resumes; the state_dict is the
# average. Lightning's WeightAveraging callback has the same layout.
RAW_WEIGHTS = "current_model_state"
LEGACY_DEFAULTS = {  # values of keys that a file of format 1 may lack
    "hold_out": "characters",
    "unit": "char",
    "replace_names": 0.0,
    "window_schedule": [[0.0, 1.0]],
    "origin": None,  # not known; else the file that the run was started from, or ""
}
RENAMED = {"rename": "replace_names", "figures": "metrics"}  # in our section, since format 2
PREVIOUS_NAME = "previous.ckpt"  # the last.ckpt before the newest
POSITIONS_LIMIT = 64 << 20  # bytes of rotary positions allowed for a smaller file
PICKLE_LIMIT = 256 << 20  # bytes; everything except tensors takes kilobytes, at most a megabyte
ALLOWED_GLOBALS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
FORBIDDEN_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
NETWORK_PREFIX = "gpt."  # of the network's weights inside the LightningModule
CORRUPT_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


def write_checkpoint(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint completely or not at all; `previous` is a new name for the old file.

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
    """A copy of `value` with plain numbers, strings and containers.

    Parsers and torch return subclasses of these, which `weights_only=True` refuses to load.
    """
    if isinstance(value, dict):
        return {to_plain(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own str() would name the member
    for plain in (bool, int, float):
        if isinstance(value, plain):
            return plain(value)
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
        raise UserError(f"{path} is damaged: its format is missing")
    if version > CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has format {version}, newer than this program's "
            f"{CHECKPOINT_FORMAT}; update the program"
        )
    upgrade(state)
    return state


def upgrade(state: dict[str, Any]) -> None:
    """Convert a checkpoint of format 1 to the present format, in place."""
    section = state.get(SECTION)
    if not isinstance(section, dict) or section.get("format") != 1:
        return
    section["format"] = CHECKPOINT_FORMAT
    for old, new in RENAMED.items():
        if old in section:
            section[new] = section.pop(old)
    if isinstance(schedule := section.get("schedule"), dict) and "windows" in schedule:
        section["window_schedule"] = schedule.pop("windows")
    for name, value in LEGACY_DEFAULTS.items():
        section.setdefault(name, value)
    if isinstance(data := section.pop("data", None), dict):
        state[DATA] = data  # what it lacks are the defaults of TextSource
    if isinstance(arguments := state.get("hyper_parameters"), dict):
        arguments["generation"] = section.pop("generate", {})
    average, raw = section.pop("average", None), section.pop("raw", None)
    if average is not None and "state_dict" in state:  # missing where the strategy has loaded it
        state[RAW_WEIGHTS] = state["state_dict"] if raw is None else raw
        state["state_dict"] = average
    if isinstance(callbacks := state.get("callbacks"), dict):
        for key in [k for k in callbacks if str(k).startswith("EarlyStopping{")]:
            callbacks.setdefault(f"StopWithoutImprovement{key[13:]}", callbacks[key])


def check_archive(path: Path) -> None:
    """Raises ValueError for an archive that `write_checkpoint` cannot have written.

    Its entries are stored without compression, so they cannot be larger than the file, and its
    pickle names the functions that restore tensors and dictionaries, and no others. `weights_only`
    alone allows more than a checkpoint needs: bytearray(10**10) would fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("it is compressed")
        if sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("its entries overlap")
        pickles = [e for e in entries if e.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_LIMIT:
            raise ValueError("it must contain exactly one pickle, of a normal size")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name == "GLOBAL":
                named = str(argument)
                module, name = named.split(" ")
                if module == "torch" and name.endswith("Storage"):
                    continue
                if named not in ALLOWED_GLOBALS:
                    raise ValueError(f"it names {named[:60]!r}")
            elif opcode.name in FORBIDDEN_OPCODES:
                raise ValueError(f"it uses {opcode.name}")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} has a wrong checksum")


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, ready to generate, and the information in its checkpoint."""

    gpt: GPT
    tokenizer: Tokenizer
    info: dict[str, Any]  # our section: step, val_loss, metrics, ...
    arguments: dict[str, Any]  # of CharGPT, those that define the network
    data: dict[str, Any]  # CharDataModule's state; empty if another datamodule was used
    generation: dict[str, Any]  # default options
    path: Path | None = None  # the file

    @property
    def unigram(self) -> np.ndarray | None:
        """The training text's distribution of characters, (V,) float64, or None if not known."""
        return unigram_distribution(self.info["counts"])

    def source(self, **given: Any) -> TextSource:
        """The text that the network was trained on; `given` values replace those of the checkpoint.

        Raises UserError if the checkpoint does not name a text and none is given.
        """
        if not self.data and "corpus" not in given:
            raise UserError("the checkpoint does not name its text; give --data.corpus")
        if "corpus" not in given and isinstance(corpus := self.data.get("corpus"), str):
            given["corpus"] = self.find_text(corpus)
        return TextSource.of(self.data | {"unit": self.tokenizer.unit} | given)

    def find_text(self, corpus: str) -> str:
        """Where the text is now that in training was `corpus`: a name, an absolute path or a glob.

        A text below the folder in which `fit` ran is looked for at the same place below the folder
        whose logs/ has the checkpoint, then where it was, then below the working folder.
        """
        folder = self.data.get("folder")
        if self.path is None or not isinstance(folder, str):
            return corpus
        if not Path(corpus).is_relative_to(folder):
            return corpus
        relative = Path(corpus).relative_to(folder)
        parents = Path(os.path.abspath(self.path)).parents  # checkpoints, the run, logs, ...
        own = [str(parents[3])] if len(parents) > 3 and parents[2].name == "logs" else []
        for place in (*own, folder, os.getcwd()):
            path = os.path.join(place, relative)
            if os.path.exists(path) or glob.glob(path, recursive=True):
                return path
        return corpus

    def generate(self, prompt: str = "", *, seed: int | None = None, **options: Any) -> str:
        """The prompt and its continuation by the network.

        `options` are those of GenerateOptions (max_new_tokens, temperature, sampling, top_k, top_p,
        min_p, repetition_penalty, stop); they replace the run's own. The same seed gives the same
        text; without a seed the text is random. Raises UserError for characters outside the
        alphabet, and for options that are out of range or contradict each other.
        """
        chosen = GenerateOptions().updated(**self.generation).updated(**options)
        seed = secrets.randbelow(2**32) if seed is None else seed
        (text,) = generate_text(
            self.gpt, self.tokenizer, [prompt], chosen, seed, unigram=self.unigram
        )
        return prompt + text


def load(path: str | Path) -> TrainedModel:
    """The network in a checkpoint of a run, or of a plain ModelCheckpoint, in evaluation mode.

    Its weights are those with which the checkpoint was validated: the average, if there is one. No
    code in the file is executed, and Lightning is not imported. Raises UserError for a file that is
    missing, damaged or not of this program.
    """
    path = Path(path)
    state = read_checkpoint(path)
    try:
        arguments = network_arguments(state)
        config = network_config(arguments)
        weights = {n.removeprefix(NETWORK_PREFIX): w for n, w in state["state_dict"].items()}
        positions = config.block_size * config.head_dim * 4
        if config.n_layer > len(weights) or positions > max(POSITIONS_LIMIT, path.stat().st_size):
            raise ValueError("the sizes need more weights than the file has")
        with torch.device("meta"), SkipInit():  # allocates nothing: the sizes may be wrong
            gpt = GPT(config)
            if gpt.ngrams is not None:
                gpt.ngrams.allocate(weights["ngrams.counts"].numel())
        expected = {name: weight.shape for name, weight in gpt.state_dict().items()}
        if {name: weight.shape for name, weight in weights.items()} != expected:
            raise ValueError("weights and architecture do not match")
        if sum(w.numel() * w.element_size() for w in weights.values()) > path.stat().st_size:
            raise ValueError("the weights need more bytes than the file has")
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("weights are not finite")
        data, info = state.get(DATA) or {}, state[SECTION]
        info.setdefault("counts", data.get("counts"))  # format 1 has them with the data
        if info["counts"] is not None and len(info["counts"]) != config.vocab_size:
            raise ValueError("counts and alphabet do not match")
        generation = state["hyper_parameters"].get("generation") or {}
        if not isinstance(generation, dict):
            raise ValueError("its options of generation are not a mapping")
        gpt = GPT(config)
        gpt.load_state_dict(weights)
        tokenizer = Tokenizer(arguments["alphabet"], arguments["unit"])
    except (*CORRUPT_ERRORS, AssertionError, UserError) as error:
        first = str(error).split("\n")[0][:120]
        raise UserError(f"{path} is damaged: {first}; use another checkpoint of the run") from None
    return TrainedModel(gpt.eval(), tokenizer, info, arguments, data, generation, path)


def network_arguments(state: dict[str, Any]) -> dict[str, Any]:
    """The arguments of CharGPT that define the network, from a checkpoint's dictionary.

    Raises one of CORRUPT_ERRORS if they are missing or of the wrong type.
    """
    given, section = state["hyper_parameters"], state[SECTION]
    numbers = [f.name for f in fields(GPTConfig) if f.name not in ("vocab_size", "ngram_rows")]
    sizes = {name: given[name] for name in numbers}
    if not all(value is None or isinstance(value, (int, float)) for value in sizes.values()):
        raise ValueError("a size is not a number")
    sizes["ngram_rows"] = rows = given.get("ngram_rows")  # missing before version 0.2
    if rows is not None and not all(isinstance(n, int) for n in rows):
        raise ValueError("the rows of a table are not a number")
    if not isinstance(given["alphabet"], str):
        raise ValueError("the alphabet is not a text")
    return {"alphabet": given["alphabet"], "unit": given.get("unit") or section["unit"], **sizes}


def network_config(arguments: dict[str, Any]) -> GPTConfig:
    """The sizes of the network, from what `network_arguments` returned."""
    sizes = {k: v for k, v in arguments.items() if k not in ("alphabet", "unit")}
    return GPTConfig(vocab_size=len(arguments["alphabet"]), **sizes)


def checkpoint_summary(info: dict[str, Any]) -> str:
    """The step and the validation loss of a checkpoint, for messages."""
    loss = info.get("val_loss")
    return f"step {info['step']:,}" + (f", val/loss {loss:.4f}" if loss is not None else "")
