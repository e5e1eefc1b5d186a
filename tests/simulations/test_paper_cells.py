import csv
from collections import Counter

import pytest

from heterofl_flwr.errors import ConfigError
from simulations.paper.printed import FILES, VARIABLE, Job, paper_folder, read_cells


def test_the_paper_prints_351_numbers_of_its_own(paper):
    cells = read_cells(paper)
    assert len(cells) == 351
    assert Counter(cell.group for cell in cells) == {"HeteroFL": 217, "ablations": 134}
    assert Counter(cell.table for cell in cells) == {"7": 93, "8": 93, "9": 31, "4": 34, "5": 100}


def test_no_table_prints_a_job_twice(paper):
    assert set(Counter((cell.table, cell.job, cell.metric) for cell in read_cells(paper)).values()) == {1}


def test_cells_are_those_of_the_files(printed):
    cells = {(cell.table, cell.job, cell.metric): cell.printed for cell in read_cells(printed)}
    assert cells["7", Job("mnist", "iid", "e"), "accuracy"] == "98.66"
    assert cells["7", Job("mnist", "noniid", "a-e"), "local"] == "99.89"
    assert cells["9", Job("wikitext2", "iid", "e", norm="none"), "perplexity"] == "7.41"
    assert cells["4", Job("cifar10", "iid", "e", norm="gn"), "accuracy"] == "62.6"
    assert cells["4", Job("mnist", "iid", "a-e", scaler=False), "accuracy"] == "99.0"
    assert cells["5", Job("cifar10", "noniid", "e", masked=False), "global"] == "40.4"
    assert cells["5", Job("mnist", "noniid", "a-e", norm="none", scaler=False), "local"] == "99.4"
    assert len(cells) == 2 * 3 + 1 + 3 * 2 + 2 * 4


def test_the_folder_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "variable"))
    assert paper_folder(tmp_path / "given") == tmp_path / "given"
    assert paper_folder(None) == tmp_path / "variable"


def test_the_folder_is_beside_the_project_or_there_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert paper_folder(None, tmp_path / "project") is None
    beside = tmp_path / "shared" / "paper"
    beside.mkdir(parents=True)
    assert paper_folder(None, tmp_path / "project") == beside


def test_missing_files_are_named(printed):
    (printed / "tables.csv").unlink()
    with pytest.raises(ConfigError, match=r"paper lacks tables\.csv; name the folder that has tables\.csv, ablation"):
        read_cells(printed)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wrong", ["column,other\n1,2\n", None])
def test_files_that_are_not_as_expected_are_named(printed, name, wrong):
    path = printed / name
    with path.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[1][-1] = "much"
    path.write_text(wrong or "\n".join(map(",".join, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{name} is not as expected: "):
        read_cells(printed)
