"""Conversion of figures to SVG."""

import io

import matplotlib as mpl
from matplotlib.figure import Figure

from heterofl_flwr.report.drawing import COLOURS

DARK = {
    "ink": "#e8ebf0",
    "muted": "#a2acba",
    "grid": "#333a45",
    "blue": "#8ea2ff",
    "teal": "#4cc7d3",
    "green": "#7fcf76",
    "amber": "#e6b04d",
    "red": "#f08a8f",
    "violet": "#c39af0",
}
"""Replacement of each colour in dark mode."""


def to_svg(figure: Figure, name: str, *, modes: bool = False) -> bytes:
    """Return the figure as SVG; equal figures give equal bytes.

    With ``modes`` it has no background, and its colours depend on the browser's light or dark mode.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=modes)
    return _with_modes(buffer.getvalue().decode()).encode() if modes else buffer.getvalue()


def _with_modes(svg: str) -> str:
    used = {name: colour for name, colour in COLOURS.items() if colour in svg}
    bright, dark = (" ".join(f"--{name}: {colours[name]};" for name in used) for colours in (COLOURS, DARK))
    for name, colour in used.items():
        svg = svg.replace(colour, f"var(--{name})")
    rules = f":root {{ {bright} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)
