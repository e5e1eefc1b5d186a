"""``heterofl profile``: the left columns of the paper's Tables 7 to 9."""

import csv
import io

import pytest

from heterofl_flwr.app.cli.main import main

BASELINES = {"standalone", "fedavg", "lg-fedavg"}  # copied from Liang et al. (2020): other models


def table(capsys, *arguments: str) -> list[dict[str, str]]:
    assert main(["profile", *arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


@pytest.mark.parametrize("data", ["mnist", "cifar10", "wikitext2"])
def test_the_rows_are_the_papers_to_printed_precision(capsys, shared, data):
    with (shared / "paper" / "tables.csv").open() as file:
        paper = [row for row in csv.DictReader(file) if row["dataset"] == data and row["method"] not in BASELINES]
    ours = {row["mix"]: row for row in table(capsys, data)}
    if data != "wikitext2":  # Table 9 is in the order of the ratios
        assert list(ours) == [row["method"] for row in paper]
    assert len(ours) == len(paper) == 31
    for theirs in paper:
        row = ours[theirs["method"]]
        assert f"{float(row['ratio']):.2f}" == theirs["ratio"]
        assert f"{float(row['MB']):.2f}" == theirs["space_mb"]
        assert f"{float(row['parameters']):.1e}" == f"{float(theirs['parameters']):.1e}"


def test_a_model_is_profiled_as_it_is_asked_for(capsys):
    (row,) = table(
        capsys, "cnn", "--shape", "3x8x8", "--classes", "2", "--hidden", "4,8", "--norm", "none", "--mix", "a"
    )
    assert int(row["parameters"]) == (3 * 9 + 1) * 4 + (4 * 9 + 1) * 8 + 9 * 2
    assert int(row["MACs"]) == 64 * 9 * 3 * 4 + 16 * 9 * 4 * 8 + 8 * 2
