"""Conversion of figures to SVG."""

import io

import matplotlib as mpl
from matplotlib.figure import Figure


def to_svg(figure: Figure, name: str, *, transparent: bool = False) -> bytes:
    """Return the figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()
