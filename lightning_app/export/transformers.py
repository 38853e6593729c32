"""Export of a trained network as a folder that `transformers` opens.

The network is Qwen3's dense decoder, so its weights only need Qwen3's names, and no custom code.
Only a network with n-gram tables needs more: the folder then has a copy of modeling_char_gpt.py.
The tokenizer, in the format of the `tokenizers` library, has one token per character.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_app.data.encoding import Unit
from lightning_app.errors import UserError
from lightning_app.model.gpt import GPT, NORM_EPS

WEIGHT_PREFIXES = {  # ours: Qwen3's
    "embedding.": "model.embed_tokens.",
    "lm_head.": "lm_head.",
    "blocks.": "model.layers.",
    "norm.": "model.norm.",
    "ngrams.": "model.ngrams.",
}
BLOCK_PARTS = {
    ".attention_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attention.": ".self_attn.",
}
MODELING_FILE = Path(__file__).with_name("modeling_char_gpt.py")
MODELING_CLASSES = {  # in that file, by the class of transformers that opens the folder
    "AutoConfig": "CharGPTConfig",
    "AutoModel": "CharGPTModel",
    "AutoModelForCausalLM": "CharGPTForCausalLM",
}
# Texts that programs encode whatever the alphabet is: transformers if `generate` is given
# stop_strings, and mlx_lm when it loads the folder. If the alphabet lacks one of the characters of
# such a text, the text is a token, with an id that the network does not have.
PROBES = ("abcdef", "a ,b")


def qwen3_name(name: str) -> str:
    """Qwen3's name for the weight that is called `name` in our state_dict."""
    for ours, theirs in BLOCK_PARTS.items():
        name = name.replace(ours, theirs)
    prefix = next(ours for ours in WEIGHT_PREFIXES if name.startswith(ours))
    return WEIGHT_PREFIXES[prefix] + name.removeprefix(prefix)


def model_config(gpt: GPT) -> dict[str, Any]:
    """The contents of config.json."""
    c = gpt.config
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.n_embd,
        "intermediate_size": c.mlp_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.block_size,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": c.rope_theta,  # for transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},  # for 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": c.tie_embeddings,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if gpt.ngrams is not None:
        config |= {
            "architectures": [MODELING_CLASSES["AutoModelForCausalLM"]],
            "model_type": "char_gpt_ngrams",
            "auto_map": {k: f"{MODELING_FILE.stem}.{v}" for k, v in MODELING_CLASSES.items()},
            "ngram_rows": list(c.ngram_rows),
            "ngram_entries": len(gpt.ngrams.counts),
        }
    return config


def printable_bytes() -> dict[int, str]:
    """The character that `tokenizers` writes for each byte.

    A printable byte is written as itself; the others are numbered from code point 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def first_character(alphabet: str) -> str:
    """The character that `generate` of transformers starts a text with if there is no prompt."""
    return next((c for c in "\n " if c in alphabet), alphabet[0])


def padding_character(alphabet: str, unit: Unit, counts: Sequence[int] | None) -> str | None:
    """The character that fills the shorter rows of a batch, where the attention mask is 0.

    It is the rarest, because programs that use transformers often ignore the padding id where it is
    text too. It differs from the first character, because a pipeline masks the padding id in a text
    without a prompt. With unit "byte" it is visible ASCII: `tokenizers` searches the text for it,
    not the bytes. None if the alphabet has no such character.
    """
    allowed = [i for i, c in enumerate(alphabet) if c != first_character(alphabet)]
    if unit == "byte":
        allowed = [i for i in allowed if "!" <= alphabet[i] <= "~"]
    occurrences = counts or [0] * len(alphabet)
    return alphabet[min(allowed, key=lambda i: occurrences[i])] if allowed else None


def write_tokenizer(
    alphabet: str, unit: Unit, folder: Path, block_size: int, pad: str | None
) -> None:
    """Write tokenizer.json and tokenizer_config.json to `folder`.

    Each code point is a token, or each byte; decoding joins them without spaces. Rows are padded
    with `pad` and truncated on the left, so that a prompt keeps its end. A character outside the
    alphabet is an error of `tokenizers`, whose message is fixed and cannot name the character.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    split: Any = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    decoder: Any = decoders.Fuse()
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    if unit == "byte":
        printable = printable_bytes()
        vocabulary = {printable[ord(c)]: i for i, c in enumerate(alphabet)}
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split, decoder = pre_tokenizers.Sequence([as_bytes, split]), decoders.ByteLevel()
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoder
    if pad is not None:  # not special: special tokens are left out of decoded texts
        tokenizer.add_tokens([AddedToken(pad, normalized=False, special=False)])
    probes = [probe for probe in PROBES if not set(probe) <= set(alphabet)]
    tokenizer.add_tokens([AddedToken(p, normalized=False, special=False) for p in probes])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
        "pad_token": pad,
        "added_tokens_decoder": {},  # without it, transformers makes the padding token special
        "padding_side": "left",
        "truncation_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def exported_weights(gpt: GPT) -> dict[str, Tensor]:
    """The contents of model.safetensors, in float32; of n-gram tables, integers as they are, and
    the shares of the counts in place of the counts."""
    weights = gpt.state_dict()
    if gpt.config.tie_embeddings:
        del weights["lm_head.weight"]
    if gpt.ngrams is not None:
        del weights["ngrams.counts"]
        weights["ngrams.shares"] = gpt.ngrams.shares / 255
        weights["ngrams.characters"] = weights["ngrams.characters"].int()
    return {
        qwen3_name(name): (w.float() if w.is_floating_point() else w).detach().contiguous().cpu()
        for name, w in weights.items()
    }


def export_transformers(
    gpt: GPT,
    alphabet: str,
    folder: Path,
    unit: Unit = "char",
    counts: Sequence[int] | None = None,
) -> None:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files; with
    n-gram tables also modeling_char_gpt.py.

    The weights are written in float32. `counts` (V,) are the numbers of occurrences of the
    characters in the training text, if known; the rarest pads batches. `folder` must not exist or
    must be empty. Raises UserError for another folder, and if safetensors or tokenizers is not
    installed.
    """
    try:
        import tokenizers  # noqa: F401
        from safetensors.torch import save_file
    except ModuleNotFoundError:
        raise UserError(
            "export needs safetensors and tokenizers: pip install -e '.[export]'"
        ) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder} exists and is not an empty folder; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(exported_weights(gpt), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model_config(gpt), indent=2))
    if gpt.ngrams is not None:
        shutil.copyfile(MODELING_FILE, folder / MODELING_FILE.name)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
    # A padding id here would mask that character in every prompt given without an attention mask.
    sampling |= {"eos_token_id": None, "pad_token_id": None}
    sampling["bos_token_id"] = alphabet.index(first_character(alphabet))
    (folder / "generation_config.json").write_text(json.dumps(sampling, indent=2))
    pad = padding_character(alphabet, unit, counts)
    write_tokenizer(alphabet, unit, folder, gpt.config.block_size, pad)
