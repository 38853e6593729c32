"""Files made to do harm: each is refused in a line, runs nothing, and stays small in memory."""

import copy
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_app.runs.checkpoint import NETWORK_PREFIX, RAW_WEIGHTS, SECTION, write_checkpoint
from tests.helpers import ALPHABET, SIZES, main_in, python_prints, write_inputs
from tests.helpers import small_checkpoint as checkpoint

HOSTILE: dict[str, Callable[[Path], None]] = {}


def hostile(make: Callable[[Path], None]) -> Callable[[Path], None]:
    HOSTILE[make.__name__] = make
    return make


def named(name: str, make: Callable[[Path], None]) -> None:
    HOSTILE[name] = make


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Marks(Calls):
    """Unpickled, it leaves a file called `ran` in the working folder."""

    def __init__(self) -> None:
        super().__init__(os.open, "ran", os.O_CREAT)


# Objects where numbers belong.

for place in ("top", "section", "hyper_parameters", "state_dict", "weights", "loops"):

    def code(path: Path, place: str = place) -> None:
        state = checkpoint()
        holder = {
            "top": state,
            "section": state[SECTION],
            "hyper_parameters": state["hyper_parameters"],
            "state_dict": state["state_dict"],
            "weights": state,
            "loops": state.setdefault("loops", {}),
        }[place]
        holder["state_dict" if place == "weights" else "payload"] = Marks()
        torch.save(state, path)

    named(f"code_in_{place}", code)

for protocol in range(6):

    def bare_pickle(path: Path, protocol: int = protocol) -> None:
        path.write_bytes(pickle.dumps({SECTION: {"format": 1}, "x": Marks()}, protocol))

    named(f"bare_pickle_protocol_{protocol}", bare_pickle)

for function, arguments in (
    (bytearray, (10**11,)),
    (eval, ("open('ran', 'w')",)),
    (exec, ("open('ran', 'w')",)),
    (getattr, ("", "join")),
    (torch.load, ("other.ckpt",)),
    (torch.zeros, (10**11,)),
    (torch.hub.load, ("x/y", "z")),
    (OrderedDict, ([("a", 1)],)),
    (__import__, ("antigravity",)),
):

    def called(path: Path, function=function, arguments=arguments) -> None:
        torch.save(checkpoint() | {"payload": Calls(function, *arguments)}, path)

    if function is not OrderedDict:  # harmless, and allowed
        named(f"calls_{function.__name__}", called)


# Absurd sizes.

for name, value in (
    ("n_layer", 10**9), ("n_embd", 1 << 40), ("mlp_size", 10**12), ("block_size", 1 << 40),
    ("block_size", 10**7), ("n_head", 0), ("n_embd", -8), ("n_layer", 1.5), ("dropout", 2),
    ("dropout", float("nan")), ("rope_theta", float("inf")), ("n_head", "8"), ("n_layer", None),
    ("ngram_rows", [20]), ("ngram_rows", [1 << 40]), ("ngram_rows", [1 << 24] * 16),
    ("ngram_rows", [8] * 10**6), ("ngram_rows", ["8"]), ("ngram_rows", 8), ("ngram_rows", [-8]),
):  # fmt: skip

    def size(path: Path, name: str = name, value=value) -> None:
        write_checkpoint(
            checkpoint() | {"hyper_parameters": {"alphabet": ALPHABET, **SIZES, name: value}}, path
        )

    named(f"{name}_{str(value)[:30]}", size)


# N-gram tables that would be read outside of their entries.

for name, place, value in (
    ("starts", 5, 10**6), ("starts", -1, 10**6), ("characters", 3, 200), ("counts", 3, -1),
):  # fmt: skip

    def table(path: Path, name: str = name, place: int = place, value: int = value) -> None:
        state = checkpoint(ngram_rows=[20])
        state["state_dict"][f"gpt.ngrams.{name}"][place] = value
        write_checkpoint(state, path)

    named(f"ngram_{name}_{place}", table)


@hostile
def ngram_counts_that_are_stretched(path: Path) -> None:
    state = checkpoint(ngram_rows=[20])
    for name in ("characters", "counts"):
        table = state["state_dict"][f"gpt.ngrams.{name}"]
        state["state_dict"][f"gpt.ngrams.{name}"] = table[:1].expand(1 << 40)
    torch.save(state, path)


@hostile
def weights_that_are_one_number_stretched_over_terabytes(path: Path) -> None:
    width = 1 << 21
    sizes = {**SIZES, "n_embd": width, "mlp_size": width}
    weights = {}
    for name, w in checkpoint()["state_dict"].items():
        shape = [width if n in (8, 16) and name.count("norm") < 2 else n for n in w.shape]
        weights[name] = torch.ones(1).expand(shape)
    state = checkpoint() | {"state_dict": weights}
    torch.save(state | {"hyper_parameters": {"alphabet": ALPHABET, **sizes}}, path)


@hostile
def an_alphabet_of_one_character_ten_million_times(path: Path) -> None:
    state = checkpoint()
    state["hyper_parameters"]["alphabet"] = "a" * 10**7
    write_checkpoint(state, path)


@hostile
def an_alphabet_that_is_a_list(path: Path) -> None:
    state = checkpoint()
    state["hyper_parameters"]["alphabet"] = list(ALPHABET)
    write_checkpoint(state, path)


@hostile
def counts_that_are_a_tensor_stretched(path: Path) -> None:
    state = checkpoint()
    state[SECTION]["counts"] = torch.ones(1).expand(10**12)
    torch.save(state, path)


# What a careless loader would build.

for key, value in (
    ("class_path", "os.system"),
    ("_instantiator", "lightning.pytorch.cli.instantiate_module"),
    ("_class_path", "subprocess.Popen"),
    ("_target_", "builtins.exec"),
):

    def build(path: Path, key: str = key, value: str = value) -> None:
        state = checkpoint()
        state["hyper_parameters"]["n_layer"] = {key: value, "init_args": {"command": "touch ran"}}
        write_checkpoint(state, path)

    named(f"builds_by_{key}", build)


# Damage.

for key, value in (("nan", float("nan")), ("infinity", float("inf"))):

    def not_finite(path: Path, value: float = value) -> None:
        state = checkpoint()
        state["state_dict"][f"{NETWORK_PREFIX}norm.weight"].data[3] = value
        write_checkpoint(state, path)

    named(f"weights_that_are_{key}", not_finite)

for share in (0.0, 0.01, 0.3, 0.9, 0.999):

    def cut(path: Path, share: float = share) -> None:
        write_checkpoint(checkpoint(), path)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    named(f"cut_at_{share}", cut)

for seed in range(4):

    def flipped(path: Path, seed: int = seed) -> None:
        """One bit in a weight."""
        state = checkpoint()
        write_checkpoint(state, path)
        data = bytearray(path.read_bytes())
        weight = state["state_dict"][f"{NETWORK_PREFIX}lm_head.weight"].detach().numpy().tobytes()
        rng = random.Random(seed)
        data[data.index(weight) + rng.randrange(len(weight))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    named(f"a_bit_flipped_{seed}", flipped)


@hostile
def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(100_000))


@hostile
def zeros(path: Path) -> None:
    path.write_bytes(bytes(100_000))


@hostile
def a_text(path: Path) -> None:
    path.write_text("ROMEO:\n" * 1000)


@hostile
def a_zip_without_anything(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def repacked(path: Path, change: Callable[[str, bytes], bytes], **options) -> None:
    write_checkpoint(checkpoint(), path)
    with zipfile.ZipFile(path) as archive:
        entries = [(e.filename, archive.read(e)) for e in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries:
            archive.writestr(name, change(name, data))


@hostile
def a_bomb_of_zeros(path: Path) -> None:
    def grow(name: str, data: bytes) -> bytes:
        return data + bytes(1 << 28) if name.endswith("/data/0") else data

    repacked(path, grow, compression=zipfile.ZIP_DEFLATED)


@hostile
def a_pickle_that_never_ends(path: Path) -> None:
    repacked(path, lambda name, data: data[:-1] if name.endswith(".pkl") else data)


@hostile
def a_pickle_with_a_memo_of_terabytes(path: Path) -> None:
    def grow(name: str, data: bytes) -> bytes:
        return b"\x80\x02Nr\xff\xff\xff\x7f." if name.endswith(".pkl") else data

    repacked(path, grow)


@hostile
def weights_larger_than_their_record(path: Path) -> None:
    def shrink(name: str, data: bytes) -> bytes:
        return data[:4] if "/data/" in name and name.rsplit("/", 1)[1].isdigit() else data

    repacked(path, shrink)


@hostile
def torchscript(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


CODE = """
import json, resource, sys, time
from pathlib import Path
import torch
from lightning_app.runs.checkpoint import load
from lightning_app.errors import UserError
before, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in sorted(Path("files").iterdir()):
    began = time.perf_counter()
    try:
        load(path)
        line = "LOADED"
    except UserError as error:
        line = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told[path.stem] = (line, grown, time.perf_counter() - began)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, tuple[str, float, float]]:
    """What loading each file in a process of its own led to: the line, megabytes, seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    for name, make in HOSTILE.items():
        make(folder / "files" / f"{name}.ckpt")
    printed = python_prints(CODE, folder)
    assert not (folder / "ran").exists()
    return json.loads(printed)


def test_there_are_many_of_them():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_a_line_that_names_it(told, name):
    line, grown, seconds = told[name]
    assert line != "LOADED"
    assert "\n" not in line
    assert f"{name}.ckpt" in line
    assert grown < 500  # megabytes, by any file until then
    assert seconds < 20


@pytest.mark.parametrize("command", ["predict", "validate", "test", "export", "fit"])
@pytest.mark.parametrize("name", ["code_in_section", "calls_bytearray", "n_layer_1000000000"])
def test_every_command_refuses_them(folder, main, command, name):
    HOSTILE[name](folder / "bad.ckpt")
    arguments = {"export": ["--to", "out"], "fit": ["--config", "tiny.yaml"]}.get(command, [])
    option = "--init_from" if command == "fit" else "--ckpt_path"
    done = main(command, option, "bad.ckpt", *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "bad.ckpt" in done.err.strip().split("\n")[-1]
    assert not (folder / "ran").exists()


# What only a resumed run reads.


def stretch(state: dict) -> None:
    moments = state["optimizer_states"][0]["state"]
    key = next(iter(moments[0]))
    moments[0][key] = torch.zeros(1).expand(10**12)


def poison(state: dict) -> None:
    moments = state["optimizer_states"][0]["state"]
    moments[0][next(iter(moments[0]))].fill_(float("nan"))


def change(*keys, to) -> Callable[[dict], None]:
    def act(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to

    return act


FIT = ("fit", "--config", "tiny.yaml", "--optim.average_decay", "0.9", "--trainer.max_steps")


@pytest.fixture(scope="module")
def last(tmp_path_factory) -> dict:
    """The last.ckpt of a run of two steps."""
    folder = tmp_path_factory.mktemp("spoilt")
    write_inputs(folder)
    assert main_in(folder, *FIT, "2").code == 0
    return torch.load(folder / "logs/tiny/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "spoil",
    [
        stretch,
        poison,
        change("optimizer_states", to=[]),
        change("optimizer_states", to="all"),
        change("optimizer_states", 0, "state", to={}),
        change("optimizer_states", 0, "param_groups", to=[{}]),
        change("state_dict", to={}),
        change("loops", to={}),
        change("loops", "fit_loop", to=[1, 2]),
        change("callbacks", to=7),
        change(RAW_WEIGHTS, to={"a": 1}),
        change(SECTION, "train_loss", to=[1]),
        change(SECTION, "best", to=3),
        change("state_dict", f"{NETWORK_PREFIX}norm.weight", to=torch.full((16,), float("inf"))),
        change("state_dict", f"{NETWORK_PREFIX}norm.weight", to=torch.zeros(1).expand(10**12)),
    ],
)
def test_a_run_does_not_resume_from_a_spoilt_state(folder, main, last, spoil):
    state = copy.deepcopy(last)
    spoil(state)
    path = folder / "logs/tiny/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    before = path.read_bytes()
    done = main(*FIT, 4)
    assert done.code == 2
    assert "Traceback" not in done.err
    error = done.err.strip().split("\n")[-1]
    assert error.startswith("error: ")
    assert "last.ckpt is damaged" in error
    assert path.read_bytes() == before


def test_a_run_resumes_from_the_state_that_was_not_spoilt(folder, main, last):
    path = folder / "logs/tiny/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(last, path)
    done = main(*FIT, 4)
    assert done.code == 0, done.err
    assert "resuming tiny at step 2 of 4" in done.err
