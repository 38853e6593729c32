"""How the next character is chosen: the options of `predict`."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from lightning_app.errors import UserError
from lightning_app.generation.sampling import SAMPLING_METHODS

WeightFormat = Literal["float32", "bfloat16", "int8"]
CHOICE = ("sampling", "top_k", "top_p", "min_p")  # one decision in four options


@dataclass(frozen=True)
class GenerateOptions:
    """How characters are chosen.

    Args:
        sampling: argmax (the likeliest), prob (by probability), top_k, top_p or min_p (by
            probability among the likeliest); top5 is top_k with 5. Unset: what the options below
            say, else top_p.
        temperature: Below 1 is more careful, above 1 bolder; 0 is argmax.
        top_k: Choose among the k likeliest characters (5 when only the sampling is named).
        top_p: Choose among the likeliest characters that together have this probability (0.9).
        min_p: Choose among characters at least this likely, relative to the likeliest (0.05).
        repetition_penalty: Above 1 makes characters already in the text less likely; 1 is off.
        max_new_tokens: How many characters to write.
        stop: End after this text, which is included.
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
        """These options with others in place of some. Choosing a sampling method drops all four
        options of that choice, which are one decision. Raises UserError for unknown names."""
        names = [f.name for f in fields(self)]
        if unknown := [name for name in given if name not in names]:
            raise UserError(f"there is no option {unknown[0]}; use one of {', '.join(names)}")
        if any(given.get(name) is not None for name in CHOICE):
            given = dict.fromkeys(CHOICE) | given
        return replace(self, **given)

    def resolve(self) -> "GenerateOptions":
        """Fill in what is unset; raises UserError for options that contradict each other."""
        given = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        sampling, top_k = self.sampling, self.top_k
        if sampling == "top5":
            if top_k not in (None, 5):
                raise UserError(f"--sampling top5 contradicts --top_k {top_k}; leave one out")
            sampling, top_k = "top_k", 5
        if sampling is None:
            if len(given) > 1:
                both = " and ".join(f"--{name}" for name in given)
                raise UserError(f"{both} contradict each other; choose one with --sampling")
            sampling = given[0] if given else "top_p"
        if others := [name for name in given if name != sampling]:
            raise UserError(
                f"--sampling {sampling} contradicts --{others[0]}; "
                f"leave one out, or use --sampling {others[0]}"
            )
        if self.top_p == 0:
            raise UserError("--top_p is 0, which leaves no character; give a value up to 1")
        if self.stop == "":
            raise UserError("--stop is empty; give the text to end after, or leave it out")
        defaults = {"top_k": top_k or 5, "top_p": self.top_p or 0.9, "min_p": self.min_p}
        if defaults["min_p"] is None:
            defaults["min_p"] = 0.05
        chosen = {name: value for name, value in defaults.items() if name == sampling}
        if self.temperature == 0:
            return replace(self, sampling="argmax", top_k=None, top_p=None, min_p=None)
        return replace(self, sampling=sampling, **chosen)


def sampler_args(options: GenerateOptions) -> tuple[int, float, float, float]:
    """Resolved options as `sampling` takes them: kind, limit, temperature, repetition penalty."""
    limit = {"top_k": options.top_k, "top_p": options.top_p, "min_p": options.min_p}
    return (
        SAMPLING_METHODS.index(options.sampling),
        float(limit.get(options.sampling) or 0),
        float(options.temperature),
        float(options.repetition_penalty),
    )
