"""The exported page in headless Chromium: its size, the time until it is ready, and its speed.

    pip install playwright && apt-get install chromium
    python benchmarks/page.py [--run NAME] [--rounds 3] [--browser /usr/bin/chromium]

Networks of random weights with 1.2 and 10.6 million parameters and a context of 256, or that of a
run. "short" is a text of 255 characters, "long" one of 1,000; with a context of 256, every 128 of
them half of it is read again. WebAssembly and JavaScript take turns.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.export.page.page import page_html
from lightning_app.model.gpt import GPT, GPTConfig
from lightning_app.runs.checkpoint import TrainedModel, load

ALPHABET = "".join(chr(0x20 + i) for i in range(65))
SHAPES = {
    "1.2 M": {"n_layer": 4, "n_head": 5, "n_embd": 160},
    "10.6 M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "mlp_size": 1024},
}
LENGTHS = {"short": 255, "long": 1000}


def make_page(shape: dict[str, int]) -> str:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), block_size=256, **shape)).eval()
    for p in gpt.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    return page_html(TrainedModel(gpt, Tokenizer(ALPHABET), {"counts": None}, {}, {}, {}))


def page_of_run(name: str) -> str:
    return page_html(load(Path("logs") / name / "checkpoints" / "best.ckpt"))


def measure(browser: Any, file: Path) -> dict[str, float]:
    """Seconds until the page is ready, and characters per second, as the page reports them."""
    page = browser.new_page()
    began = time.perf_counter()
    page.goto(file.as_uri())
    page.locator("#start:enabled").wait_for(timeout=60_000)
    results = {"ready": time.perf_counter() - began}
    for name, length in LENGTHS.items():
        for _ in range(2):  # the first compiles
            page.fill("#length", str(length))
            page.click("#start")
            page.locator("#status", has_text="Generated").wait_for(timeout=600_000)
            rate = re.search(r"\(([\d,]+) a second", page.inner_text("#status"))
            results[name] = float(rate[1].replace(",", ""))
    page.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="the name of a run in logs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        names = [args.run] if args.run else [*SHAPES]
        for name in names:
            page = page_of_run(name) if args.run else make_page(SHAPES[name])
            files = {engine: Path(folder) / f"{engine}.html" for engine in ("wasm", "js")}
            files["wasm"].write_text(page, encoding="utf-8")
            without = re.sub(r'(<script id="kernel"[^>]*>)[^<]*', r"\1", page)
            files["js"].write_text(without, encoding="utf-8")
            found: dict[str, list[dict[str, float]]] = {engine: [] for engine in files}
            for _ in range(args.rounds):
                for engine, file in files.items():
                    found[engine].append(measure(browser, file))
            print(f"{name}: {len(page) / 1e6:.2f} MB")
            for engine, rounds in found.items():
                for what in rounds[0]:
                    values = [r[what] for r in rounds]
                    spread = f"{min(values):,.2f} to {max(values):,.2f}"
                    print(f"  {engine:5} {what:6} {statistics.median(values):9,.2f}  ({spread})")


if __name__ == "__main__":
    main()
