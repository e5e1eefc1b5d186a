"""What pages take from the code is complete, and what they say of it by hand is current."""

import re
import sys

import pytest

from heterofl_flwr import messages
from heterofl_flwr.app.cli.main import COMMANDS
from heterofl_flwr.settings import SPECS, describe
from simulations.model_zoo import models as torchvisions
from tests.docs.pages import DOCS, ROOT

PICTURE = DOCS / "figures" / "plans.svg"
_CREATOR = re.compile(r"Matplotlib v([\d.]+)")


@pytest.fixture
def from_code(monkeypatch):
    """Return the extension of the site that fills pages."""
    monkeypatch.syspath_prepend(DOCS / "extension")
    import from_code

    yield from_code
    del sys.modules["from_code"]


def test_settings_page_has_every_setting(from_code):
    page = from_code.fill((DOCS / "reference" / "settings.md").read_text(encoding="utf-8"))
    assert {key for key in SPECS if f"`{key}`" in page} == set(SPECS)
    assert page.count("\n## ") == describe().count("### ")


def test_fidelity_page_has_every_quirk(from_code):
    page = from_code.fill((DOCS / "explain" / "fidelity.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `(fidelity\.[\w-]+)` \| (.+) \|$", page, re.MULTILINE)
    assert {key for key, _ in rows} == {key for key in SPECS if key.startswith("fidelity.")} - {"fidelity.default"}
    assert all("(paper)" in text and "(fixed)" in text for _, text in rows)


def test_command_page_has_every_command(from_code):
    page = from_code.fill((DOCS / "reference" / "commands.md").read_text(encoding="utf-8"))
    for name in COMMANDS:
        assert f"usage: heterofl {name}" in page
    assert "| `make docs` |" in page


def test_no_place_is_left_unfilled(from_code):
    places = [place for page in DOCS.rglob("*.md") for place in re.findall("<!-- from code.*", page.read_text("utf-8"))]
    assert len(places) == len(from_code.TEXTS)
    assert "from code" not in from_code.fill("\n".join(places))


def test_message_page_has_every_key():
    said = (DOCS / "reference" / "messages.md").read_text(encoding="utf-8")
    errors = {"NOT_HETEROFL", "NOT_CONVERTED", "SERVER", "SIMULATED"}  # words of errors, none of a record
    names = {
        value
        for name, value in vars(messages).items()
        if name.isupper() and isinstance(value, str) and name not in errors
    }
    assert {name for name in names if f"`{name}`" in said} == names
    rows = re.findall(r"^\| `([\w.-]+)` \| (?:int|float|str|list|`\w+`)", said, re.MULTILINE)
    assert set(rows) <= names


def test_models_page_has_every_model_of_torchvision():
    said = (DOCS / "reference" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`[^|]*\| [\d,]+ \| (.+) \|$", said, re.MULTILINE)
    working = [rest.split(" | ") for _, rest in rows if re.match(r"[\d,]+ \|", rest)]
    assert [int(number) for number in re.search(r"\*\*(\d+) of (\d+) work", said).groups()] == [len(working), len(rows)]
    assert {name for name, _ in rows} == set(torchvisions.names()), "python -m simulations.model_zoo writes the page"
    assert len(working) >= 75
    assert all(float(cells[3].removesuffix(" s")) < 5 for cells in working)  # a trace


def test_picture_is_that_of_the_plans(tmp_path):
    from simulations.examples.plan_picture import main

    main(str(tmp_path / "plans.svg"))
    new, old = (path.read_text(encoding="utf-8") for path in (tmp_path / "plans.svg", PICTURE))
    if _CREATOR.findall(new) != _CREATOR.findall(old):
        pytest.skip("another version of matplotlib drew the picture")
    assert new == old, f"draw it anew: python -m simulations.examples.plan_picture {PICTURE.relative_to(ROOT)}"
