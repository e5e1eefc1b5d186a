"""Numbers as people read them."""

import pytest

from heterofl_flwr.core import formatting as text

NAN = float("nan")


@pytest.mark.parametrize(
    ("write", "cases"),
    [
        (text.size, {0: "0 B", 999: "999 B", 999.6: "1.00 kB", 1234: "1.23 kB", 77_000_000: "77.0 MB"}),
        (text.count, {0: "0", 38_350: "38.4 k", 329e6: "329 M", 999_999: "1.00 M"}),
        (text.energy, {0: "0 J", 2.126: "2.1 J", 120: "120 J", 1234: "1.23 kJ", 5.6e7: "56.0 MJ"}),
        (
            text.duration,
            {0.04: "0.0 s", 9.5: "9.5 s", 59.9: "60 s", 61: "1 min 1 s", 90_000: "25 h 0 min", NAN: "nan s"},
        ),
        (text.tick, {"2.00 MJ": "2 MJ", "2.0 MJ": "2 MJ"}),
    ],
)
def test_numbers_have_few_digits_and_a_unit(write, cases):
    assert {value: write(value) for value in cases} == cases


@pytest.mark.parametrize(("values", "shown"), [((1.0, 0.5, None), "100.0 %"), ((1.0, 60.0, None), "1")])
def test_an_accuracy_beside_one_above_1_is_in_percent_already(values, shown):
    assert text.score(text.score_name("accuracy", values), values[0]) == shown


def test_scores_are_in_percent_or_four_digits():
    assert [text.score("global-accuracy", value) for value in (0.7125, NAN, None)] == ["71.2 %", "-", "-"]
    assert [text.score("loss", value) for value in (123.456, 9999.6, 1234567.0)] == ["123.5", "10,000", "1,234,567"]


def test_long_lists_of_numbers_are_short():
    assert text.numbers([1, 2, 3, 4, 7, 9, 10]) == "1-4, 7, 9-10"
    assert text.numbers([]) == ""
    assert text.numbers(range(0, 40, 2), limit=3) == "0, 2, 4 and 17 more"


LATEX = r"""\begin{tabular}{lr}
\hline
{}name & n \\
\hline
{}a & 1 \\
{}long & 22 \\
\hline
\end{tabular}"""


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("table", "name   n\n--------\na      1\nlong  22"),
        ("csv", "name,n\na,1\nlong,22"),
        ("markdown", "| name | n |\n| --- | ---: |\n| a | 1 |\n| long | 22 |"),
        ("latex", LATEX),
    ],
)
def test_tables(style, expected):
    assert text.render(["name", "n"], [["a", "1"], ["long", "22"]], style) == expected


def test_a_line_break_in_a_cell_ends_no_row():
    assert text.markdown(["a", "b"], [["1\n2", "3"]]) == "| a | b |\n| --- | --- |\n| 1 2 | 3 |"


def test_letters_that_command_latex_are_printed():
    assert text.latex("5 % ± a_b & {c}^2 \\") == r"5 \% $\pm$ a\_b \& \{c\}\textasciicircum{}2 \textbackslash{}"
    assert text.latex("p<q>|r") == r"p\textless{}q\textgreater{}\textbar{}r"  # its default font has ¡, ¿ and — there


def test_a_name_in_a_table_does_not_command_the_terminal():
    shown = text.render(["name", "n\x1b[2J"], [["a\x1b]0;title\x07", "1"]], "table")
    assert all(line.isprintable() for line in shown.splitlines())
