"""Writing one text on a CPU: the network, the distribution and the draw in one compiled function.

PyTorch's product of a matrix with a vector moves a third of what memory delivers, and each small
operation costs microseconds; here a character is five parallel loops a layer over packed weights.
The weights are float32, or int8 with a scale for each row, which reads a quarter of the bytes. The
reference is `generation.uncached_logits`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from lightning_app.gpt import GPT, NORM_EPS
from lightning_app.sampling import compiled, draw_one, fill_distribution

Weights = Literal["float32", "int8"]
EPSILON = np.float32(NORM_EPS)
ONE = np.float32(1)


@compiled(fastmath=True, parallel=True)
def multiply(matrix, scale, x, y, threads):
    """y = scale * (matrix @ x), rows shared among the threads."""
    rows = matrix.shape[0]
    for thread in prange(threads):
        for i in range(thread * rows // threads, (thread + 1) * rows // threads):
            total = np.float32(0)
            for j in range(x.shape[0]):
                total += np.float32(matrix[i, j]) * x[j]
            y[i] = total * scale[i]


@compiled(fastmath=True)
def normalize(x, y):
    """y = x / RMS(x); gains are in the following matrix."""
    squares = np.float32(0)
    for j in range(x.shape[0]):
        squares += x[j] * x[j]
    factor = ONE / np.sqrt(squares / np.float32(x.shape[0]) + EPSILON)
    for j in range(x.shape[0]):
        y[j] = x[j] * factor


@compiled(fastmath=True)
def rotate(x, gain, cos, sin):
    """Normalise one head's query or key, in place, and turn it to its position."""
    normalize(x, x)
    half = x.shape[0] // 2
    for j in range(half):
        a, b = x[j] * gain[j], x[j + half] * gain[j + half]
        x[j] = a * cos[j] - b * sin[j]
        x[j + half] = b * cos[j] + a * sin[j]


@compiled(fastmath=True, parallel=True)
def attend(q, keys, values, position, scores, out, threads):
    """q (H, head_dim), keys and values (KV, block_size, head_dim), out (H, head_dim): heads shared
    among the threads."""
    heads, size = q.shape
    shared = heads // keys.shape[0]
    factor = np.float32(size) ** np.float32(-0.5)
    for thread in prange(threads):
        for head in range(thread * heads // threads, (thread + 1) * heads // threads):
            k, v, s = keys[head // shared], values[head // shared], scores[head]
            highest = np.float32(-np.inf)
            for t in range(position + 1):
                total = np.float32(0)
                for j in range(size):
                    total += q[head, j] * k[t, j]
                s[t] = total * factor
                highest = max(highest, s[t])
            total = np.float32(0)
            for t in range(position + 1):
                s[t] = np.exp(s[t] - highest)
                total += s[t]
            out[head, :] = 0
            for t in range(position + 1):
                weight = s[t] / total
                for j in range(size):
                    out[head, j] += weight * v[t, j]


@compiled(fastmath=True)
def next_logits(token, position, packed, keys, values, logits, threads):
    """Read `token` at `position` into the cache; logits (V,) of what follows it."""
    (embedding, qkv, qkv_scale, o, o_scale, gate_up, gate_up_scale, down, down_scale) = packed[:9]
    (head, head_scale, q_gain, k_gain, cos, sin) = packed[9:]
    layers, width = qkv.shape[0], qkv.shape[2]
    kv_heads, size = keys.shape[1], keys.shape[3]
    heads = width // size
    hidden = down.shape[2]
    x = embedding[token].copy()
    h = np.empty(width, dtype=np.float32)
    projected = np.empty(qkv.shape[1], dtype=np.float32)
    q = projected[:width].reshape(heads, size)
    k = projected[width : width + kv_heads * size].reshape(kv_heads, size)
    v = projected[width + kv_heads * size :].reshape(kv_heads, size)
    scores = np.empty((heads, keys.shape[2]), dtype=np.float32)
    mixed = np.empty(width, dtype=np.float32)
    branch = np.empty(2 * hidden, dtype=np.float32)
    for layer in range(layers):
        normalize(x, h)
        multiply(qkv[layer], qkv_scale[layer], h, projected, threads)
        for i in range(heads):
            rotate(q[i], q_gain[layer], cos[position], sin[position])
        for i in range(kv_heads):
            rotate(k[i], k_gain[layer], cos[position], sin[position])
            keys[layer, i, position] = k[i]
            values[layer, i, position] = v[i]
        out = mixed.reshape(heads, size)
        attend(q, keys[layer], values[layer], position, scores, out, threads)
        multiply(o[layer], o_scale[layer], mixed, h, threads)
        for j in range(width):
            x[j] += h[j]
        normalize(x, h)
        multiply(gate_up[layer], gate_up_scale[layer], h, branch, threads)
        for j in range(hidden):
            gate = branch[j]
            branch[j] = gate / (ONE + np.exp(-gate)) * branch[hidden + j]
        multiply(down[layer], down_scale[layer], branch[:hidden], h, threads)
        for j in range(width):
            x[j] += h[j]
    normalize(x, h)
    multiply(head, head_scale, h, logits, threads)


@compiled()
def write(token, position, uniform, seen, choice, packed, keys, values, ids, threads):
    """As many characters as `uniform` has numbers into `ids`, after `token` at `position`.

    choice is (kind, limit, temperature, penalty) of `fill_distribution`. Returns the last logits.
    """
    kind, limit, temperature, penalty = choice
    size = packed[0].shape[0]
    logits = np.empty(size, dtype=np.float32)
    p = np.empty(size, dtype=np.float64)
    for i in range(len(uniform)):
        next_logits(token, position + i, packed, keys, values, logits, threads)
        fill_distribution(logits, seen, kind, limit, temperature, penalty, p)
        token = draw_one(p, uniform[i])
        seen[token] = True
        ids[i] = token
    return logits


@dataclass(frozen=True)
class Packed:
    """A network's weights as `write` reads them."""

    arrays: tuple[NDArray, ...]

    @classmethod
    def of(cls, gpt: GPT, weights: Weights = "float32") -> "Packed":
        """Layers stacked; each norm's gain multiplied into the matrix that reads it."""

        def stack(matrices: list[torch.Tensor]) -> tuple[NDArray, NDArray]:
            w = torch.stack(matrices).float()  # (L, rows, columns)
            if weights == "float32":
                return w.contiguous().numpy(), np.ones(w.shape[:2], dtype=np.float32)
            scale = w.abs().amax(dim=2).clamp(min=1e-12) / 127
            return (w / scale[..., None]).round().to(torch.int8).numpy(), scale.numpy()

        with torch.no_grad():
            blocks = [(b.attention_norm, b.attention, b.mlp_norm, b.mlp) for b in gpt.blocks]
            qkv = [
                torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)) * norm.weight
                for norm, a, _, _ in blocks
            ]
            gate_up = [
                torch.cat((m.gate_proj.weight, m.up_proj.weight)) * norm.weight
                for _, _, norm, m in blocks
            ]
            head = (gpt.lm_head.weight * gpt.norm.weight).float().contiguous().numpy()
            gains = [
                torch.stack([getattr(a, name).weight for _, a, _, _ in blocks]).float().numpy()
                for name in ("q_norm", "k_norm")
            ]
            return cls(
                (
                    gpt.embedding.weight.detach().float().contiguous().numpy(),
                    *stack(qkv),
                    *stack([a.o_proj.weight for _, a, _, _ in blocks]),
                    *stack(gate_up),
                    *stack([m.down_proj.weight for _, _, _, m in blocks]),
                    head,
                    np.ones(len(head), dtype=np.float32),
                    *gains,
                    gpt.cos[:, 0].float().contiguous().numpy(),
                    gpt.sin[:, 0].float().contiguous().numpy(),
                )
            )
