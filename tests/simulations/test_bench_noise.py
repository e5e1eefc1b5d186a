import argparse

import pytest
import torch

from simulations.bench import noise


@pytest.mark.parametrize(("found", "passed"), [(99.0, False), (100.0, True)])
def test_verdict_compares_the_speed_with_the_goal(capsys, found, passed):
    assert noise.verdict(found) is passed
    assert capsys.readouterr().out.strip().startswith("PASS" if passed else "FAIL")


def test_each_way_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    noise.run(argparse.Namespace(model="mnist", rounds=1))
    lines = capsys.readouterr().out.splitlines()
    assert "1,556,874 parameters" in lines[0]
    assert [line.endswith("MB/s") for line in lines[2:5]] == [True] * 3
