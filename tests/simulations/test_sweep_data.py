"""Data sets of the paper with the methods that ``conf/`` has: two rounds on shrunken data, as a sweep runs them."""

import math

import pytest

from heterofl_flwr.app.cli.main import main
from heterofl_flwr.report import RunFolder
from tests.simulations.tiny_data import FOLDERS, write_tiny

# All methods learn the images of test_methods_learn.py; here are some that see colours, layers or heads otherwise.
SLOW = [("mnist", "heterofl"), ("cifar10", "lg-fedavg"), ("wikitext2", "fedrolex"), ("wikitext2", "fjord")]
TRIED = [(data, "heterofl") for data in FOLDERS if data != "mnist"]
TRIED += [pytest.param(*own, marks=pytest.mark.slow) for own in SLOW]
OPTIONS = {
    "mnist": ("model.hidden='4,8'", "split=non-iid-2", "train.batch-size=20"),
    "cifar10": ("model.hidden='4,8,8,8'", "split=non-iid-2", "train.batch-size=20"),
    "wikitext2": (),
}
CLIENTS = 10


@pytest.mark.parametrize(("data", "method"), TRIED)
def test_two_rounds(data, method, tmp_path, monkeypatch, capsys, request):
    reported = method == "heterofl" and data == "wikitext2"  # tests of other runs look at reports of images
    if not reported:
        request.getfixturevalue("without_reports")
    write_tiny(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    line = ["mix=a-e", "num-rounds=2", "train.epochs=1", f"engine.clients={CLIENTS}", "engine.parallel=1"]
    line += [f"data={data}", f"method={method}", f"data.root={tmp_path / 'data'}", "sample.fraction=0.2"]
    monkeypatch.setattr("sys.argv", ["heterofl"])
    assert main(["sweep", *line, *OPTIONS[data]]) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "runs" / "jobs").glob("*-s0-*")
    folder = RunFolder(path)
    first, last = folder.history()
    assert first.failures == last.failures == {}
    assert set(last.evaluate_by_level) == {"a", "e"}
    kind = "perplexity" if data == "wikitext2" else "accuracy"
    found = [last.evaluate[f"{scope}-{kind}"] for scope in ("global", "local")]
    assert all(math.isfinite(value) and value > 0 for value in found)
    assert folder.report.exists() == reported
