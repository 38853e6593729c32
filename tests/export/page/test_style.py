"""Laws of the page's colours: text can be read in both schemes, by WCAG 2.1."""

import colorsys
import re

import pytest

from lightning_app.export.page.page import read_part

STYLE = read_part("style.css")
LIGHT, DARK = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
Colour = tuple[float, float, float]  # red, green and blue, from 0 to 1

TEXT = [  # a colour, and its background
    *[(text, paper) for text in ("ink", "soft", "accent") for paper in ("paper", "card")],
    ("ink", "track"),
    ("on-accent", "accent"),
    ("warn", "warn-paper"),
    *[("ink", shade) for shade in ("surprise", "attend")],
]
EDGES = [(edge, paper) for edge in ("control", "accent", "bar") for paper in ("paper", "card")]


def colours(scheme: str) -> dict[str, Colour]:
    values = dict(re.findall(r"--([\w-]+): ([^;]+);", LIGHT))
    values |= dict(re.findall(r"--([\w-]+): ([^;]+);", DARK)) if scheme == "dark" else {}
    found = {}
    for name, value in values.items():
        if value.startswith("#"):
            red, green, blue = (int(value[i : i + 2], 16) / 255 for i in (1, 3, 5))
            found[name] = (red, green, blue)
        elif len(parts := re.findall(r"[\d.]+(?=%|\s)", value)) == 3 and "%" in value:
            hue, saturation, lightness = map(float, parts)
            found[name] = colorsys.hls_to_rgb(hue / 360, lightness / 100, saturation / 100)
    return found


def luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Colour, b: Colour) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_is_that_of_the_standard():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "background"), TEXT)
def test_text_has_a_contrast_of_at_least_4_5(scheme, text, background):
    found = colours(scheme)
    assert contrast(found[text], found[background]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("edge", "background"), EDGES)
def test_edges_of_controls_and_bars_have_a_contrast_of_at_least_3(scheme, edge, background):
    found = colours(scheme)
    assert contrast(found[edge], found[background]) >= 3
