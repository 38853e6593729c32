"""The network with n-gram tables, for `transformers`: Qwen3 with additions to input and logits.

A file of an exported folder, which transformers runs if it is opened with `trust_remote_code=True`.
It needs only torch and transformers, version 5. A copy of lightning_app/export/modeling_char_gpt.py
of the project that exported the folder.

For several n, the last n characters of a position select a row of a table, which says what followed
them in the training text; and what followed them earlier in the text is counted. Both are added to
the character's embedding, and to the logits. The characters before those of a call are in the KV
cache: it gets one more layer, with their ids as keys. In this way, whatever transformers does to a
cache (reordering for beam search, cropping, repeating rows) is also done to the ids.

Shapes: B rows, T characters of a call, S characters with those in the cache, N tables,
V characters in the alphabet, D = hidden_size.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

MULTIPLIER = 0x735A2D97
MASK = 0xFFFFFFFF
NEEDS_IDS = "a network with n-gram tables needs input_ids, without inputs_embeds"
# The cache's name as an argument of Qwen3Model.forward; it changed in a minor version.
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(
    name for name in CACHE_NAMES if name in inspect.signature(Qwen3Model.forward).parameters
)


class CharGPTConfig(Qwen3Config):
    """Qwen3's config, and for the n-gram tables their rows (for n = 2, 3, ..., 0 where there is no
    table) and the number of their entries."""

    model_type = "char_gpt_ngrams"
    ngram_rows: list[int] | None = None
    ngram_entries: int = 0


def ngram_hashes(codes: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Hashes (B, S) of the last n characters, for each n of `sizes`, ascending, in unsigned 32-bit
    integers.

    `codes` (B, S); those before the first character are 0.
    """
    S, longest = codes.size(1), max(sizes, default=0)
    codes, h = F.pad(codes, (longest, 0)), torch.zeros_like(codes)
    for n in range(1, longest + 1):
        h = ((h ^ codes[:, longest - n + 1 : longest - n + 1 + S]) * MULTIPLIER) & MASK
        h = h ^ (h >> 15)
        if n in sizes:
            yield h


class Text(NamedTuple):
    """The characters of each row without padding, and where those of a call are among them."""

    ids: Tensor  # (B, S), then padding
    columns: Tensor  # (B, T) of the call's characters
    starts: Tensor  # (B, T): the column where the character's text starts


class Shares(NamedTuple):
    """What may follow each of B * T positions, E shares that are not 0; of 2 N sources."""

    values: Tensor  # (E,)
    sources: Tensor  # (E,), ascending: position * 2 N + source
    characters: Tensor  # (E,)
    shape: tuple[int, int]  # B, T


class NgramCounts(nn.Module):
    """What may follow each position: a text to shares; shares to vectors and to logits.

    There are 2 N sources of shares: what followed the last n characters in the training text, in N
    tables; then what followed them so far in the text. `rows` are the rows of the tables for
    n = 2, 3, ..., with 0 where there is none. The vectors are the sum of `weight` (2 N * V, D), one
    vector for each source and character, times the shares; the logits are the sum of the sources'
    shares, each source's times its output of the matrix `gates` (2 N, D). An n-gram that begins
    before the text has no shares.

    The rows of all tables follow one another. Row r has the entries starts[r] to starts[r + 1] - 1
    of `characters` and `shares` (P,): the characters that followed, by id, and a number between 0
    and 1, which grows with their share in the row. `codes` (V,) are the characters' codes, by id.
    """

    codes: Tensor
    starts: Tensor
    characters: Tensor
    shares: Tensor

    def __init__(self, rows: Sequence[int], entries: int, size: int, vocab_size: int) -> None:
        super().__init__()
        self.sizes = tuple(n for n, number in enumerate(rows, 2) if number)  # (N,)
        self.rows, self.vocab_size = tuple(number for number in rows if number), vocab_size
        sources = 2 * len(self.rows)
        self.weight = nn.Parameter(torch.zeros(sources * vocab_size, size))
        self.gates = nn.Parameter(torch.zeros(sources, size))
        self.register_buffer("codes", torch.arange(1, vocab_size + 1))
        self.register_buffer("starts", torch.zeros(sum(rows) + 1, dtype=torch.int32))
        self.register_buffer("characters", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("shares", torch.zeros(entries))

    def look_up(self, text: Text) -> Shares:
        """The shares of what may follow each character of a call."""
        (B, T), N, first = text.columns.shape, len(self.rows), 0
        places = torch.arange(text.ids.size(1) - 1, device=text.ids.device)
        earlier = places < text.columns[..., None]  # (B, T, S - 1)
        all_sources, all_characters, all_shares = [], [], []
        all_hashes = ngram_hashes(self.codes[text.ids], self.sizes)
        for i, (n, hashes) in enumerate(zip(self.sizes, all_hashes, strict=True)):
            hash = hashes.gather(1, text.columns)  # (B, T)
            known = text.columns - text.starts + 1 >= n
            row = (first + hash % self.rows[i]).flatten()
            first += self.rows[i]
            begin = self.starts[row].long()
            length = (self.starts[row + 1] - begin).masked_fill(~known.flatten(), 0)
            position = torch.arange(B * T, device=row.device).repeat_interleave(length)
            entries = (begin - length.cumsum(0) + length)[position]
            entries = entries + torch.arange(len(entries), device=row.device)
            all_sources.append(position * 2 * N + i)
            all_characters.append(self.characters[entries].long())
            all_shares.append(self.shares[entries])

            same = (hash[..., None] == hashes[:, None, :-1]) & earlier & known[..., None]
            same &= places - text.starts[..., None] + 1 >= n
            b, t, place = same.nonzero(as_tuple=True)
            keys = ((b * T + t) * 2 * N + N + i) * self.vocab_size + text.ids[b, place + 1]
            keys, counts = keys.unique(return_counts=True)
            sources = keys // self.vocab_size
            counts = counts.float()
            totals = counts.new_zeros(B * T * 2 * N).index_add_(0, sources, counts)[sources]
            all_sources.append(sources)
            all_characters.append(keys % self.vocab_size)
            all_shares.append(torch.log1p(100 * counts / (totals + 2)) / math.log(101))
        sources = torch.cat(all_sources)
        order = sources.argsort()
        values, characters = torch.cat(all_shares), torch.cat(all_characters)
        return Shares(values[order], sources[order], characters[order], (B, T))

    def vectors(self, found: Shares) -> Tensor:
        """What is added to the embedding, (B, T, D)."""
        sources, (B, T) = len(self.gates), found.shape
        firsts = torch.arange(0, B * T * sources, sources, device=found.sources.device)
        summed = F.embedding_bag(
            found.sources % sources * self.vocab_size + found.characters,
            self.weight,
            torch.searchsorted(found.sources, firsts),
            mode="sum",
            per_sample_weights=found.values.to(self.weight.dtype),
        )
        return summed.unflatten(0, found.shape)

    def logits(self, found: Shares, x: Tensor) -> Tensor:
        """What is added to the logits (B, T, V) of x (B, T, D)."""
        added = F.linear(x, self.gates).flatten()[found.sources] * found.values.to(x.dtype)
        places = found.sources // len(self.gates) * self.vocab_size + found.characters
        flat = added.new_zeros(x.shape[:2].numel() * self.vocab_size).index_add(0, places, added)
        return flat.view(*found.shape, self.vocab_size)


def without_padding(ids: Tensor, real: Tensor, T: int) -> Text:
    """The text of each row of ids (B, S), of which the last T are those of a call; `real` (B, S) is
    False for padding, which is moved to the end."""
    order = (~real).int().argsort(dim=1, stable=True)  # the text first, then padding
    columns = order.argsort(dim=1)[:, -T:]
    return Text(ids.gather(1, order), columns, torch.zeros_like(columns))


def given_cache(kwargs: dict[str, Any]) -> Cache | None:
    """The cache among the arguments of a call."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


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

    def look_up(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
    ) -> Shares:
        """The shares of what may follow each of `input_ids`, whose cache is not yet extended."""
        if input_ids is None:
            raise ValueError(NEEDS_IDS)
        ids = input_ids  # (B, S)
        if cache is not None:
            ids = torch.cat((self.cached_ids(cache, input_ids), input_ids), dim=1)
        real = torch.ones_like(ids, dtype=torch.bool)
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.shape != ids.shape:
                raise ValueError(
                    "a network with n-gram tables needs an attention_mask of shape "
                    f"{tuple(ids.shape)}: each row's cached and new characters"
                )
            real = attention_mask != 0
        text = without_padding(ids, real, input_ids.size(1))
        if position_ids is not None:  # several texts in a row: each starts at position 0
            text = text._replace(starts=(text.columns - position_ids).clamp(min=0))
        return self.ngrams.look_up(text)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        shares: Shares | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """As Qwen3Model's. `shares` are those of `look_up`, if they are known."""
        if input_ids is None or kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError(NEEDS_IDS)
        cache, use_cache = given_cache(kwargs), kwargs.get("use_cache")
        for name in CACHE_NAMES:
            kwargs.pop(name, None)
        if shares is None:
            shares = self.look_up(input_ids, attention_mask, position_ids, cache)
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        output = super().forward(
            inputs_embeds=self.embed_tokens(input_ids) + self.ngrams.vectors(shares),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
            **kwargs,
        )
        if cache is not None:
            n_layer = self.config.num_hidden_layers
            if len(cache.layers) == n_layer:
                cache.layers.append(DynamicLayer())
            entry = input_ids[:, None, :, None]  # (B, 1, T, 1), as keys are
            cache.update(entry, entry, n_layer)
        return output

    def cached_ids(self, cache: Cache, new: Tensor) -> Tensor:
        """The ids of the characters in a cache, (B, S - T)."""
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

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As Qwen3ForCausalLM's."""
        shares = self.model.look_up(input_ids, attention_mask, position_ids, given_cache(kwargs))
        output = self.model(input_ids, attention_mask, position_ids, shares, **kwargs)
        x = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept]) + self.model.ngrams.logits(shares, x)[:, kept]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **{CACHE: getattr(output, CACHE)},
        )
