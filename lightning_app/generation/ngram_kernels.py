"""The compiled loops of the CPU engine for n-gram counts; see `model.ngrams`.

`w`, `cache`, `threads` and the letters of shapes are those of `cpu_kernels`; N tables.
"""

import numpy as np
from numba import prange

from lightning_app.generation.numba_cache import compiled
from lightning_app.model.ngram_counting import MASK, MULTIPLIER

SCANNED_AT_ONCE = 64  # positions


@compiled()
def remember(token, position, w, ids, hashes):
    """Store `token` at `position` of one row's ids (block_size,), and the hashes of the n-grams
    that end there in its hashes (N, block_size). See `model.ngrams`."""
    ids[position] = token
    h, n = 0, 0
    for table in range(hashes.shape[0]):
        if w.ngram_sizes[table] > position + 1:
            break
        while n < w.ngram_sizes[table]:
            h = ((h ^ w.codes[ids[position - n]]) * MULTIPLIER) & MASK
            h = h ^ (h >> 15)
            n += 1
        hashes[table, position] = h


@compiled()
def find_shares(position, w, ids, hashes, sources, characters, shares):
    """Write the shares of what may follow `position` to the arrays of `empty_shares`; how many
    there are. The row's ids and hashes are as in `remember`."""
    tables, first, found = hashes.shape[0], 0, 0
    counts = np.zeros(w.codes.shape[0], dtype=np.int64)
    for table in range(tables):
        n = w.ngram_sizes[table]
        if n > position + 1:
            break
        h = hashes[table, position]
        row = first + h % w.ngram_rows[table]
        first += w.ngram_rows[table]
        for entry in range(w.ngram_starts[row], w.ngram_starts[row + 1]):
            sources[found], characters[found] = table, w.ngram_characters[entry]
            shares[found] = np.float32(w.ngram_shares[entry]) / np.float32(255)
            found += 1
        begin, total = found, 0
        for start in range(n - 1, position, SCANNED_AT_ONCE):  # in the window
            end = min(start + SCANNED_AT_ONCE, position)
            matches = 0
            for place in range(start, end):  # compiles to vector instructions
                matches += hashes[table, place] == h
            if matches == 0:
                continue
            total += matches
            for place in range(start, end):
                if hashes[table, place] == h:
                    character = ids[place + 1]
                    if counts[character] == 0:
                        sources[found], characters[found] = tables + table, character
                        found += 1
                    counts[character] += 1
        for i in range(begin, found):
            p = counts[characters[i]] / (total + 2)
            shares[i] = np.log1p(100 * p) / np.log(101)
            counts[characters[i]] = 0
    return found


@compiled()
def empty_shares(n, w, block_size):
    """Arrays for all that `find_shares` can find at n positions: sources, characters and shares."""
    characters = w.codes.shape[0]
    most = w.ngram_rows.shape[0] * (characters + min(characters, block_size))
    return (
        np.empty((n, most), dtype=np.int32),
        np.empty((n, most), dtype=np.int32),
        np.empty((n, most), dtype=np.float32),
    )


@compiled(fastmath=True)
def add_vectors(found, sources, characters, shares, w, x):
    """Add to x (D,) the vectors of the shares."""
    for i in range(found):
        share = shares[i]
        vector = w.ngram_vectors[sources[i] * w.codes.shape[0] + characters[i]]
        for j in range(x.shape[0]):
            x[j] += share * vector[j]


@compiled(fastmath=True)
def add_logits(found, sources, characters, shares, w, h, logits):
    """Add to the logits (V,) of the head, whose input is h (D,), those of the shares."""
    gates = np.zeros(w.ngram_gates.shape[0], dtype=np.float32)
    for source in range(gates.shape[0]):
        for j in range(h.shape[0]):
            gates[source] += h[j] * w.ngram_gates[source, j]
    for i in range(found):
        logits[characters[i]] += gates[sources[i]] * shares[i]


# Several characters, of several texts or of one. `rows` (n,) are the numbers of their rows in the
# cache.


@compiled()
def remember_rows(tokens, rows, positions, w, cache):
    """`remember` for each row: tokens and positions (n,)."""
    for i in range(tokens.shape[0]):  # in order: they may follow each other
        remember(tokens[i], positions[i], w, cache.ids[rows[i]], cache.hashes[rows[i]])


@compiled(parallel=True)
def add_vectors_rows(rows, positions, w, cache, x, threads):
    """`find_shares` and `add_vectors` for each row of x (n, D). Returns what was found: how many
    (n,), sources, characters and shares (n, most)."""
    n = x.shape[0]
    found = np.empty(n, dtype=np.int64)
    sources, characters, shares = empty_shares(n, w, cache.ids.shape[1])
    for thread in prange(threads):
        for i in range(thread * n // threads, (thread + 1) * n // threads):
            ids, hashes = cache.ids[rows[i]], cache.hashes[rows[i]]
            found[i] = find_shares(
                positions[i], w, ids, hashes, sources[i], characters[i], shares[i]
            )
            add_vectors(found[i], sources[i], characters[i], shares[i], w, x[i])
    return found, sources, characters, shares


@compiled(parallel=True)
def add_logits_rows(found, sources, characters, shares, w, h, logits, threads):
    """`add_logits` for each row: h (n, D), logits (n, V), and what `add_vectors_rows` found."""
    n = logits.shape[0]
    for thread in prange(threads):
        for i in range(thread * n // threads, (thread + 1) * n // threads):
            add_logits(found[i], sources[i], characters[i], shares[i], w, h[i], logits[i])
