"""The compiled loops of the CPU engine.

For the next character of one text they are the complete network; for several characters at once,
everything between PyTorch's matrix products. `w` is a `cpu_engine.PackedWeights`, `cache` a
`cpu_engine.CPUCache`. Functions write their results to arrays given by the caller. `threads` is how
many threads share the work. One of them computes each number, in an order that does not depend on
how many there are, so the results are the same, bit for bit.

Shapes: B rows (texts) of the cache, n of them in a call, V characters, D = n_embd,
KV = n_kv_head * head_dim.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from lightning_app.generation.ngram_kernels import (
    add_logits,
    add_vectors,
    empty_shares,
    find_shares,
    remember,
)
from lightning_app.generation.numba_cache import compiled
from lightning_app.generation.sampling import draw_one, fill_distribution
from lightning_app.model.gpt import NORM_EPS

EPSILON = np.float32(NORM_EPS)
ONE = np.float32(1)
MAX_EXPONENT = np.float32(80)  # e^-80 is negligible

# A bfloat16 is the upper half of a float32. NumPy and numba lack it; here its bits are a uint16.


def to_float32(x):
    """x as float32; a uint16 is read as the bits of a bfloat16."""


@overload(to_float32, inline="always")
def _(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: np.float32(x)


def store(array, i, x):
    """array[i] = x, rounded to the nearest bfloat16 if the array is uint16."""


@overload(store, inline="always")
def _(array, i, x):
    if array.dtype != types.uint16:

        def plain(array, i, x):
            array[i] = x

        return plain

    def rounded(array, i, x):
        bits = np.float32(x).view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
        array[i] = np.uint16(np.uint32(bits + half) >> np.uint32(16))

    return rounded


def store_quantized(x, array, scale, i):
    """array[i] = x for a vector x. If the array is int8, it gets round(x / scale[i]), with scale[i]
    set so that the largest value becomes 127."""


@overload(store_quantized)
def _(x, array, scale, i):
    if array.dtype != types.int8:

        def rounded(x, array, scale, i):
            for j in range(x.shape[0]):
                store(array[i], j, x[j])

        return rounded

    def scaled(x, array, scale, i):
        highest = np.float32(1e-12)
        for j in range(x.shape[0]):
            highest = max(highest, abs(x[j]))
        scale[i] = highest / np.float32(127)
        for j in range(x.shape[0]):
            array[i, j] = np.int8(np.rint(x[j] * (np.float32(127) / highest)))

    return scaled


# Operations on one vector.


@compiled(fastmath=True)
def dequantize(x, scale, y):
    """y = x * scale, in float32."""
    for j in range(x.shape[0]):
        y[j] = to_float32(x[j]) * scale[j]


@compiled(fastmath=True)
def normalize(x, y):
    """y = x / RMS(x). The norm's gain is part of the following matrix."""
    squares = np.float32(0)
    for j in range(x.shape[0]):
        squares += x[j] * x[j]
    factor = ONE / np.sqrt(squares / np.float32(x.shape[0]) + EPSILON)
    for j in range(x.shape[0]):
        store(y, j, x[j] * factor)


@compiled(fastmath=True)
def rotate(x, gain, cos, sin):
    """Normalise one head's query or key, and apply its rotary position, in place."""
    normalize(x, x)
    half = x.shape[0] // 2
    for j in range(half):
        a, b = x[j] * gain[j], x[j + half] * gain[j + half]
        x[j] = a * cos[j] - b * sin[j]
        x[j + half] = b * cos[j] + a * sin[j]


@compiled()
def exponential(x):
    """e^x with a relative error of 5e-7, for x from -87 to 88. Loops over it compile to vector
    instructions, unlike loops over np.exp."""
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # r = x - n ln 2, with ln 2 as the sum of two numbers for precision
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    p = np.float32(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = p * r + np.float32(coefficient)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(fastmath=True)
def silu(x):
    return x / (ONE + exponential(min(max(-x, -MAX_EXPONENT), MAX_EXPONENT)))


@compiled(fastmath=True)
def attend(q, cache, layer, row, kv_head, position, scores, out):
    """One query head: q and out (head_dim,). It attends to positions 0 to `position` of one row."""
    keys, key_scale = cache.keys[layer, row, kv_head], cache.key_scale[layer, row, kv_head]
    values, value_scale = cache.values[layer, row, kv_head], cache.value_scale[layer, row, kv_head]
    head_dim, n = q.shape[0], position + 1
    factor = np.float32(head_dim) ** np.float32(-0.5)
    unrolled = n - n % 4  # four keys at a time, so that `q` and `out` are loaded a quarter as often
    for t in range(0, unrolled, 4):
        a = b = c = d = np.float32(0)
        for j in range(head_dim):
            a += q[j] * to_float32(keys[t, j])
            b += q[j] * to_float32(keys[t + 1, j])
            c += q[j] * to_float32(keys[t + 2, j])
            d += q[j] * to_float32(keys[t + 3, j])
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a, b, c, d
    for t in range(unrolled, n):
        total = np.float32(0)
        for j in range(head_dim):
            total += q[j] * to_float32(keys[t, j])
        scores[t] = total
    highest = -np.float32(3e38)  # fastmath excludes infinity
    for t in range(n):
        scores[t] *= factor * key_scale[t]
        highest = max(highest, scores[t])
    total = np.float32(0)
    for t in range(n):
        scores[t] = exponential(max(scores[t] - highest, -MAX_EXPONENT))
        total += scores[t]
    for t in range(n):
        scores[t] *= value_scale[t] / total
    out[:] = 0
    for t in range(0, unrolled, 4):
        a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
        for j in range(head_dim):
            ab = a * to_float32(values[t, j]) + b * to_float32(values[t + 1, j])
            out[j] += ab + c * to_float32(values[t + 2, j]) + d * to_float32(values[t + 3, j])
    for t in range(unrolled, n):
        for j in range(head_dim):
            out[j] += scores[t] * to_float32(values[t, j])


@compiled(fastmath=True)
def add(x, branch, scale):
    """x += branch * scale."""
    for j in range(x.shape[0]):
        x[j] += to_float32(branch[j]) * scale[j]


@compiled(fastmath=True)
def activate(gate, up, gate_scale, up_scale, out):
    """out = silu(gate) * up."""
    for j in range(out.shape[0]):
        store(out, j, silu(to_float32(gate[j]) * gate_scale[j]) * to_float32(up[j]) * up_scale[j])


# One text: the complete network.


@compiled(fastmath=True, parallel=True)
def multiply(matrix, scale, x, y, threads):
    """y = scale * (matrix @ x); the threads share the matrix's rows."""
    rows = matrix.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            total = np.float32(0)
            for j in range(x.shape[0]):
                total += to_float32(matrix[i, j]) * x[j]
            y[i] = total * scale[i]


@compiled(fastmath=True, parallel=True)
def attend_heads(q, cache, layer, row, position, scores, out, threads):
    """One row: q and out (n_head, head_dim); the threads share the heads."""
    heads = q.shape[0]
    per_kv_head = heads // cache.keys.shape[2]
    for thread in prange(threads):
        for i in range(thread * heads // threads, (thread + 1) * heads // threads):
            attend(q[i], cache, layer, row, i // per_kv_head, position, scores[i], out[i])


@compiled(fastmath=True)
def next_logits(token, row, position, w, cache, logits, threads):
    """Add `token` at `position` to a row of the cache; write the logits (V,) of the next
    character."""
    layers, n_embd = w.qkv.shape[0], w.qkv.shape[2]
    kv_heads, block_size, head_dim = cache.keys.shape[2:]
    heads = n_embd // head_dim
    mlp_size = w.down.shape[2]
    x = w.embedding[token].copy()
    remember(token, position, w, cache.ids[row], cache.hashes[row])
    all_sources, all_characters, all_shares = empty_shares(1, w, block_size)
    sources, characters, shares = all_sources[0], all_characters[0], all_shares[0]
    found = find_shares(position, w, cache.ids[row], cache.hashes[row], sources, characters, shares)
    add_vectors(found, sources, characters, shares, w, x)
    h = np.empty(n_embd, dtype=np.float32)
    projected = np.empty(w.qkv.shape[1], dtype=np.float32)
    q = projected[:n_embd].reshape(heads, head_dim)
    k = projected[n_embd : n_embd + kv_heads * head_dim].reshape(kv_heads, head_dim)
    v = projected[n_embd + kv_heads * head_dim :].reshape(kv_heads, head_dim)
    scores = np.empty((heads, block_size), dtype=np.float32)
    attended = np.empty(n_embd, dtype=np.float32)
    branch = np.empty(2 * mlp_size, dtype=np.float32)
    for layer in range(layers):
        normalize(x, h)
        multiply(w.qkv[layer], w.qkv_scale[layer], h, projected, threads)
        for i in range(heads):
            rotate(q[i], w.q_gain[layer], w.cos[position], w.sin[position])
        for i in range(kv_heads):
            rotate(k[i], w.k_gain[layer], w.cos[position], w.sin[position])
            store_quantized(
                k[i], cache.keys[layer, row, i], cache.key_scale[layer, row, i], position
            )
            store_quantized(
                v[i], cache.values[layer, row, i], cache.value_scale[layer, row, i], position
            )
        out = attended.reshape(heads, head_dim)
        attend_heads(q, cache, layer, row, position, scores, out, threads)
        multiply(w.o[layer], w.o_scale[layer], attended, h, threads)
        for j in range(n_embd):
            x[j] += h[j]
        normalize(x, h)
        multiply(w.gate_up[layer], w.gate_up_scale[layer], h, branch, threads)
        for j in range(mlp_size):
            branch[j] = silu(branch[j]) * branch[mlp_size + j]
        multiply(w.down[layer], w.down_scale[layer], branch[:mlp_size], h, threads)
        for j in range(n_embd):
            x[j] += h[j]
    normalize(x, h)
    multiply(w.head, w.head_scale, h, logits, threads)
    add_logits(found, sources, characters, shares, w, h, logits)


@compiled()
def decode_row(token, row, position, uniform, seen, sampler, w, cache, ids, threads):
    """Generate len(uniform) characters of one row into `ids`, after `token` at `position`.

    seen (V,) is updated; sampler (4,) is what `sampler_args` returns.
    """
    size = w.embedding.shape[0]
    logits = np.empty(size, dtype=np.float32)
    p = np.empty(size, dtype=np.float64)
    for i in range(len(uniform)):
        next_logits(token, row, position + i, w, cache, logits, threads)
        fill_distribution(logits, seen, int(sampler[0]), sampler[1], sampler[2], sampler[3], p)
        token = draw_one(p, uniform[i])
        seen[token] = True
        ids[i] = token


# Several characters, of several texts or of one: the steps between the matrix products. The threads
# share the characters. `rows` (n,) are the numbers of their rows in the cache.


@compiled(fastmath=True, parallel=True)
def normalize_rows(x, h, threads):
    """`normalize` for each row of x (n, D) float32, into h (n, D)."""
    rows = x.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            normalize(x[i], h[i])


@compiled(fastmath=True, parallel=True)
def cache_keys(projected, w, layer, rows, positions, cache, threads):
    """Add the keys and values of n characters to the cache.

    projected (n, D + 2 KV): queries, keys and values before `w.qkv_scale`; positions (n,).
    """
    n = projected.shape[0]
    kv_heads, head_dim = cache.keys.shape[2], cache.keys.shape[4]
    n_embd = projected.shape[1] - 2 * kv_heads * head_dim
    scale = w.qkv_scale[layer]
    for thread in prange(threads):
        x = np.empty(head_dim, dtype=np.float32)
        for i in range(thread * n // threads, (thread + 1) * n // threads):
            row, position = rows[i], positions[i]
            for head in range(kv_heads):
                at = n_embd + head * head_dim
                dequantize(projected[i, at : at + head_dim], scale[at : at + head_dim], x)
                rotate(x, w.k_gain[layer], w.cos[position], w.sin[position])
                store_quantized(
                    x, cache.keys[layer, row, head], cache.key_scale[layer, row, head], position
                )
                at += kv_heads * head_dim
                dequantize(projected[i, at : at + head_dim], scale[at : at + head_dim], x)
                store_quantized(
                    x, cache.values[layer, row, head], cache.value_scale[layer, row, head], position
                )


@compiled(fastmath=True, parallel=True)
def attend_rows(projected, w, layer, rows, positions, cache, out, threads):
    """Attention of n characters to those up to themselves, whose keys are in the cache.

    projected (n, D + 2 KV) as in `cache_keys`; positions (n,); out (n, D).
    """
    n, n_embd = out.shape
    kv_heads, block_size, head_dim = cache.keys.shape[2:]
    heads = n_embd // head_dim
    scale = w.qkv_scale[layer]
    for thread in prange(threads):
        scores = np.empty(block_size, dtype=np.float32)
        x = np.empty(head_dim, dtype=np.float32)
        attended = np.empty(head_dim, dtype=np.float32)
        for i in range(thread, n, threads):  # in turns: the later ones of a text take longer
            row, position = rows[i], positions[i]
            for head in range(heads):
                at = head * head_dim
                dequantize(projected[i, at : at + head_dim], scale[at : at + head_dim], x)
                rotate(x, w.q_gain[layer], w.cos[position], w.sin[position])
                kv_head = head * kv_heads // heads
                attend(x, cache, layer, row, kv_head, position, scores, attended)
                for j in range(head_dim):
                    store(out[i], at + j, attended[j])


@compiled(fastmath=True, parallel=True)
def add_rows(x, branch, scale, h, threads):
    """x += branch * scale, then h = `normalize` of x; x (n, D) float32, branch and h (n, D)."""
    rows = x.shape[0]
    for thread in prange(threads):
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            add(x[row], branch[row], scale)
            normalize(x[row], h[row])


@compiled(fastmath=True, parallel=True)
def activate_rows(gate_up, scale, activated, threads):
    """activated (n, mlp_size) = silu(gate) * up, for gate_up (n, 2 mlp_size) before `scale`."""
    rows, mlp_size = activated.shape
    for thread in prange(threads):
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            gate, up = gate_up[row, :mlp_size], gate_up[row, mlp_size:]
            activate(gate, up, scale[:mlp_size], scale[mlp_size:], activated[row])


@compiled(parallel=True)
def draw_rows(logits, rows, uniform, seen, samplers, threads):
    """Draw the next id of each row, (n,), and mark it in seen (B, V).

    logits (n, V); uniform (n,); samplers (B, 4): each row is what `sampler_args` returns.
    """
    n, size = logits.shape
    ids = np.empty(n, dtype=np.int64)
    for thread in prange(threads):
        p = np.empty(size, dtype=np.float64)
        for i in range(thread * n // threads, (thread + 1) * n // threads):
            s = samplers[rows[i]]
            fill_distribution(logits[i], seen[rows[i]], int(s[0]), s[1], s[2], s[3], p)
            ids[i] = draw_one(p, uniform[i])
            seen[rows[i], ids[i]] = True
    return ids
