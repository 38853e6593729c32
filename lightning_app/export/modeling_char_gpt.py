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
    """Qwen3's config, and the rows of the tables for the last 2, 3, ... characters."""

    model_type = "char_gpt_ngrams"
    ngram_rows: list[int] | None = None


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


class NgramTables(nn.Module):
    """The sum of the table rows of every position: codes (B, T, N + 1) to (B, T, D).

    The input is as for `ngram_hashes`; code 0 is before the text. The N tables are one matrix, one
    after the other. `codes` (V,) are the codes of the characters, by id; all are positive.
    """

    codes: Tensor

    def __init__(self, rows: Sequence[int], size: int, vocab_size: int) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.weight = nn.Parameter(torch.zeros(sum(rows), size))
        self.register_buffer("codes", torch.arange(1, vocab_size + 1))

    def forward(self, codes: Tensor) -> Tensor:
        found, first = [], 0
        for h, rows in zip(ngram_hashes(codes), self.rows, strict=True):
            found.append(first + h % rows)
            first += rows
        table_rows = torch.stack(found, dim=-1)  # (B, T, N)
        summed = F.embedding_bag(table_rows.flatten(0, 1), self.weight, mode="sum")
        return summed.unflatten(0, table_rows.shape[:2])  # (B, T, D)


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
        self.ngrams = NgramTables(config.ngram_rows or (), config.hidden_size, config.vocab_size)
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
