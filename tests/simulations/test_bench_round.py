"""The sides of the benchmark of rounds, on a data set of 400 images laid out like MNIST."""

import pytest

from simulations.bench import __main__ as bench
from simulations.reference.rounds import Experiment, Parts
from tests.simulations.tiny_data import write_tiny

CLIENTS = 20


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    root = tmp_path_factory.mktemp("hub")
    write_tiny("mnist", root)
    return Experiment(str(root), CLIENTS)


@pytest.fixture(scope="module")
def command(experiment) -> list[str]:
    return ["round", "--root", experiment.root, "--clients", str(CLIENTS)]


@pytest.mark.slow
def test_command_measures_our_round_and_ends_with_its_verdict(command, capsys):
    code = bench.main([*command, "--overhead", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{'FAIL' if code else 'PASS'}: overhead as a share of a round 0.")
    assert any(line.startswith("LocalGrid") for line in lines)
    assert any(line.startswith("200 rounds, computed from these parts") for line in lines)
    assert any(line.startswith("ours, evaluating every 10 rounds") for line in lines)
    parts = {words[0]: float(words[-1]) for words in map(str.split, lines) if words[:1] and words[0] in Parts.__slots__}
    assert min(parts[part] for part in ("train", "moments", "test", "accuracy")) > 0
