from dataclasses import replace

import pytest

from heterofl_flwr.report import RunFolder
from simulations.paper.runs import Score, gather, read_paper_run
from simulations.results.runs import portable, run_folders
from tests.simulations.conftest import COMMIT


def test_a_run_tells_where_it_comes_from(make_run):
    run = read_paper_run(make_run(seed=3).path)
    assert (run.seed, run.rounds, run.finished, run.seconds, run.failures) == (3, 200, True, 400.0, 0)
    assert (run.commit, run.machine, run.dirty) == (COMMIT, "a machine, 2 cores, no GPU", False)
    assert run.differences == ()


def test_the_best_round_is_that_of_the_global_metric(make_run):
    evaluated = {
        100: {"global-accuracy": 0.5, "local-accuracy": 0.99},
        200: {"global-accuracy": 0.7, "local-accuracy": 0.8},
        300: {"global-accuracy": 0.7, "local-accuracy": 0.9},
        400: {"global-accuracy": 0.6, "local-accuracy": 0.95},
    }
    run = read_paper_run(make_run(evaluated=evaluated, data__split="non-iid-2").path)
    assert run.metrics == ("local", "global")
    assert run.score("global") == Score(0.6, 0.7, 200)
    assert run.score("local") == Score(0.95, 0.8, 200)


def test_without_the_global_metric_a_metric_chooses_for_itself(make_run):
    evaluated = {200: {"local-accuracy": 0.9}, 400: {"local-accuracy": 0.8}}
    run = read_paper_run(make_run(evaluated=evaluated, data__split="non-iid-2").path)
    assert run.score("local") == Score(0.8, 0.9, 200)
    assert run.score("global") is None


def test_the_best_perplexity_is_the_lowest_number(make_run):
    evaluated = {
        50: {"global-perplexity": float("nan")},
        100: {"global-perplexity": 4.0},
        200: {"global-perplexity": 5.0},
    }
    run = read_paper_run(make_run(evaluated=evaluated, data__name="wikitext2").path)
    assert run.metrics == ("perplexity",)
    assert run.score("perplexity") == Score(5.0, 4.0, 100)


def test_perplexities_that_clients_report_are_means_over_them(make_run):
    evaluated = {100: {"global-perplexity": 4.0}, 200: {"global-perplexity": 5.0}}
    run = read_paper_run(make_run(evaluated=evaluated, data__name="wikitext2", evaluate__central=False).path)
    records = [replace(own, evaluate_medians=dict.fromkeys(own.evaluate, 3.0)) for own in run.records]
    assert replace(run, records=records).score("perplexity") == Score(5.0, 4.0, 100)


def test_a_run_that_went_on_with_other_code_names_both_commits(make_run, monkeypatch):
    folder = make_run(rounds=3)
    folder.note(commits=["first", "first", "second-dirty"])
    run = read_paper_run(folder.path)
    assert (run.commit, run.dirty) == ("first + second-dirty", True)


def test_a_run_from_before_commits_were_kept_is_of_none(make_run):
    folder = make_run()
    folder.note(commits=[], machines=None)
    run = read_paper_run(folder.path)
    assert (run.commit, run.machine, run.dirty) == ("unknown", "unknown", True)


def test_a_name_tells_what_was_run(make_run):
    run = read_paper_run(make_run(mix="a1-e1", model__norm="gn", model__scaler=False, train__clip=0.0, seed=2).path)
    assert run.name == "iid_a-e_dynamic_norm-gn_no-Scaler_train.clip-0-not-1_seed-2"


def test_a_name_tells_another_method(make_run):
    run = read_paper_run(make_run(mix="b1-e1", server__choose="rolling").path)
    assert run.name == "iid_b-e_fedrolex_dynamic_server.choose-rolling-not-prefix_seed-0"


def test_a_name_fits_a_file_system(make_run):
    changes = {"train__lr": 0.5, "train__momentum": 0.1, "train__clip": 0.0, "train__weight_decay": 0.0}
    runs = [
        read_paper_run(make_run(str(seed), seed=seed, fidelity="fixed", num_rounds=1, **changes).path)
        for seed in (0, 1)
    ]
    assert len({run.name for run in runs}) == 2
    assert max(len(run.name) for run in runs) < 200
    # All but the seed is equal, so the folders of one job stand together.
    assert len({run.name.rpartition("_")[0] for run in runs}) == 1


def test_runs_are_sorted_by_whether_they_count(make_run):
    runs = make_run("good").path.parent
    make_run("short", num_rounds=3)
    make_run("stopped", rounds=120, seed=1)
    make_run("few", clients=2, seed=2)
    make_run("fewer", seed=5).note(clients=95)
    (make_run("broken", seed=3).path / "history.jsonl").write_text("no\nrecord\n", encoding="utf-8")
    make_run("other", seed=4)
    gathered = gather([runs])
    assert names(gathered.counted) == ["good", "other"]
    assert names(gathered.different) == ["few", "fewer", "short"]
    assert names(gathered.unfinished) == ["stopped"]
    assert {run.path.name: run.differences for run in gathered.different} == {
        "short": ("num-rounds 3 instead of 200",),
        "few": ("clients a round 2 instead of 10",),
        "fewer": ("clients 95 instead of 100",),
    }
    assert len(gathered.unreadable) == 1
    assert "history.jsonl, line 1 is no record of a round" in gathered.unreadable[0]


def names(runs):
    return sorted(run.path.name for run in runs)


def test_a_run_that_lacks_a_round_is_unfinished(make_run):
    folder = make_run()
    assert read_paper_run(folder.path).finished
    lines = (folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for kept in (lines[:-1], lines[1:]):
        (folder.path / "history.jsonl").write_text("".join(kept), encoding="utf-8")
        assert not read_paper_run(folder.path).finished


def test_of_runs_of_one_job_and_seed_the_latest_counts(make_run):
    early, late = make_run("early"), make_run("late")
    early.note(starts=["2026-01-01T00:00:00+00:00"])
    late.note(starts=["2026-01-02T00:00:00+00:00"])
    gathered = gather([late.path.parent])
    assert names(gathered.counted) == ["late"]
    assert names(gathered.repeated) == ["early"]


def test_a_copy_of_a_run_is_no_further_run(make_run, tmp_path):
    runs = make_run().path.parent
    copy = tmp_path / "results" / "copy"
    copy.mkdir(parents=True)
    for name in ("settings.json", "history.jsonl"):
        (copy / name).write_bytes((runs / "run" / name).read_bytes())
    gathered = gather([runs, tmp_path / "results", runs / "run"])
    assert names(gathered.counted) == ["run"]
    assert gathered.repeated == ()


def test_a_later_part_of_a_copy_stands_for_both(make_run, tmp_path):
    runs = make_run().path.parent
    copy = tmp_path / "results" / "copy"
    copy.mkdir(parents=True)
    (copy / "settings.json").write_bytes((runs / "run" / "settings.json").read_bytes())
    assert names(gather([tmp_path / "results", runs]).counted) == ["run"]


def test_hidden_folders_are_passed_over(make_run):
    path = make_run().path
    path.rename(path.with_name(".run.123"))
    assert list(run_folders(path.parent)) == []


def test_a_folder_without_settings_of_ours_is_named(tmp_path):
    RunFolder(tmp_path / "mine").start({})
    RunFolder(tmp_path / "other").start({"model": "cnn", "seed": -1})
    unreadable = gather([tmp_path]).unreadable
    assert unreadable[0].endswith("mine does not tell its settings, so it is no run of 'heterofl run'")
    assert "other: the run was made by another app or version, whose settings model are not known" in unreadable[1]
    assert "\n" not in unreadable[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/project/simulations/sweep.py mix=a-e", "simulations/sweep.py mix=a-e"),
        ("run.py data.root=/mnt/data/sets run.dir='/tmp/a b/c'", "run.py data.root=.../sets run.dir='.../a b/c'"),
        ("run.py ~/data/x a/b/c Salesforce/wikitext 1/2", "run.py .../x a/b/c Salesforce/wikitext 1/2"),
        ("/usr/bin/heterofl run --data mnist", ".../heterofl run --data mnist"),
    ],
)
def test_folders_of_a_machine_are_left_out(text, expected):
    assert portable(text, "/home/me/project") == expected
