import io
from dataclasses import replace

import pytest
from rich.console import Console

from heterofl_flwr.report import summary_table


def printed(*args) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=100).print(summary_table(*args))
    return stream.getvalue().splitlines()


def test_one_row_a_level_then_final_and_best(records, costs):
    lines = printed(records, costs.model())
    heads = lines[1].split()
    assert heads == ["level", "rate", "parameters", "MACs", "clients", "accuracy", "bytes", "a", "round"]
    full = costs.model().full
    first = lines[3].split()
    assert first[:3] == ["a", "1", f"{full.parameters:,}"]
    last = records[-1].evaluate_by_level["a"]["global-accuracy"]
    assert f"{100 * last:.1f} %" in lines[3]
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows.keys() >= {"a", "b", "c", "d", "e", "global-accuracy", "local-accuracy", "worst-accuracy"}
    best = max((record.evaluate["global-accuracy"], record.server_round) for record in records if record.evaluate)
    final = f"{100 * records[-1].evaluate['global-accuracy']:.1f}"
    median = f"{100 * records[-1].evaluate_medians['global-accuracy']:.1f}"
    expected = ["global-accuracy", final, "%", median, "%", f"{100 * best[0]:.1f}", "%", str(best[1])]
    assert rows["global-accuracy"] == expected
    assert rows["worst-accuracy"][1:5] == ["(client", "7)", rows["worst-accuracy"][3], "%"]
    assert rows["coverage"][3] == "-"  # the server's own
    assert "against full-size FedAvg:" in "\n".join(lines)


def test_shares_of_clients_add_up(records, costs):
    lines = [line.split() for line in printed(records, costs.model())]
    shares = [float(row[row.index("%") - 1]) for row in lines if row and row[0] in "abcde"]
    assert abs(sum(shares) - 100) < 0.5


def test_what_is_not_known_is_a_dash(record):
    lines = printed([record(1)])
    assert lines[3].split()[2:4] == ["-", "-"]
    assert "FedAvg" not in "\n".join(lines)


@pytest.mark.parametrize("name", ["[/x]", "[bold]", "[link=https://example.org]here"])
def test_a_name_that_a_client_chose_is_printed_as_it_is(record, name):
    lines = printed([replace(record(1), evaluate={name: 0.5})])
    assert any(name in line for line in lines)


def test_a_run_without_rounds_has_an_empty_table():
    assert "level" in "\n".join(printed([]))


def test_it_fits_eighty_columns(records, costs):
    stream = io.StringIO()
    Console(file=stream, width=80).print(summary_table(records, costs.model()))
    rows = [line.split()[0] for line in stream.getvalue().splitlines() if line.strip()]
    assert rows[:2] == ["level", "─" * len(rows[1])]
