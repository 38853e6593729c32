"""Export of a trained network as a GGUF file, which llama.cpp and programs built on it run.

The architecture is llama.cpp's "qwen3". The tokenizer is its "rwkv": each token is a sequence of
bytes, and the longest one that fits is chosen, so each character (or byte) of the alphabet is one
token. It has no token that begins or ends a text; llama.cpp's other tokenizers need one, and would
take one of our characters for it. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lightning_app.data.encoding import Unit
from lightning_app.errors import UserError
from lightning_app.files import atomic_write
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT, NORM_EPS

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GGUFWeights = Literal["f16", "f32", "q8_0"]
WEIGHT_FORMATS: tuple[GGUFWeights, ...] = get_args(GGUFWeights)
NAMES = {  # ours: llama.cpp's
    "embedding": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "attention_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Programs that chat pass the messages through this template. The network continues texts, it does
# not answer: it is given the messages alone, without names or marks of turns.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# `predict` applies the temperature before the limit; llama.cpp's default order is the reverse.
SAMPLERS = "penalties;temperature;top_k;top_p;min_p"


def llama_cpp_name(name: str) -> str:
    """llama.cpp's name for the weight that is called `name` in our state_dict."""
    part = name.removesuffix(".weight")
    if not part.startswith("blocks."):
        return f"{NAMES[part]}.weight"
    _, layer, part = part.split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.weight"


def token_text(character: str, unit: Unit) -> str:
    r"""A token as the file has it: printable ASCII as it is; the backslash and all other bytes as
    two hexadecimal digits after \x."""
    data = character.encode("latin-1" if unit == "byte" else "utf-8")
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in data)


def stored_weights(
    gpt: GPT, weights: GGUFWeights
) -> Iterator[tuple[str, np.ndarray, "GGMLQuantizationType"]]:
    """Each weight: llama.cpp's name, its numbers as they are stored, and their type.

    Vectors, the gains of the norms, are always float32. With q8_0, 32 numbers in a row share a
    scale; a matrix whose rows do not divide into such blocks is stored in float16.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    for name, weight in gpt.state_dict().items():
        if gpt.config.tie_embeddings and name == "lm_head.weight":
            continue
        array = weight.detach().float().cpu().numpy()
        kind = GGMLQuantizationType[weights.upper()]
        if array.ndim == 1:
            kind = GGMLQuantizationType.F32
        elif array.shape[1] % GGML_QUANT_SIZES[kind][0]:
            kind = GGMLQuantizationType.F16
        yield llama_cpp_name(name), quantize(array, kind), kind


def describe(writer: "GGUFWriter", gpt: GPT, name: str, weights: GGUFWeights) -> None:
    """The metadata of the file and of the network."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    c = gpt.config
    kind = {"f32": "ALL_F32"}.get(weights, f"MOSTLY_{weights.upper()}")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description("A GPT for characters: it continues a text, and does not chat.")
    writer.add_file_type(LlamaFileType[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.mlp_size)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.n_kv_head)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(NORM_EPS)


def add_tokenizer(writer: "GGUFWriter", alphabet: str, unit: Unit) -> None:
    from gguf import TokenType

    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([token_text(c, unit) for c in alphabet])
    writer.add_token_types([TokenType.NORMAL] * len(alphabet))
    writer.add_chat_template(CHAT_TEMPLATE)


def add_sampling(writer: "GGUFWriter", options: GenerateOptions, block_size: int) -> None:
    """The defaults of llama.cpp's programs: the distribution that `predict` draws from.

    `options` are resolved. 0, 1 and 0 switch off top_k, top_p and min_p.
    """
    writer.add_sampling_sequence(SAMPLERS)
    writer.add_sampling_temp(0.0 if options.sampling == "argmax" else options.temperature)
    writer.add_sampling_top_k(options.top_k or 0)
    writer.add_sampling_top_p(1.0 if options.top_p is None else options.top_p)
    writer.add_sampling_min_p(options.min_p or 0.0)
    writer.add_sampling_penalty_repeat(options.repetition_penalty)
    writer.add_sampling_penalty_last_n(block_size)


def export_gguf(
    gpt: GPT,
    alphabet: str,
    path: Path,
    unit: Unit = "char",
    weights: GGUFWeights = "f16",
    options: GenerateOptions | None = None,
) -> None:
    """Write the network to `path`, with its tokenizer and its defaults of sampling (`options`).

    Raises UserError if `path` exists, if the network has n-gram tables, which llama.cpp does not
    have, and if gguf is not installed; OSError if the file cannot be written. It is written to a
    temporary file, then renamed.
    """
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError:
        raise UserError("--format gguf needs gguf: pip install -e '.[export]'") from None
    if gpt.ngrams is not None:
        raise UserError(
            "the network has n-gram tables, which a GGUF file cannot hold; use --format "
            "transformers or page, or train a run with --model.ngram_rows null"
        )
    if os.path.lexists(path):
        raise UserError(f"--to {path} exists; name another file")
    with atomic_write(path) as file:
        writer = GGUFWriter(file.name, "qwen3")
        describe(writer, gpt, path.stem, weights)
        add_tokenizer(writer, alphabet, unit)
        add_sampling(writer, (options or GenerateOptions()).resolve(), gpt.config.block_size)
        for name, array, kind in stored_weights(gpt, weights):
            writer.add_tensor(name, array, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.flush()
        except OSError as error:  # that of numpy says neither the reason nor the file
            if error.errno is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        finally:
            writer.close()
