"""How the next character is chosen: the options of `predict`, the distribution, and the draw.

The functions at the end are compiled, and every engine calls them, so the same logits and the same
uniform random number give the same character everywhere. Sums run from the lowest id to the
highest, in float64; of equally likely characters the one with the lower id ranks first.

A new sampling method needs a line in SAMPLING_METHODS, a number below it, its name and (if it has a
limit) its option in GenerateOptions, and its rule in `fill_distribution`.
"""

from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from numpy.typing import NDArray

from lightning_app.errors import UserError
from lightning_app.generation.numba_cache import compiled

# Each method, and the default of its limit (None: it has no limit). The option of a limit has the
# name of the method.
SAMPLING_METHODS: dict[str, float | None] = {
    "argmax": None,
    "prob": None,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.05,
}
ARGMAX, PROB, TOP_K, TOP_P, MIN_P = range(len(SAMPLING_METHODS))  # their numbers when compiled
DEFAULT_METHOD = "top_p"
LIMITS = tuple(method for method, default in SAMPLING_METHODS.items() if default is not None)
# The options that choose the method: giving one of them resets the others.
SAMPLING_OPTIONS = frozenset({"sampling", *LIMITS})

RANGES = (  # lowest and highest value
    ("temperature", 0, inf),
    ("top_k", 0, inf),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 0, inf),
    ("max_new_tokens", 0, inf),
)
WHOLE_NUMBERS = ("top_k", "max_new_tokens")

SamplerArgs = tuple[int, float, float, float]


@dataclass(frozen=True)
class GenerateOptions:
    """How characters are chosen.

    Args:
        sampling: argmax (the most likely), prob (drawn by probability), top_k, top_p or min_p
            (drawn by probability among the most likely); top5 is top_k with 5. Default: the one of
            top_k, top_p and min_p that is given, else top_p.
        temperature: Below 1 gives more predictable text, above 1 more varied text; 0 is argmax.
        top_k: Choose among the k most likely characters (5 if --sampling top_k is given alone).
        top_p: Choose among the fewest most likely characters whose probabilities reach this sum
            (0.9 if not given).
        min_p: Choose among characters with at least this fraction of the highest probability
            (0.05 if not given).
        repetition_penalty: Above 1 makes characters already in the text less likely; 1 is off.
        max_new_tokens: How many characters to generate.
        stop: Stop after this text, which is included.
    """

    sampling: Literal["argmax", "prob", "top_k", "top_p", "min_p", "top5"] | None = None
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = None
    top_p: ClosedUnitInterval | None = None
    min_p: ClosedUnitInterval | None = None
    repetition_penalty: PositiveFloat = 1.0
    max_new_tokens: NonNegativeInt = 500
    stop: str | None = None

    def updated(self, **given: Any) -> "GenerateOptions":
        """A copy with the `given` options; giving one of SAMPLING_OPTIONS first resets all of them.

        Raises UserError for a name that is not an option.
        """
        names = [f.name for f in fields(self)]
        if unknown := [name for name in given if name not in names]:
            raise UserError(f"there is no option {unknown[0]}; use one of {', '.join(names)}")
        if any(given.get(name) is not None for name in SAMPLING_OPTIONS):
            given = dict.fromkeys(SAMPLING_OPTIONS) | given
        return replace(self, **given)

    def check_ranges(self) -> None:
        """Raises UserError for a value of the wrong type or outside its range.

        The command line checks its own options; values from Python, a config or a checkpoint are
        checked here.
        """
        for name, lowest, highest in RANGES:
            value = getattr(self, name)
            types = (int,) if name in WHOLE_NUMBERS else (int, float)
            if value is not None and not (isinstance(value, types) and lowest <= value <= highest):
                what = "a number" if float in types else "a whole number"
                limit = (
                    f"from {lowest:g} to {highest:g}" if highest < inf else f"{lowest:g} or more"
                )
                raise UserError(f"{name} is {value!r}; give {what}, {limit}")
        if not isinstance(self.stop, str | None):
            raise UserError(f"stop is {self.stop!r}; give a text")
        if not self.repetition_penalty > 0:
            raise UserError("repetition_penalty is 0; give a number above 0")

    def resolve(self) -> "GenerateOptions":
        """Fill in the sampling method and its limit; raises UserError for contradicting options.

        Resolved options name one of SAMPLING_METHODS and, if it has one, its limit only.
        """
        self.check_ranges()
        given = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        method: str | None = self.sampling
        if method not in (None, "top5", *SAMPLING_METHODS):
            raise UserError(f"sampling is {method!r}; use one of {', '.join(SAMPLING_METHODS)}")
        if method == "top5":
            if given.setdefault("top_k", 5) != 5:
                raise UserError(f"--sampling top5 contradicts --top_k {self.top_k}; leave one out")
            method = "top_k"
        if method is None:
            if len(given) > 1:
                names = " and ".join(f"--{name}" for name in given)
                raise UserError(f"{names} contradict each other; choose one with --sampling")
            method = next(iter(given), DEFAULT_METHOD)
        if others := [name for name in given if name != method]:
            raise UserError(
                f"--sampling {method} contradicts --{others[0]}; "
                f"leave one out, or use --sampling {others[0]}"
            )
        if self.top_k == 0:
            raise UserError("--top_k is 0, which leaves no character; give 1 or more")
        if self.top_p == 0:
            raise UserError("--top_p is 0, which leaves no character; give a value up to 1")
        if self.stop == "":
            raise UserError("--stop is empty; give the text to end after, or leave it out")
        if self.temperature == 0:
            method = "argmax"
        resolved: dict[str, Any] = {"sampling": method, **dict.fromkeys(LIMITS)}
        if method in LIMITS:
            resolved[method] = given.get(method, SAMPLING_METHODS[method])
        return replace(self, **resolved)


def sampler_args(options: GenerateOptions) -> SamplerArgs:
    """Resolved options as `fill_distribution` takes them: method, limit, temperature, penalty."""
    method = options.sampling
    assert method in SAMPLING_METHODS, "call resolve() first"
    return (
        list(SAMPLING_METHODS).index(method),
        float(getattr(options, method) if method in LIMITS else 0),
        float(options.temperature),
        float(options.repetition_penalty),
    )


def distribution(
    logits: NDArray, seen: NDArray[np.bool_], options: GenerateOptions
) -> NDArray[np.float64]:
    """Probabilities (B, V) of the next character; see `fill_distribution`.

    logits (B, V); seen (B, V) is True for characters already in the row's text. `options` must be
    resolved.
    """
    p = np.empty(logits.shape, dtype=np.float64)
    fill_distributions(
        np.ascontiguousarray(logits, dtype=np.float32), seen, *sampler_args(options), p
    )
    return p


@compiled()
def fill_distribution(
    logits: NDArray[np.float32],
    seen: NDArray[np.bool_],
    method: int,
    limit: float,
    temperature: float,
    penalty: float,
    p: NDArray[np.float64],
) -> None:
    """Write the probabilities of the next character to p (V,).

    logits (V,); seen (V,) is True for characters already in the text. In this order: repetition
    penalty (CTRL, arXiv 1909.05858), temperature, softmax, removal of unlikely characters. `limit`
    is the k of top_k, the p of top_p (arXiv 1904.09751) or the p of min_p (arXiv 2407.01082).
    """
    size = len(p)
    for v in range(size):
        x = np.float64(logits[v])
        if penalty != 1 and seen[v]:
            x = x / penalty if x > 0 else x * penalty
        p[v] = x
    top = 0
    for v in range(size):
        if p[v] > p[top]:
            top = v
    if method == ARGMAX:
        p[:] = 0
        p[top] = 1
        return
    highest = p[top]
    total = 0.0
    for v in range(size):
        p[v] = np.exp((p[v] - highest) / temperature)
        total += p[v]
    for v in range(size):
        p[v] /= total
    if method == PROB:
        return
    if method == MIN_P:
        threshold = limit * p[top]
        for v in range(size):
            if p[v] < threshold:
                p[v] = 0
    else:
        order = np.argsort(-p, kind="mergesort")  # stable
        before = 0.0  # the probability of all characters that rank higher
        for rank in range(size):
            v = order[rank]
            own = p[v]
            if (rank >= limit) if method == TOP_K else (before >= limit):
                p[v] = 0  # the character with which the sum reaches top_p is kept
            before += own
    total = 0.0
    for v in range(size):
        total += p[v]
    for v in range(size):
        p[v] /= total


@compiled()
def draw_one(p: NDArray[np.float64], uniform: float) -> int:
    """The first id at which the cumulative sum of p (V,) exceeds `uniform` times the total of p;
    `uniform` is in [0, 1)."""
    total = 0.0
    for v in range(len(p)):
        total += p[v]
    cumulated, last = 0.0, 0
    for v in range(len(p)):
        if p[v] > 0:
            cumulated += p[v]
            last = v
            if cumulated > uniform * total:
                return v
    return last  # reached by rounding only: the last possible character


@compiled()
def fill_distributions(
    logits: NDArray[np.float32],
    seen: NDArray[np.bool_],
    method: int,
    limit: float,
    temperature: float,
    penalty: float,
    p: NDArray[np.float64],
) -> None:
    """`fill_distribution` for each row: logits, seen and p are (B, V)."""
    for row in range(len(p)):
        fill_distribution(logits[row], seen[row], method, limit, temperature, penalty, p[row])


@compiled()
def draw(probabilities: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ids (B,): the inverse CDF of each row of probabilities (B, V) at uniform (B,) in [0, 1)."""
    ids = np.empty(len(probabilities), dtype=np.int64)
    for row in range(len(ids)):
        ids[row] = draw_one(probabilities[row], uniform[row])
    return ids
