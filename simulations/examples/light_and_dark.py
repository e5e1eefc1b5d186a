"""Pictures of the pages: legible in the reader's light or dark mode."""

from heterofl_flwr.report.drawing import COLOURS


def follow_mode(svg: str) -> str:
    """Return an SVG picture whose colours follow the reader's light or dark mode; numbers on dark shades stay white."""
    used = {name: pair for name, pair in COLOURS.items() if pair[0] in svg and name != "paper"}
    light, dark = (" ".join(f"--{name}: {pair[mode]};" for name, pair in used.items()) for mode in (0, 1))
    for name, (colour, _) in used.items():
        svg = svg.replace(colour, f"var(--{name})")
    rules = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)
