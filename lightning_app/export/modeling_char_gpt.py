"""The network with n-gram tables, for `transformers`: Qwen3 with an additional input embedding.

A file of an exported folder, which transformers runs if it is opened with `trust_remote_code=True`.
It needs only torch and transformers, version 5. A copy of lightning_app/export/modeling_char_gpt.py
of the project that exported the folder.

For n = 2, 3, ..., the last n characters of a position select a row of a table, and the rows are
added to the character's embedding. The characters before those of a call are in the KV cache: it
gets one more layer, with their codes as keys. In this way, whatever transformers does to a cache
(reordering for beam search, cropping, repeating rows) is also done to the codes.

Shapes: B rows, T characters of a call, S characters with those in the cache, N tables,
D = hidden_size.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast

MULTIPLIER = 0x735A2D97
MASK = 0xFFFFFFFF
# The cache's name as an argument of Qwen3Model.forward; it changed in a minor version.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(Qwen3Model.forward).parameters
)


class CharGPTConfig(Qwen3Config):
    """Qwen3's config, and the rows and the number of entries of the n-gram tables."""

    model_type = "char_gpt_ngrams"
    ngram_rows: list[int] | None = None
    ngram_entries: int = 0


def ngram_hashes(codes: Tensor) -> Iterator[Tensor]:
    """Hashes (B, T) of the last n characters, for n = 2 to N + 1, in unsigned 32-bit integers.

    `codes` (B, T, N + 1): a character's code and the N codes before it, the newest first.
    """
    h = torch.zeros_like(codes[..., 0])
    for back in range(codes.size(-1)):
        h = ((h ^ codes[..., back]) * MULTIPLIER) & MASK
        h = h ^ (h >> 15)
        if back:
            yield h


class NgramCounts(nn.Module):
    """A vector for what may follow each position: codes (B, T, N + 1) to (B, T, D).

    N tables, for the last n = 2, 3, ... characters, have `rows` rows each, which follow one
    another. Row r has the entries starts[r] to starts[r + 1] - 1 of `characters` and `shares` (P,):
    the characters that followed in the training text, by id, and a weight between 0 and 1, which
    grows with their share in the row. The output is the sum of these weights times `weight`
    (N * V, D), one vector for each table and character. An n-gram that begins before the text,
    where the code is 0, has no row. `codes` (V,) are the codes of the characters, by id.
    """

    codes: Tensor
    starts: Tensor
    characters: Tensor
    shares: Tensor

    def __init__(self, rows: Sequence[int], entries: int, size: int, vocab_size: int) -> None:
        super().__init__()
        self.rows, self.vocab_size = tuple(rows), vocab_size
        self.weight = nn.Parameter(torch.zeros(len(rows) * vocab_size, size))
        self.register_buffer("codes", torch.arange(1, vocab_size + 1))
        self.register_buffer("starts", torch.zeros(sum(rows) + 1, dtype=torch.int32))
        self.register_buffer("characters", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("shares", torch.zeros(entries))

    def forward(self, codes: Tensor) -> Tensor:
        N, first = len(self.rows), 0
        starts, lengths = [], []
        for n, h in enumerate(ngram_hashes(codes)):
            row = first + h % self.rows[n]
            starts.append(self.starts[row].long())
            absent = codes[..., n + 1] == 0
            lengths.append((self.starts[row + 1] - starts[-1]).masked_fill(absent, 0))
            first += self.rows[n]
        length = torch.stack(lengths, dim=-1).flatten()  # (B * T * N,)
        ends = length.cumsum(0)
        row = torch.arange(len(length), device=length.device).repeat_interleave(length)
        entries = (torch.stack(starts, dim=-1).flatten() - ends + length)[row]
        entries = entries + torch.arange(len(entries), device=length.device)
        summed = F.embedding_bag(
            row % N * self.vocab_size + self.characters[entries],
            self.weight,
            (ends - length)[::N],
            mode="sum",
            per_sample_weights=self.shares[entries].to(self.weight.dtype),
        )
        return summed.unflatten(0, codes.shape[:2])  # (B, T, D)


def last_codes(codes: Tensor, T: int, count: int) -> Tensor:
    """The code of each of the last T characters and the `count` codes before it, (B, T, count + 1).

    `codes` (B, S); 0 is padding, which is skipped. Before the first character all codes are 0.
    """
    order = (codes != 0).int().argsort(dim=1, stable=True)  # padding first, then the text
    text = F.pad(codes.gather(1, order), (count, 0))  # (B, count + S)
    columns = order.argsort(dim=1)[:, -T:, None] + count  # (B, T, 1): where each one is in `text`
    columns = columns - torch.arange(count + 1, device=codes.device)  # (B, T, count + 1)
    return text.gather(1, columns.flatten(1)).unflatten(1, columns.shape[1:])


class CharGPTModel(Qwen3Model):
    """Qwen3Model with n-gram tables.

    Raises ValueError if it is given what does not say which characters precede: `inputs_embeds`, a
    cache that was filled by another model, an attention mask that is not (B, S), a static cache.
    """

    config_class = CharGPTConfig

    def __init__(self, config: CharGPTConfig) -> None:
        super().__init__(config)
        rows, entries = config.ngram_rows or (), config.ngram_entries
        self.ngrams = NgramCounts(rows, entries, config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        if input_ids is None or kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError("a network with n-gram tables needs input_ids, without inputs_embeds")
        cache, past = kwargs.pop("cache", None), kwargs.pop("past_key_values", None)
        cache = past if cache is None else cache
        use_cache = kwargs.get("use_cache")
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)

        T, tables = input_ids.size(1), len(self.ngrams.rows)
        new = self.ngrams.codes[input_ids]  # (B, T)
        codes = new if cache is None else torch.cat((self.cached_codes(cache, new), new), dim=1)
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.shape != codes.shape:
                raise ValueError(
                    "a network with n-gram tables needs an attention_mask of shape "
                    f"{tuple(codes.shape)}: each row's cached and new characters"
                )
            codes = codes.masked_fill(attention_mask == 0, 0)
        before = last_codes(codes, T, tables)  # (B, T, N + 1)
        if position_ids is not None:  # several texts in a row: each starts at position 0
            back = torch.arange(tables + 1, device=codes.device)
            before = before.masked_fill(position_ids[..., None] < back, 0)

        output = super().forward(
            inputs_embeds=self.embed_tokens(input_ids) + self.ngrams(before),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
            **kwargs,
        )
        if cache is not None:
            n_layer = self.config.num_hidden_layers
            if len(cache.layers) == n_layer:
                cache.layers.append(DynamicLayer())
            entry = new[:, None, :, None]  # (B, 1, T, 1), as keys are
            cache.update(entry, entry, n_layer)
        return output

    def cached_codes(self, cache: Cache, new: Tensor) -> Tensor:
        """The codes of the characters in a cache, (B, S - T)."""
        if not isinstance(cache, Cache) or isinstance(cache, StaticCache):
            raise ValueError(
                f"a network with n-gram tables cannot use a {type(cache).__name__}; use the "
                "default, a DynamicCache"
            )
        past, n_layer = cache.get_seq_length(), self.config.num_hidden_layers
        if past == 0:
            return new[:, :0]
        if cache.get_seq_length(n_layer) != past or cache.layers[n_layer].keys.is_floating_point():
            raise ValueError(
                f"the cache has {past} characters that are not known, and the n-gram tables need "
                "them; use a cache that was filled by this model"
            )
        return cache.layers[n_layer].keys[:, 0, :, 0].to(new.device)


class CharGPTForCausalLM(Qwen3ForCausalLM):
    """Qwen3ForCausalLM with n-gram tables; see CharGPTModel."""

    config_class = CharGPTConfig

    def __init__(self, config: CharGPTConfig) -> None:
        super().__init__(config)
        self.model = CharGPTModel(config)
        self.post_init()
