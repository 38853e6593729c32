"""The loops of the writing engine, compiled: one text whole, several between PyTorch's products.

`w` is a `decoding.Packed`, `cache` a `decoding.Cache`; scratch and results are arrays the caller
gives.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from lightning_app.generation.numba_cache import compiled
from lightning_app.generation.sampling import draw_one, fill_distribution
from lightning_app.model.gpt import NORM_EPS

EPSILON = np.float32(NORM_EPS)
ONE = np.float32(1)
EDGE = np.float32(80)  # e^-80 counts as nothing

# bfloat16 is a float32's upper half. NumPy and numba do not know it: it is uint16 here.


def to_float32(x):
    """x as float32; uint16 means bfloat16."""


@overload(to_float32, inline="always")
def _(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: np.float32(x)


def store(array, i, x):
    """array[i] = x, rounded to the nearest bfloat16 where the array holds uint16."""


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
    """array[i] = x, a vector; scaled by scale[i], a number, where the array holds int8."""


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


# What one row of numbers goes through.


@compiled(fastmath=True)
def widen_all(x, scale, y):
    for j in range(x.shape[0]):
        y[j] = to_float32(x[j]) * scale[j]


@compiled(fastmath=True)
def normalize(x, y):
    """y = x / RMS(x); gains are in the following matrix."""
    squares = np.float32(0)
    for j in range(x.shape[0]):
        squares += x[j] * x[j]
    factor = ONE / np.sqrt(squares / np.float32(x.shape[0]) + EPSILON)
    for j in range(x.shape[0]):
        store(y, j, x[j] * factor)


@compiled(fastmath=True)
def rotate(x, gain, cos, sin):
    """Normalise one head's query or key, in place, and turn it to its position."""
    normalize(x, x)
    half = x.shape[0] // 2
    for j in range(half):
        a, b = x[j] * gain[j], x[j + half] * gain[j + half]
        x[j] = a * cos[j] - b * sin[j]
        x[j + half] = b * cos[j] + a * sin[j]


@compiled()
def exponential(x):
    """e^x to 5e-7, for x from -87 to 88; unlike np.exp, loops over it use vector instructions."""
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)  # x - n ln 2, in two
    p = np.float32(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = p * r + np.float32(coefficient)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(fastmath=True)
def silu(x):
    return x / (ONE + exponential(min(max(-x, -EDGE), EDGE)))


@compiled(fastmath=True)
def attend(q, cache, layer, row, group, position, scores, out):
    """One head: q and out (head_dim,), over the key/value head `group`."""
    keys, key_scale = cache.keys[layer, row, group], cache.key_scale[layer, row, group]
    values, value_scale = cache.values[layer, row, group], cache.value_scale[layer, row, group]
    size, n = q.shape[0], position + 1
    factor = np.float32(size) ** np.float32(-0.5)
    whole = n - n % 4  # four at a time: `q` and `out` are read a quarter as often
    for t in range(0, whole, 4):
        a = b = c = d = np.float32(0)
        for j in range(size):
            a += q[j] * to_float32(keys[t, j])
            b += q[j] * to_float32(keys[t + 1, j])
            c += q[j] * to_float32(keys[t + 2, j])
            d += q[j] * to_float32(keys[t + 3, j])
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = a, b, c, d
    for t in range(whole, n):
        total = np.float32(0)
        for j in range(size):
            total += q[j] * to_float32(keys[t, j])
        scores[t] = total
    highest = -np.float32(3e38)  # fastmath knows no infinity
    for t in range(n):
        scores[t] *= factor * key_scale[t]
        highest = max(highest, scores[t])
    total = np.float32(0)
    for t in range(n):
        scores[t] = exponential(max(scores[t] - highest, -EDGE))
        total += scores[t]
    for t in range(n):
        scores[t] *= value_scale[t] / total
    out[:] = 0
    for t in range(0, whole, 4):
        a, b, c, d = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
        for j in range(size):
            first = a * to_float32(values[t, j]) + b * to_float32(values[t + 1, j])
            out[j] += first + c * to_float32(values[t + 2, j]) + d * to_float32(values[t + 3, j])
    for t in range(whole, n):
        for j in range(size):
            out[j] += scores[t] * to_float32(values[t, j])


@compiled(fastmath=True)
def add(x, branch, scale):
    for j in range(x.shape[0]):
        x[j] += to_float32(branch[j]) * scale[j]


@compiled(fastmath=True)
def activate(gate, up, gate_scale, up_scale, out):
    """out = silu(gate) * up."""
    for j in range(out.shape[0]):
        store(out, j, silu(to_float32(gate[j]) * gate_scale[j]) * to_float32(up[j]) * up_scale[j])


# One text.


@compiled(fastmath=True, parallel=True)
def multiply(matrix, scale, x, y, threads):
    """y = scale * (matrix @ x), rows shared among the threads."""
    rows = matrix.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            total = np.float32(0)
            for j in range(x.shape[0]):
                total += to_float32(matrix[i, j]) * x[j]
            y[i] = total * scale[i]


@compiled(fastmath=True, parallel=True)
def attend_heads(q, cache, layer, position, scores, out, threads):
    """q and out (H, head_dim): heads shared among the threads."""
    heads = q.shape[0]
    shared = heads // cache.keys.shape[2]
    for thread in prange(threads):
        for i in range(thread * heads // threads, (thread + 1) * heads // threads):
            attend(q[i], cache, layer, 0, i // shared, position, scores[i], out[i])


@compiled(fastmath=True)
def next_logits(token, position, w, cache, logits, threads):
    """Read `token` at `position` into the cache; logits (V,) of what follows it."""
    layers, width = w.qkv.shape[0], w.qkv.shape[2]
    kv_heads, length, size = cache.keys.shape[2:]
    heads = width // size
    hidden = w.down.shape[2]
    x = w.embedding[token].copy()
    h = np.empty(width, dtype=np.float32)
    projected = np.empty(w.qkv.shape[1], dtype=np.float32)
    q = projected[:width].reshape(heads, size)
    k = projected[width : width + kv_heads * size].reshape(kv_heads, size)
    v = projected[width + kv_heads * size :].reshape(kv_heads, size)
    scores = np.empty((heads, length), dtype=np.float32)
    mixed = np.empty(width, dtype=np.float32)
    branch = np.empty(2 * hidden, dtype=np.float32)
    for layer in range(layers):
        normalize(x, h)
        multiply(w.qkv[layer], w.qkv_scale[layer], h, projected, threads)
        for i in range(heads):
            rotate(q[i], w.q_gain[layer], w.cos[position], w.sin[position])
        for i in range(kv_heads):
            rotate(k[i], w.k_gain[layer], w.cos[position], w.sin[position])
            store_quantized(k[i], cache.keys[layer, 0, i], cache.key_scale[layer, 0, i], position)
            store_quantized(
                v[i], cache.values[layer, 0, i], cache.value_scale[layer, 0, i], position
            )
        out = mixed.reshape(heads, size)
        attend_heads(q, cache, layer, position, scores, out, threads)
        multiply(w.o[layer], w.o_scale[layer], mixed, h, threads)
        for j in range(width):
            x[j] += h[j]
        normalize(x, h)
        multiply(w.gate_up[layer], w.gate_up_scale[layer], h, branch, threads)
        for j in range(hidden):
            branch[j] = silu(branch[j]) * branch[hidden + j]
        multiply(w.down[layer], w.down_scale[layer], branch[:hidden], h, threads)
        for j in range(width):
            x[j] += h[j]
    normalize(x, h)
    multiply(w.head, w.head_scale, h, logits, threads)


@compiled()
def write_row(token, position, uniform, seen, choice, w, cache, ids, threads):
    """As many characters as `uniform` has numbers into `ids`, after `token` at `position`.

    choice is (kind, limit, temperature, penalty) of `fill_distribution`.
    """
    kind, limit, temperature, penalty = choice
    size = w.embedding.shape[0]
    logits = np.empty(size, dtype=np.float32)
    p = np.empty(size, dtype=np.float64)
    for i in range(len(uniform)):
        next_logits(token, position + i, w, cache, logits, threads)
        fill_distribution(logits, seen, kind, limit, temperature, penalty, p)
        token = draw_one(p, uniform[i])
        seen[token] = True
        ids[i] = token


# Several texts: what stands between the products, rows shared among the threads.


@compiled(fastmath=True, parallel=True)
def normalize_rows(x, h, threads):
    rows = x.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            normalize(x[i], h[i])


@compiled(fastmath=True, parallel=True)
def attend_rows(projected, w, layer, positions, cache, out, threads):
    """projected (B, D + 2 KV), out (B, D)."""
    rows, width = out.shape
    kv_heads, length, size = cache.keys.shape[2:]
    shared = width // size // kv_heads
    scale = w.qkv_scale[layer]
    for thread in prange(threads):
        scores = np.empty(length, dtype=np.float32)
        x = np.empty(size, dtype=np.float32)
        mixed = np.empty(size, dtype=np.float32)
        first, last = thread * rows // threads, (thread + 1) * rows // threads
        for row in range(first, last):
            position = positions[row]
            cos, sin = w.cos[position], w.sin[position]
            for group in range(kv_heads):
                at = width + group * size
                widen_all(projected[row, at : at + size], scale[at : at + size], x)
                rotate(x, w.k_gain[layer], cos, sin)
                store_quantized(
                    x, cache.keys[layer, row, group], cache.key_scale[layer, row, group], position
                )
                at += kv_heads * size
                widen_all(projected[row, at : at + size], scale[at : at + size], x)
                store_quantized(
                    x, cache.values[layer, row, group], cache.value_scale[layer, row, group],
                    position,
                )  # fmt: skip
                for head in range(group * shared, (group + 1) * shared):
                    at = head * size
                    widen_all(projected[row, at : at + size], scale[at : at + size], x)
                    rotate(x, w.q_gain[layer], cos, sin)
                    attend(x, cache, layer, row, group, position, scores, mixed)
                    for j in range(size):
                        store(out[row], at + j, mixed[j])


@compiled(fastmath=True, parallel=True)
def add_rows(x, branch, scale, h, threads):
    """Add a branch's output to x (B, D) float32; h is the new x, normalised."""
    rows = x.shape[0]
    for thread in prange(threads):
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            add(x[row], branch[row], scale)
            normalize(x[row], h[row])


@compiled(fastmath=True, parallel=True)
def activate_rows(gate_up, scale, activated, threads):
    rows, hidden = activated.shape
    for thread in prange(threads):
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            gate, up = gate_up[row, :hidden], gate_up[row, hidden:]
            activate(gate, up, scale[:hidden], scale[hidden:], activated[row])


@compiled(parallel=True)
def choose_rows(logits, uniform, seen, choice, ids, threads):
    kind, limit, temperature, penalty = choice
    rows, size = logits.shape
    for thread in prange(threads):
        p = np.empty(size, dtype=np.float64)
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            fill_distribution(logits[row], seen[row], kind, limit, temperature, penalty, p)
            ids[row] = draw_one(p, uniform[row])
            seen[row, ids[row]] = True
