"""Export of a trained network as one HTML page that generates text in any current browser.

The page has everything in it: the weights (int8, gzip, in base64), the alphabet, and an engine in
WebAssembly with a fallback in JavaScript. It loads nothing and sends nothing, and it works from a
disk. Its network, its rule for long texts, its distribution and its random numbers are those of
`predict --weights int8`: float32 for embedding, head, and the vectors and gates of n-gram tables,
int8 for all other matrices. Sums run in another order, which moves logits by about 1e-5, so a seed
gives the same text.

The JavaScript in engine/ computes and knows nothing of the page; interface/ is the page.
"""

import base64
import gzip
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_app.data.encoding import cache_folder
from lightning_app.data.tokenizer import KEYBOARD
from lightning_app.errors import UserError
from lightning_app.evaluation.baselines import stored_baselines
from lightning_app.files import atomic_write
from lightning_app.generation.cpu_engine import as_array, pack_weights
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT
from lightning_app.runs.checkpoint import TrainedModel

FOLDER = Path(__file__).parent
ENGINE = ("kernel", "network", "random", "sampling", "tokenizer", "session")
INTERFACE = ("controls", "text_view", "inspector", "about", "main")
ALIGNMENT = 16  # bytes; vectors are read 16 bytes at a time
MAX_BYTES = 380_000_000  # of weights: in base64 they must fit in a browser's longest string


def export_page(trained: TrainedModel, to: Path) -> None:
    """Write the page to a new file. Raises UserError if `to` exists."""
    if to.exists():
        raise UserError(f"--to {to} exists; name another file")
    page = page_html(trained).encode()
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(to) as file:
        file.write(page)


def page_html(trained: TrainedModel) -> str:
    """The page of a trained network.

    Raises UserError for a network that is too large for a page.
    """
    tensors, weights = pack_tensors(trained.gpt)
    if len(weights) > MAX_BYTES:
        raise UserError(
            f"the network has {len(weights):,} bytes of weights, and a page can have "
            f"{MAX_BYTES:,}; export it in another format"
        )
    engine, style = engine_source(), read_part("style.css")
    interface = "\n".join(read_part(f"interface/{name}.js") for name in INTERFACE)
    parts = {
        "policy": content_policy([engine, interface], style),
        "title": html.escape(page_title(trained)),
        "style": style,
        "model": json_for_html(model_description(trained, tensors)),
        "weights": zipped(weights),
        "kernel": base64.b64encode((FOLDER / "engine" / "kernel.wasm").read_bytes()).decode(),
        "engine": engine,
        "interface": interface,
    }
    # In one pass: a part may contain what looks like the name of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read_part("page.html"))


def zipped(weights: bytes) -> str:
    """The weights as the page holds them: gzip, in base64. N-gram counts become half as long."""
    return base64.b64encode(gzip.compress(weights, compresslevel=6, mtime=0)).decode()


def read_part(name: str) -> str:
    """A source file of the page."""
    return (FOLDER / name).read_text(encoding="utf-8")


def engine_source() -> str:
    """The JavaScript that computes; it needs no page."""
    return "\n".join(read_part(f"engine/{name}.js") for name in ENGINE)


def content_policy(scripts: list[str], style: str) -> str:
    """The Content-Security-Policy: the page's own scripts and style, a worker made from them,
    WebAssembly, and nothing from anywhere else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {' '.join(map(source, scripts))} 'wasm-unsafe-eval'; "
        f"worker-src blob:; style-src {source(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def json_for_html(value: Any) -> str:
    """JSON that can stand in a script element: it contains no `<`, whatever the strings are."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def pack_tensors(gpt: GPT) -> tuple[dict[str, int], bytes]:
    """The offset of each tensor in the weights, and the weights: little-endian, row by row."""
    packed = pack_weights(gpt, "int8")
    arrays: dict[str, NDArray] = {}
    arrays["embedding"], arrays["head"] = packed.embedding, packed.head
    for name in ("qkv", "o", "gate_up", "down"):
        arrays[name] = getattr(packed, name)
        arrays[f"{name}_scale"] = getattr(packed, f"{name}_scale")
    arrays["q_gain"], arrays["k_gain"] = packed.q_gain, packed.k_gain
    if gpt.ngrams is not None:
        index = np.dtype(f"u{index_bytes(gpt)}")
        arrays["ngram_vectors"], arrays["ngram_gates"] = packed.ngram_vectors, packed.ngram_gates
        arrays["ngram_lengths"] = np.diff(packed.ngram_starts).astype(index)  # entries of each row
        arrays["ngram_characters"] = packed.ngram_characters.astype(index)
        arrays["ngram_shares"] = packed.ngram_shares
    offsets, weights = {}, bytearray()
    for name, array in arrays.items():
        offsets[name] = len(weights)
        weights += array.astype(array.dtype.newbyteorder("<")).tobytes()
        weights += bytes(-len(weights) % ALIGNMENT)
    return offsets, bytes(weights)


def index_bytes(gpt: GPT) -> int:
    """The bytes of a number from 0 to the number of characters."""
    return next(size for size in (1, 2, 4) if gpt.config.vocab_size < 256**size)


def model_description(trained: TrainedModel, tensors: dict[str, int]) -> dict[str, Any]:
    """What the page knows about the network besides its weights; strings are not escaped."""
    gpt, tokenizer = trained.gpt, trained.tokenizer
    c = gpt.config
    alphabet = [ord(character) for character in tokenizer.alphabet]
    codes = [] if gpt.ngrams is None else as_array(gpt.ngrams.codes).tolist()
    options = GenerateOptions().updated(**trained.generation).resolve()
    return {
        "sizes": {
            "vocab": c.vocab_size,
            "blockSize": c.block_size,
            "layers": c.n_layer,
            "heads": c.n_head,
            "kvHeads": c.n_kv_head,
            "embd": c.n_embd,
            "mlp": c.mlp_size,
            "ropeTheta": c.rope_theta,
            "ngramSizes": [] if gpt.ngrams is None else list(gpt.ngrams.sizes),
            "ngramRows": [] if gpt.ngrams is None else list(gpt.ngrams.rows),
            "ngramEntries": 0 if gpt.ngrams is None else len(gpt.ngrams.counts),
            "indexBytes": index_bytes(gpt),
        },
        "tensors": tensors,
        "codes": codes,  # of the characters, for n-gram tables
        "alphabet": alphabet,
        "unit": tokenizer.unit,
        "keyboard": KEYBOARD,
        "counts": trained.info["counts"],
        "options": {
            "sampling": options.sampling,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "min_p": options.min_p,
            "repetition_penalty": options.repetition_penalty,
            "max_new_tokens": options.max_new_tokens,
        },
        "about": about(trained),
    }


def page_title(trained: TrainedModel) -> str:
    """The name of the training text, without its folder: a page is shown to others."""
    corpus = trained.data.get("corpus") or trained.info.get("corpus") or "a text"
    return Path(str(corpus)).name or str(corpus)


def about(trained: TrainedModel) -> dict[str, Any]:
    """Facts about the network, from its checkpoint; what is not known is None. Losses are in bits
    per character, or per byte."""
    info, config = trained.info, trained.gpt.config
    loss = info.get("val_loss")
    return {
        "text": page_title(trained),
        "parameters": sum(p.numel() for p in trained.gpt.parameters()),
        "steps": info.get("step"),
        "characters": trained.data.get("characters"),
        "bits": None if loss is None else loss / math.log(2),
        "unigram_bits": unigram_bits(info["counts"]),
        "uniform_bits": math.log2(config.vocab_size),
        "baselines": baseline_bits(trained.data),
    }


def baseline_bits(data: dict[str, Any]) -> list[tuple[str, float]]:
    """Names and losses of the n-grams and compressors that `validate` or `inspect` has measured on
    the validation text, in this folder; none if they have not."""
    bounds = data.get("bounds")  # missing before version 0.2
    if not bounds:
        return []
    folder = cache_folder(Path(data["data_dir"]) / "cache", data["fingerprint"])
    found = stored_baselines(folder, tuple(bounds["train"]), tuple(bounds["val"]))
    known = ("uniform", "unigram")  # from the checkpoint
    results = [b for b in found.results if b.name not in known] if found else []
    return [(b.name, b.nats / math.log(2)) for b in results if b.nats is not None]


def unigram_bits(counts: list[int] | None) -> float | None:
    """The entropy of the training text's characters: the loss of guessing by frequency alone."""
    if counts is None or not sum(counts):
        return None
    p = np.array(counts, dtype=np.float64) / sum(counts)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())
