import re

import pytest

from simulations.paper.runs import file_name, portable
from simulations.paper.tables import Table, escape, to_latex, to_markdown

TABLE = Table("tab:x", "Table 7: a_b", ("model", "seeds", "best"), (("a-e", "0, 1", "98.66 ± 0.03"), ("[x]", "&", "%")))


def test_markdown_has_the_numbers_on_the_right():
    assert to_markdown(TABLE) == (
        "## Table 7: a_b\n\n| model | seeds | best |\n| --- | ---: | ---: |\n"
        "| a-e | 0, 1 | 98.66 ± 0.03 |\n| [x] | & | % |\n"
    )


def test_markdown_keeps_bars_within_a_cell():
    assert r"a\|b" in to_markdown(Table("tab:x", "x", ("model",), (("a|b",),)))


def test_a_note_follows_the_rows():
    assert to_markdown(Table("tab:x", "x", ("model",), (("a",),), "A note.")).endswith("| a |\n\nA note.\n")


def test_latex_is_whole(latex_faults):
    text = to_latex(TABLE)
    assert latex_faults(text) == []
    assert r"98.66 $\pm$ 0.03" in text
    assert r"{}[x] & \& & \% \\" in text
    assert r"\begin{tabular}{lrr}" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 %", r"50 \%"),
        ("num_rounds & more", r"num\_rounds \& more"),
        (r"a\b", r"a\textbackslash{}b"),
        ("{#1} ~ ^ $", r"\{\#1\} \textasciitilde{} \textasciicircum{} \$"),
    ],
)
def test_latex_prints_what_the_text_says(text, expected):
    assert escape(text) == expected


def test_the_check_of_latex_finds_faults(latex_faults):
    assert latex_faults(r"\begin{table}\end{tabular}") != []
    assert latex_faults("50 % { _") != []


@pytest.fixture
def latex_faults():
    """Return a function that finds what keeps a table from being set: environments, braces, bare signs, columns."""

    def faults(text: str) -> list[str]:
        found = []
        opened = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if kind == "begin":
                opened.append(name)
            elif not opened or opened.pop() != name:
                found.append(f"\\end{{{name}}}")
        bare = re.sub(r"\\label\{[^}]*\}|\\[&%$#_{}]|\\[a-zA-Z]+|\\\\", "", text)
        found += re.findall(r"[%#_^~\\]", bare)
        found += [] if bare.count("{") == bare.count("}") and not opened else ["braces"]
        columns = re.search(r"tabular\}\{(\w+)\}", text)
        for row in re.findall(r"^\{\}(.*) \\\\$", text, re.MULTILINE):
            if columns is None or len(re.split(r"(?<!\\)&", row)) != len(columns[1]):
                found.append(row)
        return found

    return faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/project/simulations/run.py mix=a-e", "simulations/run.py mix=a-e"),
        ("run.py data.root=/mnt/data/sets run.dir='/tmp/a b/c'", "run.py data.root=.../sets run.dir='.../a b/c'"),
        ("run.py ~/data/x a/b/c Salesforce/wikitext 1/2", "run.py .../x a/b/c Salesforce/wikitext 1/2"),
        ("/usr/bin/heterofl run --data mnist", ".../heterofl run --data mnist"),
    ],
)
def test_folders_of_a_machine_are_left_out(text, expected):
    assert portable(text, "/home/me/project") == expected


def test_a_name_of_a_file_is_plain():
    assert file_name("train.clip 0 not 1/2 ''") == "train.clip-0-not-1-2"
