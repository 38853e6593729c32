"""Where a network fails: a page of HTML with its pictures inside.

Loss by place in the window, by kind of character, the most surprising passages, calibration, and
how much of what it writes it has copied.
"""

import html
import io
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from lightning_app.data.datamodule import Batch
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.evaluation.overlap import WindowIndex, covered_characters, passages
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel

OTHER = "\ufffd"  # shown for a byte of a longer character
PASSAGE = 80  # characters whose mean surprise is compared
PASSAGES = 20
BEFORE = 60  # characters shown before a passage
BINS = 10
COPIED = 50  # characters; shorter spans are how language is
WRITTEN = 3000  # characters written to look for copies


@dataclass(frozen=True)
class Scores:
    """For every character scored, in reading order, (N,) each."""

    targets: np.ndarray
    losses: np.ndarray  # nats
    places: np.ndarray  # how many characters of the window stand before it
    confidence: np.ndarray  # the probability of the likeliest character
    right: np.ndarray  # whether that was the one


@torch.no_grad()
def collect_scores(gpt: torch.nn.Module, batches: Collection[Batch]) -> Scores:
    columns: list[tuple[torch.Tensor, ...]] = []
    for idx, targets in tqdm(
        batches, desc="reading", unit="batch", delay=2, leave=False, disable=None
    ):
        log_p = gpt(idx).float().log_softmax(-1)
        scored = targets >= 0
        losses = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        top, best = log_p.max(-1)
        places = torch.arange(idx.size(1)).expand_as(targets)
        rows = (targets, losses, places, top.exp(), best == targets)
        columns.append(tuple(x[scored] for x in rows))
    return Scores(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))


def by_context(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of ranges of places in the window, each reaching 1.4 times as far as the one before
    (single places are a matter of chance), and the fewest characters seen in each."""
    size = int(scores.places.max()) + 1
    edges = np.unique(np.round(2 ** np.arange(0, np.log2(size + 1), 0.5)).astype(int)) - 1
    edges = edges[edges < size]
    count = np.add.reduceat(np.bincount(scores.places, minlength=size), edges)
    total = np.add.reduceat(
        np.bincount(scores.places, weights=scores.losses, minlength=size), edges
    )
    seen = count > 0
    return edges[seen] + 1, total[seen] / count[seen]


def displayed_alphabet(tokenizer: Tokenizer) -> str:
    """The alphabet as the page shows it: a byte of a longer character is none by itself."""
    if tokenizer.unit == "char":
        return tokenizer.alphabet
    return "".join(c if c.isascii() else OTHER for c in tokenizer.alphabet)


def character_kind(previous: str, c: str) -> str:
    if c == OTHER:
        return "byte of a longer character"
    if c == "\n":
        return "line end"
    if c.isspace():
        return "space"
    if c.isdigit():
        return "digit"
    if not c.isalpha():
        return "punctuation and signs"
    inside = previous.isalpha() or previous == OTHER
    if c.isupper():
        return "capital, inside a word" if inside else "capital, first of a word"
    return "letter, inside a word" if inside else "letter, first of a word"


def by_kind(scores: Scores, alphabet: str) -> list[tuple[str, int, float]]:
    """(kind, characters, mean loss), the costliest in sum first."""
    n = len(alphabet)
    pairs = np.concatenate(([0], scores.targets[:-1])) * n + scores.targets
    kinds = (
        [character_kind(alphabet[p // n], alphabet[p % n]) for p in range(n * n)]
        if n < 500
        else None
    )
    names = [
        kinds[p] if kinds else character_kind(alphabet[p // n], alphabet[p % n])
        for p in pairs.tolist()
    ]
    unique, index = np.unique(names, return_inverse=True)
    count = np.bincount(index)
    total = np.bincount(index, weights=scores.losses)
    rows = zip(unique.tolist(), count.tolist(), (total / count).tolist(), strict=True)
    return sorted(rows, key=lambda row: -row[1] * row[2])


def surprising(scores: Scores) -> list[tuple[int, float]]:
    """(place, mean loss) of the passages that surprised most, without overlap, most first."""
    if len(scores.losses) < PASSAGE:
        return []
    sums = np.cumsum(np.concatenate(([0.0], scores.losses)))
    means = (sums[PASSAGE:] - sums[:-PASSAGE]) / PASSAGE
    found: list[tuple[int, float]] = []
    while len(found) < PASSAGES and np.isfinite(means).any():
        at = int(np.argmax(means))
        found.append((at, float(means[at])))
        means[max(0, at - PASSAGE + 1) : at + PASSAGE] = -np.inf
    return found


def calibration(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean confidence, share right, and count, for BINS bins of confidence; and the expected
    calibration error (Naeini et al. 2015)."""
    bins = np.minimum((scores.confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    seen = np.maximum(count, 1)
    confidence = np.bincount(bins, weights=scores.confidence, minlength=BINS) / seen
    right = np.bincount(bins, weights=scores.right, minlength=BINS) / seen
    error = float((count * np.abs(confidence - right)).sum() / count.sum())
    return confidence, right, count, error


def copying(trained: TrainedModel, train: np.ndarray) -> list[str]:
    """Lines on how much of a text that the network writes stands in the training text."""
    options = GenerateOptions(max_new_tokens=WRITTEN)
    (text,) = generate_text(
        trained.gpt, trained.tokenizer, [""], options, seed=0, unigram=trained.unigram
    )
    text = trained.tokenizer.whole(text)
    ids = trained.tokenizer.encode(text)
    where = WindowIndex(ids, COPIED).found_in(train)
    spans = sorted(passages(where, COPIED), key=lambda p: p.first - p.last)
    share = covered_characters(where, COPIED, len(ids)) / len(ids)
    known = set(re.findall(r"\w+", trained.tokenizer.decode(train)))
    words = re.findall(r"\w+", text)
    new = [w for w in words if w not in known]
    lines = [
        f"{share:.1%} of {len(ids):,} characters written stand in the training text, in spans of "
        f"{COPIED} and more",
        f"{len(new) / max(1, len(words)):.1%} of {len(words):,} words are not in it"
        + (f": {', '.join(dict.fromkeys(new[:12]))}" if new else ""),
    ]
    for span in spans[:3]:
        copied = trained.tokenizer.decode(ids[span.first : span.last])
        lines.append(f"{span.last - span.first} characters: {copied!r}")
    return lines


def picture(draw) -> str:
    """What `draw(axes)` draws, as SVG."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("--report needs matplotlib: pip install -e '.[report]'") from None
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]


def colored(text: str, losses: np.ndarray) -> str:
    """Each character on a ground the redder the more it surprised; white is 0, full is 6 nats."""
    spans = []
    for c, loss in zip(text, losses, strict=True):
        displayed_alphabet = "⏎\n" if c == "\n" else html.escape(c)
        spans.append(
            f'<span style="background:rgba(220,60,40,{min(1, loss / 6):.2f})" '
            f'title="{loss:.2f} nats">{displayed_alphabet}</span>'
        )
    return "".join(spans)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .1rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } svg { max-width: 100%; height: auto }
pre { background: #f6f6f6; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere }
.before { color: #999 }
"""


def report_page(title: str, trained: TrainedModel, scores: Scores, train: np.ndarray) -> str:
    """The whole report. Raises UserError without matplotlib."""
    alphabet = displayed_alphabet(trained.tokenizer)
    text = "".join(alphabet[i] for i in scores.targets)
    mean = float(scores.losses.mean())
    context, context_losses = by_context(scores)
    confidence, right, count, error = calibration(scores)

    def draw_places(axes) -> None:
        axes.plot(context, context_losses, marker="o")
        axes.axhline(mean, color="gray", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel="characters seen before", ylabel="nats")

    def draw_calibration(axes) -> None:
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
        axes.plot(confidence[count > 0], right[count > 0], marker="o")
        axes.set(xlabel="probability of the likeliest character", ylabel="share right")

    kinds = "".join(
        f"<tr><td>{name}</td><td>{n:,}</td><td>{loss:.3f}</td>"
        f"<td>{n * loss / scores.losses.sum():.1%}</td></tr>"
        for name, n, loss in by_kind(scores, alphabet)
    )
    surprises = "".join(
        f"<p>{loss:.2f} nats a character, at {at:,}</p><pre>"
        f'<span class="before">{html.escape(text[max(0, at - BEFORE) : at])}</span>'
        f"{colored(text[at : at + PASSAGE], scores.losses[at : at + PASSAGE])}</pre>"
        for at, loss in surprising(scores)
    )
    copies = "".join(f"<li>{html.escape(line)}</li>" for line in copying(trained, train))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>{mean:.4f} nats a character over {len(scores.losses):,} characters.</p>
<h2>Does more context help?</h2>
{picture(draw_places)}
<p>With {context[0]} before it a character costs {context_losses[0]:.3f} nats, with
{context[-1]} and more {context_losses[-1]:.3f}; dashed, the mean.</p>
<h2>Which characters cost?</h2>
<table><tr><th></th><th>characters</th><th>nats each</th><th>of all loss</th></tr>{kinds}</table>
<h2>Does it know what it knows?</h2>
{picture(draw_calibration)}
<p>Expected calibration error {error:.4f}; on the dashed line a network is right as often as it
believes.</p>
<h2>Does it copy?</h2>
<ul>{copies}</ul>
<h2>What surprised it most</h2>
{surprises}
</html>
"""
