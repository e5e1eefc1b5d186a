"""What pages take from the code is complete and current, and what they say of it by hand is current."""

import csv
import re
import sys
from collections import Counter
from importlib import import_module
from typing import get_args

import pytest

from heterofl_flwr import Buffered, Limits, Privacy, Sampling
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.settings.without_torch import FILE
from heterofl_flwr.stages import secure_sum_client
from heterofl_flwr.transport import messages
from simulations.examples import pictures
from simulations.model_zoo.__main__ import VERDICTS
from simulations.model_zoo.sources import SOURCES
from tests.docs.pages import DOCS, ROOT, name_of

PARTS = "adapters classic client core data elastic_models common.errors export grids nn report training"
PUBLIC = ["", *(f".{part}" for part in PARTS.split())]
GENERATED = [
    page
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if "<!-- generated: " in page.read_text(encoding="utf-8")
]
_CREATOR = re.compile(r"Matplotlib v([\d.]+)")


@pytest.fixture
def generate(monkeypatch):
    """Return the program that writes what pages take from the code."""
    monkeypatch.syspath_prepend(DOCS)
    import generate

    yield generate
    del sys.modules["generate"]


@pytest.mark.parametrize("page", GENERATED, ids=name_of)
def test_generated_regions_are_current(page, generate):
    text = page.read_text(encoding="utf-8")
    assert generate.fill(text) == text, "write the page anew: python docs/generate.py"


def test_settings_are_kept_for_commands_and_for_flower(generate):
    assert FILE.read_text(encoding="utf-8") == generate.stored(), "write it anew: python docs/generate.py"
    project = generate.PROJECT.read_text(encoding="utf-8")
    assert generate.described(project) == project, "write it anew: python docs/generate.py"


def test_options_are_shown_with_their_defaults():
    page = (DOCS / "reference" / "api-server.md").read_text(encoding="utf-8")
    for options in (Sampling(), Limits(), Buffered(), Privacy()):
        _, _, section = page.partition(f"### `{type(options).__name__}`\n")
        shown = dict(re.findall(r"^- `(\w+)` \(default `(.+?)`\): ", section.partition("\n### ")[0], re.MULTILINE))
        assert shown == {name: repr(getattr(options, name)) for name in options.__pydantic_fields__}


@pytest.mark.parametrize("name", ["family", "family-cifar10"])
def test_figures_of_the_family_are_those_of_its_runs(generate, name):
    new = getattr(generate, name.replace("-", "_"))()
    old = (generate.FIGURES / f"{name}.svg").read_bytes()
    if generate.CREATOR.findall(new) != generate.CREATOR.findall(old):
        pytest.skip("another version of matplotlib drew the picture")
    assert new == old, "draw it anew: python docs/generate.py"


@pytest.mark.parametrize("figure", sorted((DOCS / "figures").glob("*.svg")), ids=name_of)
def test_figures_are_legible_in_dark_mode(figure):
    """They have no white background, and no text in SVG's black."""
    svg = figure.read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in svg
    assert 'style="fill: #ffffff"' not in svg
    assert [style for style in re.findall(r"<text style=\"([^\"]*)", svg) if "fill:" not in style] == []


@pytest.mark.parametrize("part", PUBLIC)
def test_reference_has_every_public_name(part):
    said = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("api-*.md"))
    names = [name for name in import_module(f"heterofl_flwr{part}").__all__ if name != "__version__"]
    assert [name for name in names if f"\n### `{name}`\n" not in said] == []


def test_slicing_page_has_every_rule():
    page = (DOCS / "explain" / "slicing.md").read_text(encoding="utf-8")
    assert [rule for rule in get_args(SliceRule) if f"\n| `{rule}`" not in page] == []


def test_message_page_has_every_key():
    said = (DOCS / "reference" / "messages.md").read_text(encoding="utf-8")
    # Words of errors, a key of node configs and a prefix of parameters: no keys of a record.
    others = {"NOT_HETEROFL", "NOT_CONVERTED", "SERVER", "SIMULATED", "NODE_HOLDERS", "COUNTS"}
    names = {
        value
        for name, value in [*vars(messages).items(), *vars(secure_sum_client).items()]
        if name.isupper() and isinstance(value, str) and name not in others
    }
    assert {name for name in names if f"`{name}`" in said} == names
    rows = re.findall(r"^\| `([\w.-]+)` \| (?:int|float|str|list|`\w+`)", said, re.MULTILINE)
    assert set(rows) <= names


def test_models_page_counts_and_names_what_is_listed():
    folder = ROOT / "results" / "zoo"
    said = (folder / "models.md").read_text(encoding="utf-8")
    counts = re.findall(r"^\| (\w+) \| ([\d |]+) \| \d+ \|$", said, re.MULTILINE)
    assert [name for name, _ in counts] == list(SOURCES)
    with (folder / "models.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, numbers in counts:
        verdicts = Counter(row["verdict"] for row in rows if row["package"] == name)
        assert [verdicts[verdict] for verdict in VERDICTS] == list(map(int, numbers.split(" | ")))
    failed = [row["model"] for row in rows if row["verdict"] != "exact"]
    assert [name for name in failed if f"`{name}`" not in said] == []
    assert "wrong" not in {row["verdict"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_is_that_of_the_plans(name, tmp_path):
    assert pictures.main([name, str(tmp_path / "new.svg")]) == 0
    picture = DOCS / "figures" / f"{name}.svg"
    new, old = (path.read_text(encoding="utf-8") for path in (tmp_path / "new.svg", picture))
    if _CREATOR.findall(new) != _CREATOR.findall(old):
        pytest.skip("another version of matplotlib drew the picture")
    assert new == old, f"draw it anew: python -m {pictures.__name__} {name} {picture.relative_to(ROOT)}"
