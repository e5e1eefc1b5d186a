"""Ways to average adapters, compared on a text: who gets which articles, runs that are cut off, and the table."""

import random

import pyarrow as pa
import pytest
from pyarrow import parquet

from heterofl_flwr.nn.transformer import TransformerShape
from simulations.lora import experiment
from simulations.lora.__main__ import main
from simulations.lora.experiment import CLIENTS, Size, load_articles
from simulations.lora.page import draw, write_page
from simulations.program import read_lines

TINY = TransformerShape(embedding=8, hidden=8, heads=2, layers=1)
SMALL = Size(epochs=1, rounds=2, step_share=1.0, fewest=2, shape=TINY)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with as many articles as the base and each client get two of; half of their words are numbers."""
    folder, draw = tmp_path_factory.mktemp("hub") / "Salesforce/wikitext/wikitext-2-v1", random.Random(0)
    folder.mkdir(parents=True)
    for split, articles in (("train", 4 * CLIENTS), ("test", 2)):
        lines = []
        for number in range(articles):
            body = " ".join(f"{draw.choice('abcdefgh')} n{number}" for _ in range(40))
            lines += [f" = Article {number} = \n", " = = Section = = \n", f" {body} \n"]
        parquet.write_table(pa.table({"text": lines}), folder / f"{split}-00000-of-00001.parquet")
    return folder.parents[2]


def test_each_article_is_the_bases_or_one_clients(root):
    datasets = [load_articles(root, seed, 2) for seed in (0, 1)]
    for dataset in datasets:
        owners, words = dataset.owners[0], dataset.names
        seen = {}
        for owner, row in zip(owners.tolist(), dataset.train.inputs, strict=True):
            for word in row.unique().tolist():
                if words[word].startswith("n"):
                    seen.setdefault(int(words[word][1:]), set()).add(owner)
        assert all(len(own) == 1 for own in seen.values())
        assert {number % 2 for number, (owner,) in seen.items() if owner == 0} == {1}  # the second, the fourth ...
        assert sorted(owners.unique().tolist()) == list(range(CLIENTS + 1))
    assert (datasets[0].train.inputs != datasets[1].train.inputs).any()


def test_rare_words_are_unknown(root):
    assert {"a", "n1", "<unk>"} <= set(load_articles(root, 0, 40).names)
    assert "n1" not in load_articles(root, 0, 41).names


def test_a_run_that_was_cut_off_goes_on_and_ends_as_one_that_was_not(root, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed: heterofl-flwr[lora]")
    arguments = ["--data", str(root), "--seeds", "0", "--methods", "product", "--out"]
    assert main([*arguments, str(tmp_path / "whole")], SMALL) == 0
    calls = []

    def cut_off(*given):
        calls.append(given)
        if len(calls) == 2:  # the first call is for the base, the second in the last round
            raise KeyboardInterrupt
        return real(*given)

    real = experiment.compute_perplexity
    monkeypatch.setattr(experiment, "compute_perplexity", cut_off)
    assert main([*arguments, str(tmp_path / "cut")], SMALL) != 0
    assert not (tmp_path / "cut/cells.jsonl").exists()
    assert main([*arguments, str(tmp_path / "cut")], SMALL) == 0
    (whole,), (cut,) = (read_lines(tmp_path / name / "cells.jsonl") for name in ("whole", "cut"))
    for key in ("seed", "method", "metrics", "base", "bytes", "rounds"):
        assert whole[key] == cut[key]
    assert "| product" in (tmp_path / "cut/lora.md").read_text("utf-8")


def line(seed, method, perplexity, small):
    metrics = {"global-perplexity": perplexity, "rank-2-perplexity": small}
    facts = {"commits": ["0123456789"], "machines": ["two cores"], "seconds": 1800.0, "base": 9.0}
    return {
        "seed": seed,
        "method": method,
        "metrics": metrics,
        "base": 9.0,
        "bytes": {"down": 2000, "up": 1000},
        **facts,
    }


def test_the_table_has_means_and_differences_of_equal_seeds():
    lines = [line(seed, "counting mean", 5.0 + seed, 6.0) for seed in range(3)]
    lines += [line(seed, "product", 4.5 + seed + 0.1 * (seed == 1), 5.5) for seed in range(3)]
    text = write_page(lines)
    assert "| none" in text
    row = next(row for row in text.splitlines() if row.startswith("| product"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "3", "5.5333 ± 1.0017", "-0.4667 [-0.6101, -0.3232]", "5.5000 ± 0.0000", "2.00 kB", "1.00 kB"
    ]  # fmt: skip
    assert "3.0 hours of rounds, on two cores; commit 0123456" in text
    figure = draw(lines).decode()
    assert "product, 3.00 kB" in figure
    assert "seed 2" in figure


def test_what_cannot_be_run_is_rejected_with_the_options_name(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HETEROFL_DATA", raising=False)
    assert main(["--out", str(tmp_path)]) == 2
    assert "--data is missing" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--methods", "sum"]) == 2
    assert "there is no method 'sum'" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--show"]) == 2
    assert "cells.jsonl holds no federation that is done" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--seeds", "0,a"])
    assert "argument --seeds: invalid numbers value: '0,a'" in capsys.readouterr().err
