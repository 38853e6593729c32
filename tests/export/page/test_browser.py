"""Laws of the page in a real browser: Chromium, headless, with the page opened from the disk."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.export.page.page import page_html
from lightning_app.model.kv_cache import context_length
from lightning_app.runs.checkpoint import TrainedModel
from tests.export.page.test_engine import compiled_logits, predicted
from tests.helpers import writing_network
from tests.serving.running import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
ALPHABET = "\n &<>abcé天"
HOSTILE_NAME = "<img src=x onerror=alert(1)> & <script>"


def model(alphabet: str = ALPHABET, unit: Any = "char", **sizes) -> TrainedModel:
    gpt = writing_network(24, vocab_size=len(alphabet), **sizes)
    info = {"counts": [*range(1, len(alphabet) + 1)], "val_loss": math.log(4), "step": 10}
    return TrainedModel(gpt, Tokenizer(alphabet, unit), info, {}, {"corpus": HOSTILE_NAME}, {})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Any]:
    """A function that opens a model's page from the disk. The test fails for an error on the page,
    a dialog, and a request for anything but the page and its worker."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: m.type == "error" and problems.append(m.text))
    page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
    file = tmp_path / "page.html"

    def requested(request: Any) -> None:
        if request.url != file.as_uri() and not request.url.startswith(("blob:", "data:")):
            problems.append(request.url)

    page.on("request", requested)

    def open_page(trained: TrainedModel) -> Any:
        Path(file).write_text(page_html(trained), encoding="utf-8", newline="\n")
        page.goto(file.as_uri())
        page.locator("#start:enabled").wait_for()
        return page

    yield open_page
    context.close()
    assert not problems


def shown_text(page: Any) -> str:
    return page.evaluate(
        "Array.from(document.querySelectorAll('#text .c'), (c) => c.character.text).join('')"
    )


def generate(page: Any, prompt: str, seed: int, length: int, method: str) -> str:
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    page.fill("#length", str(length))
    page.locator("#settings select").select_option(method)
    page.click("#start")
    page.locator("#status", has_text="Generated").wait_for()
    return shown_text(page)


@pytest.mark.parametrize("sizes", [{}, {"ngram_rows": (20, 50)}], ids=["plain", "tables"])
def test_a_seed_gives_predicts_text_and_texts_are_escaped(opened, sizes):
    trained = model(**sizes)
    page = opened(trained)
    assert page.inner_text("h1") == HOSTILE_NAME
    assert page.evaluate("document.body.dataset.kernel") == "WebAssembly"
    for method in ("prob", "argmax", "top_k", "min_p"):
        text = generate(page, "<a&\né", 7, 100, method)
        expected = predicted(trained, "<a&\né", 100, 7, sampling=method, temperature=0.8)
        assert text == "<a&\né" + expected
    assert generate(page, "", 3, 50, "prob") == predicted(
        trained, "", 50, 3, sampling="prob", temperature=0.8
    )


def test_the_page_of_a_server_generates_too(browser):
    trained = model()
    with running(page=page_html(trained)) as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#start:enabled").wait_for()
        text = generate(page, "<a&\né", 7, 100, "prob")
        page.close()
    assert text == "<a&\né" + predicted(trained, "<a&\né", 100, 7, sampling="prob", temperature=0.8)


def test_bytes_are_shown_as_characters_and_selected_one_by_one(opened):
    trained = model("".join(map(chr, range(256))), "byte")
    page = opened(trained)
    page.click("#tab-score")
    page.fill("#pasted", "é天😀")
    page.click("#score")
    page.locator("#status", has_text="Scored 9").wait_for()
    assert shown_text(page) == "é天😀"
    page.locator("#text .c").nth(1).click()
    page.locator("#chosen", has_text="byte 1 of 3").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator("#chosen", has_text="byte 2 of 3").wait_for()


@torch.no_grad()
def test_a_character_shows_its_likeliest_alternatives_and_what_settings_do_to_them(opened):
    trained = model()
    page = opened(trained)
    text = generate(page, "ab", 5, 60, "prob")
    page.locator("#text").focus()
    page.keyboard.press("Home")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    page.locator("#chosen", has_text="is number 41 of the text").wait_for()
    ids = trained.tokenizer.encode(text).tolist()
    window = ids[40 - context_length(40, 24) : 40]
    logits = torch.from_numpy(compiled_logits(trained.gpt, window)[-1]).double()

    def shares() -> list[str]:
        return page.locator("#candidates .share").all_inner_texts()

    def expected(p: torch.Tensor) -> list[str]:
        order = logits.argsort(descending=True)
        return ["<0.1 %" if p[i] < 0.001 else f"{100 * p[i]:.1f} %" for i in order]

    sliders = page.locator("#live-settings")
    sliders.locator("input[data-name=temperature]").fill("1")
    assert shares() == expected(logits.softmax(-1))
    sliders.locator("input[data-name=temperature]").fill("2")
    assert shares() == expected((logits / 2).softmax(-1))
    sliders.locator("select").select_option("top_p")
    sliders.locator("input[data-name=top_p]").fill("0.01")
    assert shares() == ["100.0 %"] + ["never"] * (len(ALPHABET) - 1)
    assert page.locator("#settings input[data-name=top_p]").input_value() == "0.01"
    assert page.locator("#heads input").count() == 1 + 2 * 2
    page.get_by_role("radio", name="Layer 2, head 1").check(force=True)
    assert page.locator("#strip span").count() == len(window)
    assert "before" in page.inner_text("#looked-at")


def test_a_pasted_text_is_coloured_by_surprise_and_its_bits_are_added(opened):
    trained = model()
    page = opened(trained)
    text = "<b>é\na天&" * 12
    page.click("#tab-score")
    page.fill("#pasted", text)
    page.click("#score")
    page.locator("#status", has_text=f"Scored {len(text)} characters").wait_for()
    ids = trained.tokenizer.encode(text).tolist()
    bits = [-math.log2(trained.unigram[ids[0]])]
    for n in range(1, len(ids)):
        window = ids[n - context_length(n, 24) : n]
        logits = compiled_logits(trained.gpt, window)[-1].astype(np.float64)
        bits.append((np.log(np.exp(logits).sum()) - logits[ids[n]]) / math.log(2))
    assert page.inner_text("#bits strong") == f"{np.mean(bits):.2f}"
    levels = page.evaluate(
        "Array.from(document.querySelectorAll('#text .c'), (c) => +/b(\\d)/.exec(c.className)[1])"
    )
    near = [abs(level - min(8, b)) <= 0.51 for level, b in zip(levels, bits, strict=True)]
    assert all(near)
    assert shown_text(page) == text


def test_unknown_characters_are_named_and_replaced_only_when_asked(opened):
    page = opened(model())
    page.fill("#prompt", "aÁx")
    assert "Á (U+00C1), x (U+0078)" in page.inner_text("#prompt-unknown")
    page.click("#start")
    assert shown_text(page) == ""  # refused
    page.get_by_role("button", name="Replace Á by a").click()
    assert page.input_value("#prompt") == "aax"
    page.get_by_role("button", name="Remove them").click()
    assert page.input_value("#prompt") == "aa"
    assert page.inner_text("#prompt-unknown") == ""


def test_a_text_can_be_stopped(opened):
    page = opened(model(n_layer=4, n_embd=192, mlp_size=512))  # not faster than the click
    page.fill("#length", "20000")
    page.click("#start")
    page.locator("#text .c").nth(20).wait_for()
    page.locator("#panel-generate .stop").click()
    page.locator("#status", has_text="Stopped").wait_for()
    length = page.locator("#text .c").count()
    page.locator("#start:enabled").wait_for()
    assert page.locator("#text .c").count() == length < 20000


def test_nothing_is_wider_than_a_phone(opened):
    page = opened(model())
    page.set_viewport_size({"width": 360, "height": 740})
    generate(page, "ab", 5, 60, "prob")
    page.check("#coloured")
    page.locator("#text .c").nth(9).click()
    page.locator("#inspector.open").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator("#inspector").bounding_box()
    assert box["y"] + box["height"] == 740  # a sheet at the bottom
    chosen = page.locator("#text .chosen").bounding_box()
    assert chosen["y"] + chosen["height"] <= box["y"]
