"""A node's own data in the terms of the run's: beside a run's table with the same rows, and what is refused."""

from dataclasses import replace

import pytest
import torch

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data import Dataset, Reading, Split, load_dataset
from heterofl_flwr.data.align import Terms, align
from heterofl_flwr.data.known import Facts
from heterofl_flwr.data.transforms import Normal
from tests.data.files import SIZE, png, write

TIME = 1_700_000_000  # float32 has no number between it and this one plus 64
ROWS = {"ill": [(1, TIME + 5), (2, TIME + 6)], "unknown": [(3, TIME), (7, TIME + 1)], "well": [(-4, TIME), (0, TIME)]}


def table(folder, classes=tuple(ROWS), columns="ab"):
    """Write a table of some classes with columns in this order; return the data set."""
    lines = [",".join((*columns, "label"))]
    for name in classes:
        for a, b in ROWS[name]:
            lines.append(",".join(str({"a": a, "b": b}.get(column, 1)) for column in columns) + f",{name}")
    for part in ("train", "test"):
        write(folder / f"{part}.csv", "\n".join(lines) + "\n")
    return load_dataset(str(folder))


@pytest.mark.parametrize("columns", ["ab", "ba"])
@pytest.mark.parametrize("classes", [("ill", "unknown"), ("ill", "well"), ("unknown", "well"), tuple(ROWS)])
def test_the_same_rows_mean_the_same_on_each_node(tmp_path, classes, columns):
    whole = table(tmp_path / "run")
    own = align(table(tmp_path / "node", classes, columns), Terms.of(whole))
    same = torch.tensor([whole.names[target] in classes for target in whole.train.targets])
    for mine, theirs in ((own.train, whole.train), (own.test, whole.test)):
        torch.testing.assert_close(mine.inputs, theirs.inputs[same])
        assert torch.equal(mine.targets, theirs.targets[same])
    assert (own.classes, own.names, own.columns, own.normal) == (3, whole.names, ("a", "b"), whole.normal)


@pytest.mark.parametrize(("names", "targets"), [(("3", "7"), [3, 7]), (("7",), [7])])
def test_images_have_the_numbers_and_the_normalisation_of_a_known_data_set(tmp_path, names, targets):
    for part in ("train", "test"):
        for number, name in enumerate(names):
            write(tmp_path / part / name / "0.png", png(40 * number))
        (tmp_path / part / "9").mkdir()  # without an image
    facts = Facts((1, *SIZE), 10)
    own = align(load_dataset(str(tmp_path)), Terms.of_source("mnist", facts))
    assert own.train.targets.tolist() == targets
    expected = torch.tensor([(40 * number / 255 - 0.1307) / 0.3081 for number in range(len(names))])
    torch.testing.assert_close(own.train.inputs[:, 0, 0, 0], expected)
    torch.testing.assert_close(own.train.black, torch.tensor([-0.1307 / 0.3081]))


def test_each_column_has_its_own_normalisation_in_another_order():
    split, normal = Split(torch.tensor([[2.0, 3.0]]), torch.tensor([0])), Normal((0.0, 10.0), (1.0, 2.0))
    node, run = (
        Dataset("table", split, split, 1, normal=normal, columns=columns) for columns in (("a", "b"), ("b", "a"))
    )
    # In raw values, the node's a is 2 and b is 16; in the run, b has mean 0 and a has mean 10.
    torch.testing.assert_close(align(node, Terms.of(run)).train.inputs, torch.tensor([[16.0, -4.0]]))
    unnormalised = align(node, replace(Terms.of(run), normal=None))
    assert unnormalised.normal == Normal((10.0, 0.0), (2.0, 1.0))


def test_colours_are_normalised_by_channel():
    before, after = Normal((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), Normal((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    split = Split(torch.rand(4, 3, 2, 2), torch.arange(4), black=torch.zeros(3))
    data = Dataset("node", split, split, 4, normal=before)
    aligned = align(data, replace(Terms.of(data), normal=after)).train.inputs
    for channel, (mean, deviation) in enumerate(zip(after.mean, after.deviation, strict=True)):
        pixels = split.inputs[:, channel] * before.deviation[channel] + before.mean[channel]
        torch.testing.assert_close(aligned[:, channel], (pixels - mean) / deviation)


def test_words_have_the_numbers_of_the_runs_text(tmp_path):
    def text(folder, words):
        rows = ["text", *(f'"{words} {words}"' for _ in range(64))]
        for part in ("train", "test"):
            write(folder / f"{part}.csv", "\n".join(rows) + "\n")
        return load_dataset(str(folder))

    whole, node = text(tmp_path / "run", "one two three"), text(tmp_path / "node", "three new two")
    own = align(node, Terms.of(whole))
    said = [whole.names[number] for number in own.train.inputs[0, :7].tolist()]
    assert said == ["three", "<ukn>", "two", "three", "<ukn>", "two", "<eos>"]
    assert own.train.reading == whole.train.reading


def test_tokens_without_words_keep_their_numbers():
    def text(name, tokens, names=()):
        rows = torch.tensor([tokens])
        split = Split(rows, rows, reading=Reading(hides_as=9))
        return Dataset(name, split, split, max(tokens) + 1, names=names)

    assert align(text("node", [0, 2]), Terms.of(text("run", [3, 1]))).train.inputs.tolist() == [[0, 2]]
    for node, run in (((), ("a", "b")), (("a", "b"), ())):
        with pytest.raises(
            DataError, match=r"names the words of its tokens, and .* does not; expected both or neither"
        ):
            align(text("node", [0, 1], node), Terms.of(text("run", [1, 0], run)))


@pytest.mark.parametrize(
    ("columns", "terms", "fault"),
    [
        ("ac", {}, "node lacks b and adds c; expected the columns of the run's data set, .*run: a, b"),
        ("abc", {}, "node adds c; expected the columns"),
        ("ab", {"names": ("ill", "well")}, "has the classes unknown, which the run's data set, .*, lacks; expected"),
        ("ab", {"names": (), "classes": 2}, r"names 3 classes \(ill, unknown, well\), and the run has 2 without names"),
        ("ab", {"columns": (), "shape": (3,)}, r"of shape \(2,\); expected torch.float32 of shape \(3,\)"),
        ("ab", {"dtype": torch.int64}, r"are torch.float32 of shape \(2,\); expected torch.int64 of shape \(2,\)"),
        ("ab", {"reading": "a text"}, "only one is a text"),
    ],
)
def test_what_is_not_of_the_runs_data_set_is_refused(tmp_path, columns, terms, fault):
    expected = replace(Terms.of(table(tmp_path / "run")), **terms)
    with pytest.raises(DataError, match=fault):
        align(table(tmp_path / "node", columns=columns), expected)


def test_class_numbers_without_names_are_within_the_runs(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}.csv", "a,b,label\n1,2,0\n3,4,5\n")
    own, terms = load_dataset(str(tmp_path)), Terms("run", 6, (2,))
    assert align(own, terms).train.targets.tolist() == [0, 5]
    with pytest.raises(DataError, match="has class numbers up to 5; expected up to 4"):
        align(own, Terms("run", 5, (2,)))
