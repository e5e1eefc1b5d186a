"""The conversions of Flower's examples: their mechanics, and, given a checkout, some of them for real."""

import os
from pathlib import Path

import pytest

from heterofl_flwr.errors import ConfigError
from simulations.conversions import __main__ as program
from simulations.conversions.examples import EXAMPLES, Edit, Example
from simulations.conversions.trial import LIMITS, Outcome, Trial, convert, count_added, made, missing

APP = "import torch\n\n\nmodel = Net()\nprint(model)\n"
EDIT = Edit("app", r"^model = Net\(\)$", "model = submodel(msg, Net)\nassert model")
FALLING = {"clients/loss": {"1": 2.0, "10": 1.0, "2": 1.5}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    return tmp_path


def outcome(metrics=FALLING, **values):
    return Outcome(**{"metrics": metrics, "sizes": [10, 40], **values})


def trial(added=10, original=None, converted=None):
    example = Example(name="some/app", package="app", edits=[])
    return Trial(example, added, original or outcome(), converted or outcome())


def test_an_edit_writes_its_lines_in_the_place_it_finds(folder):
    assert convert("some", folder, [EDIT]) == 2
    assert (folder / "app.py").read_text(encoding="utf-8") == (
        "import torch\n\n\nmodel = submodel(msg, Net)\nassert model\nprint(model)\n"
    )


def test_later_edits_find_what_earlier_ones_wrote(folder):
    edits = [EDIT, Edit("app", "submodel", "other"), Edit("app", "^assert model\n")]
    assert convert("some", folder, edits) == 1
    assert "model = other(msg, Net)\nprint" in (folder / "app.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit("app", "^nothing$", "x"), r"some: app.py has 0 places that match '\^nothing\$'; expected 1"),
        (Edit("app", "model", "x"), "some: app.py has 4 places that match 'model'; expected 1"),
        (Edit("gone", "model", "x"), "some: gone.py cannot be read .* so 'model' cannot be looked for"),
    ],
)
def test_a_place_that_is_not_there_is_named_and_nothing_is_written(folder, edit, said):
    with pytest.raises(ConfigError, match=said):
        convert("some", folder, [EDIT, edit])
    assert (folder / "app.py").read_text(encoding="utf-8") == APP


@pytest.mark.parametrize(
    ("after", "added"),
    [("a\nb\nc\n", 0), ("a\nc\n", 0), ("a\nx\nb\n\n\nc\n", 1), ("x\ny\nc\n", 2), ("a\nb\nc", 0)],
)
def test_changed_and_new_lines_count_but_not_blank_nor_removed_ones(after, added):
    assert count_added("a\nb\nc\n", after) == added


def test_all_nine_examples_are_there_both_apis_among_them():
    assert len(EXAMPLES) == 9
    assert {example.api for example in EXAMPLES.values()} == set(LIMITS)


@pytest.mark.parametrize(
    ("metrics", "learns"),
    [
        (FALLING, True),
        ({"clients/loss": {"1": 1.0, "2": 0.999}, "clients/accuracy": {"1": 0.1, "2": 0.9}}, False),
        ({"clients/accuracy": {"1": 0.1, "2": 0.9}}, True),
        ({"server/loss": {"0": 1.0, "1": 1.0}, **FALLING}, False),  # a server's metrics count before those of clients
    ],
)
def test_learning_is_a_falling_loss_or_without_one_a_rising_accuracy(metrics, learns):
    assert outcome(metrics).learns is learns


def test_a_trial_says_what_is_wrong():
    flat = {"clients/loss": {"1": 2.0, "2": 2.0}}
    assert trial().faults == trial(original=outcome(flat), converted=outcome(flat)).faults == []
    assert trial(added=17).faults == ["more than 16 lines"]
    assert trial(converted=outcome(flat)).faults == ["FedAvg learns, this does not"]
    assert trial(converted=outcome(sizes=[40])).faults == ["one size only"]
    failed = outcome(failures=["train: ValueError: no"])
    assert trial(converted=failed).faults == ["1 clients failed (train: ValueError: no)"]
    assert trial().row() == (
        "| some | message | 10 | 10 | 10 40 | loss 2.000 to 1.000 | loss 2.000 to 1.000 | both learn | nothing |"
    )


def test_an_example_is_skipped_where_a_module_that_it_needs_is_absent(monkeypatch, capsys, tmp_path):
    example = Example(name="some/app", package="app", edits=[], needs=["sys", "surely_absent"])
    monkeypatch.setattr(program, "EXAMPLES", {"some": example})
    assert missing(example) == ["surely_absent"]
    assert program.main([str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "skipped: needs surely_absent" in capsys.readouterr().out


def test_unknown_names_and_folders_without_examples_are_refused(capsys, tmp_path):
    assert program.main([str(tmp_path), "quickstart-pytorc"]) == 2
    assert "expected one of quickstart-pytorch" in capsys.readouterr().err
    assert program.main([str(tmp_path), "quickstart-pytorch", "--out", str(tmp_path)]) == 2
    assert "quickstart-pytorch: there is no folder" in capsys.readouterr().err


@pytest.fixture
def checkout():
    if "HETEROFL_FLOWER" not in os.environ:
        pytest.skip("needs Flower's examples: set HETEROFL_FLOWER to a checkout of its repository at fdef7af")
    return Path(os.environ["HETEROFL_FLOWER"]).resolve()


def test_each_conversion_keeps_to_its_limit_of_lines(checkout, tmp_path):
    added = [(one, made(one, checkout, tmp_path / "app", one.edits)[1]) for one in EXAMPLES.values()]
    assert [one.short for one, lines in added if lines > LIMITS[one.api]] == []


@pytest.mark.slow
@pytest.mark.simulation
def test_a_converted_example_trains_at_five_levels(checkout, tmp_path, capsys):
    assert program.main([str(checkout), "quickstart-pytorch", "--out", str(tmp_path)]) == 0
    assert "| 3 | 434 1,189 4,257 15,888 62,006 |" in capsys.readouterr().out
