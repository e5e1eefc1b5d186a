import shlex

import pytest

from simulations.bench import __main__ as bench
from simulations.bench.measure import describe_machine

EXAMPLES = [line.split("  ")[1] for line in bench.EXAMPLES.splitlines() if line.startswith("  python")]


def test_help_says_a_line_of_each(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, module in bench.BENCHMARKS.items():
        assert any(line.split()[:1] == [name] for line in lines)
        assert sum(line.endswith(f"  {module.__doc__.splitlines()[0]}") for line in lines) == 1


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_are_commands(line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "simulations.bench"]
    assert bench.parser().parse_args(words[3:]).benchmark in bench.BENCHMARKS


def test_machine_is_described_with_versions():
    line = describe_machine()
    assert "cores" in line
    assert all(f"{name} " in line for name in ("Python", "torch", "flwr", "commit"))


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_exit_status_is_the_verdict(monkeypatch, capsys, passed, code):
    monkeypatch.setattr(bench.BENCHMARKS["scale"], "run", lambda options: passed)
    assert bench.main(["scale"]) == code
    assert "torch" in capsys.readouterr().out
