"""Speed of `serve`, beside llama.cpp's server with the same network.

    python benchmarks/serve.py [--rounds 3] [--clients 1 8 64] [--max_tokens 200]

Serves a network of random weights with `main.py serve`, and its GGUF file (f32) with the server in
the package xllamacpp, one after the other in each round, because they would share the processors.
Each client sends one streaming request after the other, at temperature 0.8 and top_p 0.9, with its
own prompt of 20 characters. Measured: characters per second of all clients, and the median time to
a text's first character, after a request of each client that is not counted. `serve` chooses its
number of threads itself; llama.cpp gets one, and as many as there are cores.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.export.gguf import export_gguf
from lightning_app.model.gpt import GPT, GPTConfig
from lightning_app.runs.checkpoint import (
    CHECKPOINT_FORMAT,
    LEGACY_DEFAULTS,
    NETWORK_PREFIX,
    SECTION,
    write_checkpoint,
)

ALPHABET = "".join(chr(0x20 + i) for i in range(65))
SHAPE = {"block_size": 256, "n_layer": 4, "n_head": 5, "n_embd": 160, "mlp_size": 432}  # gpt_char
LLAMA = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, slots = sys.argv[1], int(sys.argv[2])
p.n_threads_http = slots + 2
p.n_parallel, p.n_ctx = slots, 256 * slots
p.verbosity = -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
time.sleep(10**6)
"""


def make_files(folder: Path) -> tuple[Path, Path]:
    """A checkpoint and a GGUF file of one network."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), **SHAPE)).eval()
    for p in gpt.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    arguments = {"alphabet": ALPHABET, "n_kv_head": None, "dropout": 0.0, "tie_embeddings": False}
    section = {"format": CHECKPOINT_FORMAT, "step": 1, "counts": [1] * len(ALPHABET)}
    state = {
        "state_dict": {NETWORK_PREFIX + name: w for name, w in gpt.state_dict().items()},
        "hyper_parameters": {**SHAPE, **arguments, "rope_theta": gpt.config.rope_theta},
        "global_step": 1,
        SECTION: LEGACY_DEFAULTS | section,
    }
    checkpoint, gguf = folder / "bench.ckpt", folder / "bench.gguf"
    write_checkpoint(state, checkpoint)
    export_gguf(gpt, ALPHABET, gguf, "char", "f32")
    return checkpoint, gguf


@contextmanager
def server(command: list[str], stream: str) -> Iterator[int]:
    """A server's process; gives the port that it prints on `stream`."""
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    pipes = {stream: subprocess.PIPE, other: subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, **pipes)
    try:
        for line in getattr(process, stream):
            if (found := re.search(r"http://[\w.]+:(\d+)", line)) and "page" not in line:
                yield int(found[1])
                return
        raise RuntimeError(f"{command[:3]} ended with {process.wait()}")
    finally:
        process.kill()
        process.wait()


def ask(port: int, client: int, number: int, length: int) -> tuple[int, float, float]:
    """One request: characters received, and the moments of the first and the last of them."""
    rng = np.random.default_rng([client, number])
    body = {"prompt": "".join(rng.choice(list(ALPHABET), 20)), "stream": True}
    body |= {"max_tokens": length, "temperature": 0.8, "top_p": 0.9, "seed": client * 100 + number}
    body |= {"top_k": 0, "min_p": 0}  # llama.cpp would use its own limits too
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    characters, first, last = 0, 0.0, 0.0
    for line in answer:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            if choices and (text := choices[0]["text"]):
                last = time.perf_counter()
                first = first or last
                characters += len(text)
    return characters, first, last


def measure(port: int, clients: int, length: int, requests: int = 2) -> tuple[float, float]:
    """Characters per second, and the median seconds to the first character."""
    barrier = threading.Barrier(clients)
    totals: list[int] = []
    waits: list[float] = []
    moments: list[float] = []

    def run(client: int) -> None:
        ask(port, client, 0, 8)
        barrier.wait()
        for number in range(1, requests + 1):
            begin = time.perf_counter()
            characters, first, last = ask(port, client, number, length)
            totals.append(characters)
            waits.append(first - begin)
            moments.extend((begin, last))

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (max(moments) - min(moments)), statistics.median(waits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--max_tokens", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoint, gguf = make_files(Path(name))
        python, cores = sys.executable, str(os.cpu_count() or 1)
        ours = [python, str(ROOT / "main.py"), "serve", "--port", "0", "--ckpt_path"]
        slots = str(max(args.clients))
        servers: dict[str, tuple[list[str], str]] = {
            "serve": ([*ours, str(checkpoint)], "stderr"),
            "serve, int8": ([*ours, str(checkpoint), "--weights", "int8"], "stderr"),
        }
        try:
            import xllamacpp  # noqa: F401

            for threads in sorted({"1", cores}):
                label = f"llama.cpp, {threads} threads"
                servers[label] = ([python, "-c", LLAMA, str(gguf), slots, threads], "stdout")
        except ImportError:
            print("llama.cpp is not measured: pip install xllamacpp")
        results: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(args.rounds):
            for label, (command, stream) in servers.items():
                with server(command, stream) as port:
                    for clients in args.clients:
                        figures = measure(port, clients, args.max_tokens)
                        results.setdefault((label, clients), []).append(figures)
                        print(f"{label}, {clients}: {figures[0]:,.0f} characters/s, first after "
                              f"{figures[1] * 1000:.0f} ms", flush=True)  # fmt: skip
        print("\nmedians:")
        for (label, clients), figures in results.items():
            speed, wait = (statistics.median(x) for x in zip(*figures, strict=True))
            print(f"| {label} | {clients} | {speed:,.0f} | {wait * 1000:.0f} ms |")


if __name__ == "__main__":
    main()
