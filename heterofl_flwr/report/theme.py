"""The colours of figures and page: each has a value for light and one for dark surroundings.

Figures are drawn in the light values. In the page each value becomes a CSS variable, so it must stand for one colour
only.
"""

from collections.abc import Mapping
from types import MappingProxyType

COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "paper": ("#ffffff", "#14171c"),
        "card": ("#f5f7fa", "#1d2128"),
        "ink": ("#1c2330", "#e8ebf0"),
        "muted": ("#5b6675", "#a2acba"),
        "grid": ("#dde2e9", "#333a45"),
        "blue": ("#3d5bd9", "#8ea2ff"),
        "teal": ("#0b8794", "#4cc7d3"),
        "green": ("#3f8f3a", "#7fcf76"),
        "amber": ("#b97a00", "#e6b04d"),
        "red": ("#c8444f", "#f08a8f"),
        "violet": ("#8a4fbf", "#c39af0"),
    }
)
SERIES = ("blue", "teal", "green", "amber", "red", "violet")
DASHES = ("-", "--", ":")


def light(name: str) -> str:
    """Return a colour as figures use it."""
    return COLOURS[name][0]


def series(number: int) -> tuple[str, str]:
    """Return colour and line style of the n-th of several series; no two of the first 18 are alike."""
    return light(SERIES[number % len(SERIES)]), DASHES[number // len(SERIES) % len(DASHES)]


def css_variables() -> str:
    """Return the CSS that defines every colour, for light and for dark surroundings."""
    values = [";".join(f"--{name}:{pair[mode]}" for name, pair in COLOURS.items()) for mode in (0, 1)]
    return f":root{{{values[0]}}}\n@media (prefers-color-scheme: dark){{:root{{{values[1]}}}}}"


def with_variables(svg: str) -> str:
    """Return SVG whose colours are those of the page."""
    for name, (value, _) in COLOURS.items():
        svg = svg.replace(value, f"var(--{name})")
    return svg
