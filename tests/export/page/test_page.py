"""Laws of the exported page: it is whole, it allows nothing else, and it trusts no text."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_app.data.datamodule import CharDataModule
from lightning_app.evaluation.baselines import cached_baselines
from lightning_app.export.page.page import (
    about,
    export_page,
    pack_tensors,
    page_html,
    page_title,
)
from lightning_app.runs.checkpoint import TrainedModel, load
from tests.helpers import random_network, refusal, save_run, small_checkpoint

HOSTILE = "</script><script>alert(1)</script>&\"'{{weights}}"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def by_id(self, name: str) -> str:
        (i,) = (i for i, (_, attrs) in enumerate(self.found) if attrs.get("id") == name)
        return self.texts[i]


def small_model(**sizes) -> TrainedModel:
    return load(save_run("small", small_checkpoint(**sizes)))


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_page_loads_nothing_from_elsewhere():
    page = page_html(small_model())
    elements = Elements(page)
    links = [a[n] for _, a in elements.found for n in ("src", "href", "action") if n in a]
    assert links == ["data:,", "#text"]
    assert "{{" not in page
    urls = set(re.findall(r"https?://[\w./]+", page))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name, which is not loaded


def test_the_policy_allows_the_pages_own_scripts_and_style_only():
    elements = Elements(page_html(small_model()))
    (policy,) = (a["content"] for _, a in elements.found if "http-equiv" in a)

    def hashes(tag: str) -> list[str]:
        pairs = zip(elements.found, elements.texts, strict=True)
        own = [text for (name, a), text in pairs if name == tag and "type" not in a]
        digests = [hashlib.sha256(text.encode()).digest() for text in own]
        return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [*hashes("script"), "'wasm-unsafe-eval'"]
    assert rules["style-src"].split() == hashes("style")
    assert not any("style" in attrs for _, attrs in elements.found)  # they would be blocked


def test_names_and_alphabets_cannot_leave_their_place():
    alphabet = "".join(sorted(set(HOSTILE + "\u2028天")))
    state = small_checkpoint(alphabet=alphabet)
    state["lightning_app"]["corpus"] = f"/home/someone/{HOSTILE}.txt"
    trained = load(save_run("hostile", state))
    plain, hostile = Elements(page_html(small_model())), Elements(page_html(trained))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in plain.found]
    model = json.loads(hostile.by_id("model"))
    assert "".join(map(chr, model["alphabet"])) == alphabet
    weights = gzip.decompress(base64.b64decode(hostile.by_id("weights")))
    assert weights == pack_tensors(trained.gpt)[1]


def test_a_page_names_the_text_without_the_folders_of_its_author():
    state = small_checkpoint()
    state["lightning_app"]["corpus"] = "/home/someone/secret/my.txt"
    trained = load(save_run("mine", state))
    assert page_title(trained) == "my.txt"
    assert "secret" not in page_html(trained)


def test_losses_are_in_bits_and_the_unigram_loss_is_the_entropy_of_the_counts():
    state = small_checkpoint()
    state["lightning_app"]["val_loss"] = float(np.log(4))
    model = json.loads(Elements(page_html(load(save_run("a", state)))).by_id("model"))
    p = np.array([3, 5, 1, 1, 2, 4]) / 16
    assert model["about"]["bits"] == pytest.approx(2)
    assert model["about"]["uniform_bits"] == pytest.approx(np.log2(7))
    assert model["about"]["unigram_bits"] == pytest.approx(-(p * np.log2(p)).sum())


def test_the_page_has_the_baselines_that_were_measured_on_the_validation_text():
    Path("my.txt").write_text("".join(f"line {i}, and {i * i}\n" for i in range(2000)))
    data = CharDataModule("my.txt")
    trained = replace(small_model(), data=data.state_dict())
    assert about(trained)["baselines"] == []
    found = cached_baselines(data.text, data.bounds["train"], data.bounds["val"])
    shown = dict(about(trained)["baselines"])
    losses = {b.name: b.nats for b in found.results if b.nats is not None}
    assert shown.keys() == losses.keys() - {"uniform", "unigram"}
    assert all(bits == pytest.approx(losses[name] / np.log(2)) for name, bits in shown.items())


@pytest.mark.parametrize("tables", [(), (20, 50)])
def test_a_parameter_takes_one_byte_except_in_the_embedding_and_the_head(tables):
    gpt = random_network(0, n_embd=64, mlp_size=128, ngram_rows=tables)
    offsets, weights = pack_tensors(gpt)
    parameters = sum(p.numel() for p in gpt.parameters())
    if tables:  # a byte for a row, two for an entry; the rest is float32
        parameters += sum(tables) + 2 * len(gpt.ngrams.counts)
        parameters += 3 * (gpt.ngrams.weight.numel() + gpt.ngrams.gates.numel())
    rows = sum(p.size(0) for p in gpt.parameters() if p.ndim == 2)
    in_float32 = gpt.embedding.weight.numel() + gpt.lm_head.weight.numel()
    assert len(weights) < parameters + 3 * in_float32 + 4 * rows + 16 * len(offsets)
    assert all(offset % 16 == 0 for offset in offsets.values())
    embedding = np.frombuffer(weights, "<f4", gpt.embedding.weight.numel(), offsets["embedding"])
    assert np.array_equal(embedding, gpt.embedding.weight.detach().numpy().ravel())


def test_an_existing_file_is_not_overwritten():
    Path("mine.html").write_text("mine")
    assert "mine.html exists" in refusal(export_page, small_model(), Path("mine.html"))
    assert Path("mine.html").read_text() == "mine"


def test_the_network_is_not_changed():
    trained = small_model()
    before = {name: w.clone() for name, w in trained.gpt.state_dict().items()}
    assert page_html(trained) == page_html(trained)
    assert all(torch.equal(w, before[name]) for name, w in trained.gpt.state_dict().items())
