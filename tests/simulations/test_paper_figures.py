import re
from xml.etree import ElementTree

import pytest

from simulations.paper.figures import INTERPOLATION, LEARNING, draw, files, page, panels
from simulations.paper.runs import gather
from simulations.paper.verdicts import group_runs
from tests.simulations.conftest import PARAMETERS


@pytest.fixture
def panels_of(tmp_path):
    """Return a function that gives the panels of all runs so far, by name."""
    (tmp_path / "runs").mkdir()
    return lambda: {panel.name: panel for panel in panels(group_runs(gather([tmp_path / "runs"]).counted))}


def curves(panel):
    return {curve.label: curve for curve in panel.curves}


def test_there_are_all_panels_of_the_paper(panels_of):
    names = list(panels_of())
    assert names == [
        *(f"{figure}{panel}" for figure in range(2, 9) for panel in "abcd"),
        *(f"{figure}{panel}" for figure in (9, 10) for panel in "abcdef"),
        "11a",
        "11b",
    ]
    assert [*INTERPOLATION, *LEARNING] == list(range(2, 12))
    assert page(list(panels_of().values())).count("\n## Figure ") == 42


def test_without_runs_nothing_is_drawn_and_all_is_missing(panels_of):
    found = panels_of()
    assert not any(panel.drawable for panel in found.values())
    assert curves(found["3a"])["a-e"].missing == (
        *("a1-e9", "a1-e4", "a3-e7", "a2-e3", "a-e", "a3-e2", "a7-e3", "a4-e1", "a9-e1"),
        "a",
    )
    assert list(curves(found["3c"])) == ["c-d", "c-e"]
    assert files(list(found.values())).keys() == {"figures.md"}


def test_a_point_lies_at_the_mean_parameters_of_a_client(make_run, panels_of):
    for mix, accuracy in {"a1-e9": 0.97, "a5-e5": 0.98}.items():
        make_run(mix, {100: {"global-accuracy": accuracy}, 200: {"global-accuracy": 0.9}}, mix=mix, assignment="fix")
    make_run("end", {200: {"global-accuracy": 0.99}}, mix="a1")
    curve = curves(panels_of()["3a"])["a-e"]
    places = [place for place, _ in curve.points]
    assert places == pytest.approx(
        [
            0.1 * PARAMETERS["a"] + 0.9 * PARAMETERS["e"],  # 161,622
            0.5 * PARAMETERS["a"] + 0.5 * PARAMETERS["e"],
            PARAMETERS["a"],
        ]
    )
    assert places[0] == pytest.approx(161_622.0)
    assert [value.mean for _, value in curve.points] == pytest.approx([97.0, 98.0, 99.0])
    assert "a-e" not in curve.missing
    assert len(curve.missing) == 7


def test_dynamic_runs_are_no_points_of_fix_figures(make_run, panels_of):
    make_run("dynamic", mix="a1-e1")
    assert curves(panels_of()["3a"])["a-e"].points == ()


def test_the_end_that_curves_share_is_drawn_only_with_one(make_run, panels_of):
    make_run("end", mix="a1")
    make_run("own", mix="a1-b1", assignment="fix")
    panel = curves(panels_of()["3a"])
    assert [len(panel[label].points) for label in ("a-b", "a-c")] == [2, 0]
    assert "a" not in panel["a-c"].missing


def test_runs_belong_to_figures_by_data_split_and_metric(make_run, panels_of):
    make_run("noniid", data__split="non-iid-2", mix="c1-d9", assignment="fix")
    found = panels_of()
    assert [name for name, panel in found.items() if panel.drawable] == ["5c", "7c"]
    assert curves(found["5c"])["c-d"].points[0][1].mean == pytest.approx(95.0)
    assert curves(found["7c"])["c-d"].points[0][1].mean == pytest.approx(90.0)


def test_learning_curves_are_means_over_seeds_where_all_were_evaluated(make_run, panels_of):
    for seed, values in enumerate([(0.1, 0.3, 0.5), (0.2, 0.4, 0.7), (0.3, 0.5, 0.9)]):
        evaluated = {number: {"global-accuracy": own} for number, own in zip((50, 100, 200), values, strict=True)}
        make_run(str(seed), {**evaluated, 150 + seed: {"global-accuracy": 0.6}}, mix="a1-e1", seed=seed)
    found = panels_of()
    assert [name for name, panel in found.items() if panel.drawable] == ["9b"]
    curve = curves(found["9b"])["a-e"]
    assert [place for place, _ in curve.points] == [50, 100, 200]
    assert [own.mean for _, own in curve.points] == pytest.approx([20.0, 40.0, 70.0])
    assert curve.points[0][1].half_width == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-6)
    assert curves(found["9b"])["a-b"].missing == ("a-b",)


def test_a_point_without_known_costs_is_missing(make_run, panels_of):
    path = make_run(mix="a1-e9", assignment="fix").path / "settings.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"model": {', '"other": {'), encoding="utf-8")
    assert "a1-e9" in curves(panels_of()["3a"])["a-e"].missing


def test_panels_are_drawn_as_svg_and_png(make_run, panels_of):
    for seed in range(3):
        for mix, assignment in {"a1-e9": "fix", "a5-e5": "fix", "a1-e1": "dynamic"}.items():
            evaluated = {number: {"global-accuracy": 0.9 + seed / 100 + number / 1e4} for number in (100, 200)}
            make_run(f"{mix}{assignment}{seed}", evaluated, mix=mix, assignment=assignment, seed=seed)
    found = list(panels_of().values())
    made = files(found)
    assert made.keys() == {
        "figures.md",
        *(f"figures/figure-{name}.{kind}" for name in ("3a", "9a", "9b") for kind in ("svg", "png")),
    }
    assert made["figures/figure-3a.png"].startswith(b"\x89PNG")
    svg = made["figures/figure-3a.svg"]
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"mean parameters of a client" in svg
    assert files([panel for panel in found if panel.name == "3a"])["figures/figure-3a.svg"] == svg
    text = made["figures.md"].decode()
    assert re.findall(r"!\[.*\]\((.*)\)", text) == [f"figures/figure-{name}.svg" for name in ("3a", "9a", "9b")]
    assert "- a-b: a1-b9, a1-b4" in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_bars_and_bands_are_drawn_from_three_seeds_on(make_run, panels_of, seeds):
    for seed in range(seeds):
        evaluated = {number: {"global-accuracy": 0.9 + seed / 100} for number in (100, 200)}
        make_run(str(seed), evaluated, mix="a1-e1", assignment="fix", seed=seed)
    found = panels_of()
    assert draw(found["3a"]).axes[0].containers[0].has_yerr == (seeds == 3)
    assert len(draw(found["9a"]).axes[0].collections) == (seeds == 3)
