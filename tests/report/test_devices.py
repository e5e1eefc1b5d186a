"""What a report says of simulated devices, and that it says nothing of them where there are none."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from heterofl_flwr.core import formatting as text
from heterofl_flwr.report import RunFolder, seconds_to, summary_table, write_report
from heterofl_flwr.report.console import plain_line
from heterofl_flwr.report.figures import draw_run
from heterofl_flwr.report.summary import OnDevices, on_devices
from heterofl_flwr.runs.history import append, read
from heterofl_flwr.runs.metrics import scalars


@pytest.fixture
def simulated(records):
    """Return the records of a run whose rounds take 90 s and 1,500 J each on their devices."""
    return [replace(record, simulated_seconds=90.0, joules=1500.0) for record in records]


def best_of(records, name, choose=max):
    found = {record.server_round: record.evaluate[name] for record in records if record.evaluate}
    return choose(found, key=found.get), choose(found.values())


def test_time_to_a_value_is_that_of_the_first_round_that_has_it(simulated):
    number, best = best_of(simulated, "global-accuracy")
    assert seconds_to(simulated, "global-accuracy", best) == 90 * number
    first = next(record for record in simulated if record.evaluate)
    assert seconds_to(simulated, "global-accuracy", 0.0) == 90 * first.server_round
    assert seconds_to(simulated, "global-accuracy", 1.1) is None
    assert seconds_to(simulated, "unknown", 0.0) is None
    number, best = best_of(simulated, "global-loss", min)
    assert seconds_to(simulated, "global-loss", best) == 90 * number


def test_a_run_amounts_to_its_rounds(records, simulated):
    assert on_devices(records) is None
    assert on_devices([]) is None
    number, _ = best_of(simulated, "global-accuracy")
    assert on_devices(simulated) == OnDevices(40 * 90.0, 40 * 1500.0, "global-accuracy", 90.0 * number)
    assert on_devices([replace(record, evaluate={}) for record in simulated]) == OnDevices(3600.0, 60e3, "", 0.0)


def test_figures_of_time_and_energy_are_drawn_where_devices_are_simulated(records, simulated):
    ours = {"for-time", "for-energy"}
    assert not ours & {drawing.name for drawing in draw_run(records, None)}
    drawn = {drawing.name: drawing for drawing in draw_run(simulated, None)}
    time, energy = drawn["for-time"].figure.axes[0], drawn["for-energy"].figure.axes[0]
    evaluated = [record for record in simulated if record.evaluate]
    line = {own.get_label(): own for own in time.lines}["global"]
    assert line.get_xdata().tolist() == pytest.approx([1.5 * record.server_round for record in evaluated])
    assert line.get_ydata().tolist() == [record.evaluate["global-accuracy"] for record in evaluated]
    assert time.get_xlabel() == "simulated minutes"
    assert energy.lines[0].get_xdata().tolist() == [1500.0 * record.server_round for record in evaluated]
    assert "estimate" in drawn["for-energy"].title


def test_tables_and_lines_call_the_energy_an_estimate(records, simulated):
    def printed(some):
        stream = io.StringIO()
        Console(file=stream, width=200).print(summary_table(some))
        return stream.getvalue()

    assert "simulated" not in printed(records) + plain_line(records[0], 40, 0.0)
    assert "on the simulated devices: 1 h 0 min of training, best global-accuracy after" in printed(simulated)
    assert "energy, an estimate: 60.0 kJ" in printed(simulated)
    assert "simulated=1min30s" in plain_line(simulated[0], 40, 0.0)


def test_the_page_has_both_and_calls_the_energy_an_estimate(tmp_path, records, simulated):
    def page(name, some):
        folder = RunFolder(tmp_path / name)
        folder.start({})
        for record in some:
            folder.append(record)
        return write_report(folder).read_text(encoding="utf-8")

    assert "on devices" not in page("real", records[:2])
    found = page("simulated", simulated[:2])
    assert "time on devices, simulated</small><b>3 min 0 s</b>" in found
    assert "energy, an estimate</small><b>3.00 kJ</b>" in found


def test_trackers_get_both_where_devices_are_simulated(records, simulated):
    ours = {"round/simulated-seconds": 90.0, "round/joules-estimate": 1500.0}
    assert scalars(simulated[0]) == {**scalars(records[0]), **ours}


def test_a_history_without_them_is_read_as_one_that_simulates_nothing(tmp_path, simulated):
    path = tmp_path / "history.jsonl"
    append(path, simulated[0])
    assert read(path) == [simulated[0]]
    line = path.read_text(encoding="utf-8").replace('"simulated_seconds":', '"older":').replace('"joules":', '"old":')
    path.write_text(line, encoding="utf-8")
    (old,) = read(path)
    assert (old.simulated_seconds, old.joules) == (0, 0)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0 J"), (2.126, "2.1 J"), (120, "120 J"), (1234, "1.23 kJ"), (5.6e7, "56.0 MJ")]
)
def test_energies(value, expected):
    assert text.energy(value) == expected
