"""A report on the errors of a network: one HTML page, with its plots in the same file.

Loss by position in the window, loss by class of character, calibration, how much of generated text
is copied from the training text, and the passages with the highest loss.
"""

import html
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from lightning_app.data.batches import Batch
from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.evaluation.overlap import (
    COPY_LENGTH,
    WindowIndex,
    covered_characters,
    passages,
)
from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHER_BYTE = "\ufffd"  # displayed for a byte of a non-ASCII character
PASSAGE_LENGTH = 80  # characters
MAX_PASSAGES = 20
CONTEXT_LENGTH = 60  # characters displayed before a passage
BINS = 10  # of confidence
SAMPLE_LENGTH = 3000  # characters generated to look for copies
MAX_CACHED_ALPHABET = 500  # characters; of larger alphabets most pairs never occur


@dataclass(frozen=True)
class Scores:
    """Results for every scored character, in reading order, (N,) each."""

    targets: np.ndarray  # ids
    losses: np.ndarray  # nats
    positions: np.ndarray  # index in the window of the character from which the target is predicted
    confidence: np.ndarray  # the probability of the most likely character
    correct: np.ndarray  # whether that is the target


@torch.no_grad()
def collect_scores(gpt: torch.nn.Module, batches: Iterable[Batch]) -> Scores:
    """Score batches of (idx, targets), (B, T) each; characters whose target is -1 are left out."""
    columns: list[tuple[torch.Tensor, ...]] = []
    for idx, targets in tqdm(
        batches, desc="reading", unit="batch", delay=2, leave=False, disable=None
    ):
        log_p = gpt(idx).float().log_softmax(-1)  # (B, T, V)
        scored = targets >= 0
        losses = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        highest, best = log_p.max(-1)
        positions = torch.arange(idx.size(1)).expand_as(targets)
        rows = (targets, losses, positions, highest.exp(), best == targets)
        columns.append(tuple(x[scored] for x in rows))
    return Scores(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))


def loss_by_context(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """(smallest number of characters of context, mean loss) of ranges of positions in the window.

    Each range extends to 1.4 times the end of the one before it: the mean of one position has a
    large random error.
    """
    size = int(scores.positions.max()) + 1
    edges = np.unique(np.round(2 ** np.arange(0, np.log2(size + 1), 0.5)).astype(int)) - 1
    edges = edges[edges < size]
    count = np.add.reduceat(np.bincount(scores.positions, minlength=size), edges)
    total = np.add.reduceat(
        np.bincount(scores.positions, weights=scores.losses, minlength=size), edges
    )
    scored = count > 0
    return edges[scored] + 1, total[scored] / count[scored]


def displayed_alphabet(tokenizer: Tokenizer) -> str:
    """The alphabet as the page displays it: with unit "byte", non-ASCII bytes as OTHER_BYTE."""
    if tokenizer.unit == "char":
        return tokenizer.alphabet
    return "".join(c if c.isascii() else OTHER_BYTE for c in tokenizer.alphabet)


def character_class(previous: str, c: str) -> str:
    """The class of a displayed character `c` that follows `previous`."""
    if c == OTHER_BYTE:
        return "byte of a non-ASCII character"
    if c == "\n":
        return "line end"
    if c.isspace():
        return "space"
    if c.isdigit():
        return "digit"
    if not c.isalpha():
        return "punctuation and symbols"
    inside = previous.isalpha() or previous == OTHER_BYTE
    if c.isupper():
        return "capital, inside a word" if inside else "capital, first of a word"
    return "letter, inside a word" if inside else "letter, first of a word"


def loss_by_class(scores: Scores, alphabet: str) -> list[tuple[str, int, float]]:
    """(class, characters, mean loss), the largest sum of losses first."""
    n = len(alphabet)

    def class_of(pair: int) -> str:
        return character_class(alphabet[pair // n], alphabet[pair % n])

    pairs = np.concatenate(([0], scores.targets[:-1])) * n + scores.targets
    cached = [class_of(pair) for pair in range(n * n)] if n < MAX_CACHED_ALPHABET else None
    classes = [cached[pair] if cached else class_of(pair) for pair in pairs.tolist()]
    unique, index = np.unique(classes, return_inverse=True)
    count = np.bincount(index)
    total = np.bincount(index, weights=scores.losses)
    rows = zip(unique.tolist(), count.tolist(), (total / count).tolist(), strict=True)
    return sorted(rows, key=lambda row: -row[1] * row[2])


def highest_loss_passages(scores: Scores) -> list[tuple[int, float]]:
    """(position, mean loss) of passages of PASSAGE_LENGTH characters that do not overlap, the
    highest loss first."""
    if len(scores.losses) < PASSAGE_LENGTH:
        return []
    sums = np.cumsum(np.concatenate(([0.0], scores.losses)))
    means = (sums[PASSAGE_LENGTH:] - sums[:-PASSAGE_LENGTH]) / PASSAGE_LENGTH
    found: list[tuple[int, float]] = []
    while len(found) < MAX_PASSAGES and np.isfinite(means).any():
        position = int(np.argmax(means))
        found.append((position, float(means[position])))
        means[max(0, position - PASSAGE_LENGTH + 1) : position + PASSAGE_LENGTH] = -np.inf
    return found


def calibration(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean confidence, accuracy and number of characters in each of BINS bins of confidence, and
    the expected calibration error (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities
    Using Bayesian Binning")."""
    bins = np.minimum((scores.confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    divisor = np.maximum(count, 1)
    confidence = np.bincount(bins, weights=scores.confidence, minlength=BINS) / divisor
    accuracy = np.bincount(bins, weights=scores.correct, minlength=BINS) / divisor
    error = float((count * np.abs(confidence - accuracy)).sum() / count.sum())
    return confidence, accuracy, count, error


def copying_lines(trained: TrainedModel, train: np.ndarray) -> list[str]:
    """How much of a text that the network generates is copied from the training text."""
    options = GenerateOptions(max_new_tokens=SAMPLE_LENGTH)
    (generated,) = generate_text(
        trained.gpt, trained.tokenizer, [""], options, seed=0, unigram=trained.unigram
    )
    text = trained.tokenizer.drop_invalid(generated)
    ids = trained.tokenizer.encode(text)
    found = WindowIndex(ids, COPY_LENGTH).find_in(train)
    longest = sorted(passages(found, COPY_LENGTH), key=lambda p: p.first - p.last)
    share = covered_characters(found, COPY_LENGTH, len(ids)) / len(ids)
    known = set(re.findall(r"\w+", trained.tokenizer.decode(train)))
    words = re.findall(r"\w+", text)
    new = [w for w in words if w not in known]
    lines = [
        f"{share:.1%} of {len(ids):,} generated characters occur in the training text, in passages "
        f"of {COPY_LENGTH} or more",
        f"{len(new) / max(1, len(words)):.1%} of {len(words):,} generated words do not occur in it"
        + (f": {', '.join(dict.fromkeys(new[:12]))}" if new else ""),
    ]
    for p in longest[:3]:
        lines.append(
            f"{p.last - p.first} characters: {trained.tokenizer.decode(ids[p.first : p.last])!r}"
        )
    return lines


def svg(draw: Callable[["Axes"], None]) -> str:
    """The plot that `draw` draws on given axes, as an SVG element. Raises UserError without
    matplotlib."""
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


def colored_text(text: str, losses: np.ndarray) -> str:
    """HTML in which the background of each character is red in proportion to its loss: white at 0
    nats, the full colour at 6."""
    spans = []
    for c, loss in zip(text, losses, strict=True):
        displayed = "⏎\n" if c == "\n" else html.escape(c)
        spans.append(
            f'<span style="background:rgba(220,60,40,{min(1, loss / 6):.2f})" '
            f'title="{loss:.2f} nats">{displayed}</span>'
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
    """The HTML page, given the ids of the training split. Raises UserError without matplotlib."""
    alphabet = displayed_alphabet(trained.tokenizer)
    copies = "".join(f"<li>{html.escape(line)}</li>" for line in copying_lines(trained, train))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>{scores.losses.mean():.4f} nats per character over {len(scores.losses):,} characters.</p>
<h2>Does more context help?</h2>
{context_section(scores)}
<h2>Which characters have the highest loss?</h2>
{class_section(scores, alphabet)}
<h2>Are the probabilities calibrated?</h2>
{calibration_section(scores)}
<h2>Does the network copy the training text?</h2>
<ul>{copies}</ul>
<h2>Passages with the highest loss</h2>
{passage_section(scores, alphabet)}
</html>
"""


def context_section(scores: Scores) -> str:
    context, losses = loss_by_context(scores)

    def draw(axes: "Axes") -> None:
        axes.plot(context, losses, marker="o")
        axes.axhline(scores.losses.mean(), color="gray", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel="characters of context", ylabel="nats")

    return f"""{svg(draw)}
<p>With a context of {context[0]} the loss is {losses[0]:.3f} nats per character, with {context[-1]}
or more {losses[-1]:.3f}; the dashed line is the mean.</p>"""


def class_section(scores: Scores, alphabet: str) -> str:
    total = scores.losses.sum()
    rows = "".join(
        f"<tr><td>{name}</td><td>{n:,}</td><td>{loss:.3f}</td><td>{n * loss / total:.1%}</td></tr>"
        for name, n, loss in loss_by_class(scores, alphabet)
    )
    return (
        "<table><tr><th></th><th>characters</th><th>nats each</th><th>of all loss</th></tr>"
        f"{rows}</table>"
    )


def calibration_section(scores: Scores) -> str:
    confidence, accuracy, count, error = calibration(scores)

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
        axes.plot(confidence[count > 0], accuracy[count > 0], marker="o")
        axes.set(xlabel="probability of the most likely character", ylabel="accuracy")

    return f"""{svg(draw)}
<p>Expected calibration error {error:.4f}; on the dashed line, the most likely character is correct
as often as its probability says.</p>"""


def passage_section(scores: Scores, alphabet: str) -> str:
    text = "".join(alphabet[i] for i in scores.targets)
    sections = []
    for first, loss in highest_loss_passages(scores):
        before = html.escape(text[max(0, first - CONTEXT_LENGTH) : first])
        last = first + PASSAGE_LENGTH
        sections.append(
            f"<p>{loss:.2f} nats per character, at {first:,}</p>"
            f'<pre><span class="before">{before}</span>'
            f"{colored_text(text[first:last], scores.losses[first:last])}</pre>"
        )
    return "".join(sections)
