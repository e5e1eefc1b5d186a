import csv
import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulations.paper import __main__ as command
from simulations.paper import printed as cells
from simulations.paper.tables import COLUMNS
from tests.simulations.conftest import COMMIT, run_maker, write_printed

ASKED = ("dataset", "mix", "split", "metric", "final", "best", "paper", "seed", "commit")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make runs of every kind; return their folder."""
    parent = tmp_path_factory.mktemp("parent")
    with pytest.MonkeyPatch.context() as patch:
        make_run = run_maker(parent, patch)
        for seed, accuracy in enumerate([0.985, 0.987, 0.986]):
            evaluated = {100: {"global-accuracy": accuracy}, 200: {"global-accuracy": accuracy - 0.001}}
            make_run(f"e{seed}", evaluated, seed=seed)
        make_run("noniid", {400: {"global-accuracy": 0.5, "local-accuracy": 0.99}}, data__split="non-iid-2")
        make_run("ablation", {200: {"global-accuracy": 0.98}}, mix="a1-e1", model__scaler=False)
        make_run("figure", mix="a1-e9", assignment="fix")
        make_run("short", num_rounds=3, mix="b1")
        make_run("unfinished", rounds=120, mix="c1")
    return parent / "runs"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    return write_printed(tmp_path_factory.mktemp("printed") / "paper")


@pytest.fixture(scope="module")
def made(runs, printed, tmp_path_factory):
    """Return what the command makes of them beside the paper's numbers: the rows, the folder and the console."""
    out, shown = tmp_path_factory.mktemp("out"), io.StringIO()
    with redirect_stdout(shown):
        rows = gathered(runs, out, "--paper", printed)
    return Made(rows, out, shown.getvalue())


def gathered(runs, out, *options):
    assert command.main([str(runs), "--out", str(out), *map(str, options)]) == 0
    with (out / "runs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Made:
    rows: list[dict[str, str]]
    out: Path
    shown: str

    def text(self, name: str = "tables.md") -> str:
        return (self.out / name).read_text(encoding="utf-8")


def section(text, title):
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def test_the_file_has_a_row_for_each_run_and_metric(made):
    assert tuple(made.rows[0])[:9] == COLUMNS[:9] == ASKED
    found = {(row["mix"], row["split"], row["metric"], row["seed"]): row for row in made.rows}
    assert found.keys() == {
        *(("e", "iid", "accuracy", seed) for seed in "012"),
        ("e", "noniid", "local", "0"),
        ("e", "noniid", "global", "0"),
        ("a-e", "iid", "accuracy", "0"),
        ("a1-e9", "iid", "accuracy", "0"),
        ("b", "iid", "accuracy", "0"),
    }
    row = found["e", "iid", "accuracy", "1"]
    expected = {"dataset": "mnist", "final": "98.6", "best": "98.7", "best_round": "100", "rounds": "200", "note": ""}
    expected |= {"paper": "98.66", "paper_ablation": "98.7", "table": "7 4", "commit": COMMIT, "norm": "sbn"}
    expected |= {"scaler": "yes", "mask": "yes", "parameters": "6594.0", "seconds": "400.0", "failures": "0"}
    expected |= {"machine": "a machine, 2 cores, no GPU"}
    assert {name: row[name] for name in expected} == expected
    assert row["command"]
    assert found["e", "noniid", "local", "0"]["paper"] == "99.07"


def test_an_ablation_has_its_own_number_and_a_run_that_is_not_as_published_has_none(made):
    (ablation,) = [row for row in made.rows if row["scaler"] == "no"]
    assert (ablation["paper"], ablation["paper_ablation"], ablation["table"]) == ("99.0", "", "4")
    (short,) = [row for row in made.rows if row["note"]]
    assert (short["mix"], short["paper"], short["rounds"]) == ("b", "", "3")
    assert short["note"] == "not as published: num-rounds 3 instead of 200"


def test_tables_are_beside_the_papers(made):
    text = made.text()
    # Deviation 0.1; half the interval is 4.3027 * 0.1 / sqrt(3) = 0.2484.
    assert (
        "| e | accuracy, IID | 0, 1, 2 | 98.50 ± 0.10 [98.25, 98.75] | 98.60 ± 0.10 [98.35, 98.85] "
        "| 2 | [98.10, 99.10] | 98.66 | -0.06 | agrees |"
    ) in section(text, "Table 7: MNIST")
    assert "| e | global, non-IID | 0 | 50.00 | 50.00 | 1 | - | 92.84 | -42.84 | too few seeds |" in section(
        text, "Table 7: MNIST"
    )
    ablation = section(text, "Table 4: Ablation, IID")
    assert (
        "| a-e | mnist | sbn | no | yes | accuracy, IID | 0 | 98.00 | 98.00 | 1 | - | 99.0 | -1.00 | too few seeds |"
        in ablation
    )
    assert "| a1-e9 | fix | sbn | yes | yes |" in section(text, "MNIST, beside the tables")
    assert "## Table 8" not in text


def test_what_does_not_count_is_listed_with_the_reason(made):
    text = made.text()
    assert "| unfinished | mnist | iid_c_fix_seed-0 | 120 of 200 rounds |" in section(text, "Unfinished")
    assert "num-rounds 3 instead of 200" in section(text, "Not as published")
    missing = section(text, "Printed numbers without a run")
    assert "| Table 7 | mnist | accuracy, IID | 1 | a-e |" in missing
    assert "| Table 5 | cifar10 | local, non-IID | 2 | e (no mask), a-e (norm none, no Scaler) |" in missing


def test_reproduced_cells_are_counted(made):
    text = made.text()
    for line in (
        "Runs that count: 6; finished but not as published: 1; unfinished: 1",
        "5 of 21 printed numbers have a run: 2 agree, 0 differ, 3 have too few seeds to tell",
        "HeteroFL: 3 of 7 printed numbers have a run: 1 agree, 0 differ, 2 have too few seeds to tell",
    ):
        assert line in made.shown
        assert f"- {line}" in text
    assert f"- With commit: {COMMIT}" in text
    assert "- Made on: a machine, 2 cores, no GPU" in text


def test_latex_has_the_same_tables(made):
    text = made.text("tables.tex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert r"98.60 $\pm$ 0.10 [98.35, 98.85] & 2 & [98.10, 99.10] & 98.66 & -0.06 & agrees \\" in text


def test_figures_are_drawn_and_old_ones_removed(runs, printed, tmp_path):
    old = tmp_path / "out" / "figures" / "figure-2a.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    gathered(runs / "figure", tmp_path / "out", "--paper", printed)
    assert sorted(path.name for path in old.parent.iterdir()) == ["figure-3a.png", "figure-3a.svg"]


def test_without_the_paper_there_are_tables_all_the_same(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(cells.VARIABLE, raising=False)
    monkeypatch.setattr(command, "paper_folder", lambda given: cells.paper_folder(given, tmp_path / "alone"))
    rows = gathered(runs, tmp_path / "out")
    assert {row["paper"] for row in rows} == {""}
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "The paper's numbers are not at hand, so nothing is compared" in text
    assert "not at hand" in capsys.readouterr().out
    table = section(text, "MNIST, without the paper's numbers")
    assert "| e | fix | sbn | - | yes | accuracy, IID | 0, 1, 2 | 98.50 ± 0.10" in table
    assert "verdict" not in text
    assert "Printed numbers without a run" not in text


def test_without_any_run_all_is_missing(tmp_path, paper, capsys):
    (tmp_path / "runs").mkdir()
    assert command.main([str(tmp_path / "runs"), "--paper", str(paper), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Runs that count: 0" in shown
    assert "0 of 351 printed numbers have a run" in shown
    assert "HeteroFL: 0 of 217" in shown
    assert "ablations: 0 of 134" in shown


def test_results_can_be_gathered_from_what_was_collected(made, runs, printed, tmp_path):
    into = tmp_path / "results"
    assert command.main(["collect", str(runs), "--into", str(into)]) == 1
    assert gathered(into, tmp_path / "alone", "--paper", printed) == made.rows


def test_collect_says_what_became_of_each_run(runs, tmp_path, capsys):
    assert command.main(["collect", str(runs), "--into", str(tmp_path / "results")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert f"{runs / 'e1'}: copied to {tmp_path / 'results' / 'mnist' / 'iid_e_fix_seed-1'}" in lines
    assert any(line.startswith(f"{runs / 'unfinished'}: unfinished: it has done 120 of 200") for line in lines)
    assert command.main(["collect", str(runs), "--into", str(tmp_path / "results"), "--unfinished"]) == 0


def test_collect_without_a_run_fails(tmp_path, capsys):
    assert command.main(["collect", str(tmp_path), "--into", str(tmp_path)]) == 1
    assert "no run folder found" in capsys.readouterr().out


def test_without_a_folder_it_prints_and_writes_nothing(runs, printed, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    before = sorted(runs.parent.rglob("*"))
    assert command.main(["runs", "--paper", str(printed)]) == 0
    assert "| e | accuracy, IID | 0, 1, 2 | 98.50 ± 0.10" in capsys.readouterr().out
    assert sorted(runs.parent.rglob("*")) == before


@pytest.mark.parametrize("words", [["nowhere"], ["collect", "nowhere", "--into", "results"]])
def test_an_error_is_one_line(words, capsys):
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert error == "simulations.paper: nowhere is no folder; name the folders that hold runs, such as runs/\n"


def test_a_paper_that_lacks_files_is_an_error(tmp_path, capsys):
    assert command.main([str(tmp_path), "--paper", str(tmp_path)]) == 2
    assert "lacks tables.csv, ablation_iid.csv, ablation_noniid.csv" in capsys.readouterr().err
