"""The authors' code on the job of a run: when it is tested, what is kept of it, and what stands beside ours."""

import csv
from types import SimpleNamespace

import pytest

from simulations.reference import __main__ as reference
from simulations.results.collect import collect
from simulations.results.configurations import configurations, published
from simulations.results.runs import AUTHORS, read_run
from simulations.results.tables import authors_table, to_csv
from tests.simulations.tiny_data import write_tiny

OURS = {10: (0.5, 0.9), 20: (0.7, 0.8), 30: (0.6, 0.95)}
THEIRS = {10: (0.8, 0.7), 20: (0.65, 0.99), 40: (0.99, 0.99)}


def named(points):
    return {number: {"global-accuracy": one, "local-accuracy": other} for number, (one, other) in points.items()}


def row(number: int, scores: tuple[float, float]) -> dict[str, object]:
    return {**dict.fromkeys(reference.COLUMNS, "x"), "round": number, "global": scores[0], "local": scores[1]}


@pytest.fixture
def run(make_run):
    """Return the folder of a run whose job the authors' code did as well."""
    folder = make_run(evaluated=named(OURS), data__split="non-iid-2").path
    rows = [row(number, scores) for number, scores in THEIRS.items()]
    (folder / AUTHORS).write_text(to_csv(reference.COLUMNS, rows), encoding="utf-8")
    return folder


def rows_beside(*folders):
    return authors_table(published(configurations(map(read_run, folders)))).rows


def test_both_are_the_best_of_rounds_that_both_tested(run):
    # Of rounds 10 and 20, ours is best in 20 and theirs in 10, by the global metric; local is of the same rounds.
    assert [row for row in rows_beside(run) if row[3] == "best of 2"] == [
        ("e, noniid", "global accuracy", "1, theirs 1", "best of 2", "70.00", "80.00", "-10.00"),
        ("e, noniid", "local accuracy", "1, theirs 1", "best of 2", "80.00", "70.00", "+10.00"),
    ]


def test_scores_of_the_authors_stay_with_a_job(run, make_run, tmp_path):
    ((_, copy),) = collect([run], tmp_path / "results")
    assert read_run(copy).authors == named(THEIRS)
    other = make_run("other", named(OURS), data__split="non-iid-2").path
    ((_, copy),) = collect([other], tmp_path / "results", ["replace"])
    assert read_run(copy).authors == named(THEIRS)


@pytest.mark.parametrize(
    ("settings", "control"),
    [
        ({}, "1_100_0.1_iid_fix_e1_bn_1_1"),
        ({"data__split": "non-iid-2", "train__mask_fill": "none"}, "1_100_0.1_non-iid-2_fix_e1_bn_1_0"),
        ({"mix": "a1-e1", "assignment": "fix", "model__norm": "none"}, "1_100_0.1_iid_fix_a1-e1_none_1_1"),
    ],
)
def test_it_is_the_same_job_in_their_words(make_run, tmp_path, monkeypatch, settings, control):
    made = {}
    monkeypatch.setattr(reference, "Authors", lambda *given, **own: made.update(own, control=given[1].control))
    run = read_run(make_run(seed=3, **settings).path)
    reference.authors_of(run, reference.argparse.Namespace(authors=tmp_path, root="", work=tmp_path))
    assert made["control"] == control
    assert made["seed"] == 3
    assert made["state"].parent == tmp_path


@pytest.mark.parametrize(("every", "tests"), [(0, [5]), (2, [2, 4, 5])])
def test_the_last_round_is_always_tested(every, tests):
    side = SimpleNamespace(history=[], play=lambda evaluate: side.history.append(evaluate))
    assert [len(history) for history in reference.play(side, 5, every)] == tests


@pytest.mark.slow
@pytest.mark.parity
def test_their_code_is_run_and_goes_on(checkout, make_run, tmp_path, capsys):
    write_tiny("mnist", tmp_path / "hub")
    run = make_run(seed=1, evaluate__every=1).path
    words = [str(checkout), str(run), "--root", str(tmp_path / "hub"), "--work", str(tmp_path / "work")]
    assert reference.main([*words, "--rounds", "1"]) == 0
    first = read_run(run).authors
    assert reference.main([*words, "--rounds", "2"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == ["round 1:", "round 2:"]
    assert list(read_run(run).authors) == [1, 2]
    assert read_run(run).authors[1] == first[1]
    with (run / AUTHORS).open(encoding="utf-8") as file:
        assert {line["seed"] for line in csv.DictReader(file)} == {"1"}
