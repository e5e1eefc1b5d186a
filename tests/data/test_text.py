"""Text: the vocabulary, the rows, who gets which, and how they are read."""

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.data import Reading, load_dataset, split_dataset
from heterofl_flwr.data.known import SOURCES, Columns
from heterofl_flwr.data.text import Texts, to_text

ROWS = SOURCES["wikitext2"].rows


@pytest.fixture
def corpus():
    """Return a data set of 100 and 10 short rows, of the words w0 to w6."""
    train = [" ".join(f"w{(row + place) % 7}" for place in range(4)) for row in range(100)]
    return to_text("corpus", Texts(train, "train"), Texts(["w0 new w1 w2", ""] * 5, "test"), ROWS)


def test_words_are_numbered_as_they_come(corpus):
    assert corpus.classes == 2 + 7
    assert corpus.train.inputs.shape == (100, 5)
    assert corpus.train.inputs[0].tolist() == [2, 3, 4, 5, 1]  # w0 w1 w2 w3 <eos>
    assert corpus.test.inputs.shape == (10, 3)
    assert corpus.test.inputs.flatten().tolist() == [2, 0, 3, 4, 1, 1] * 5
    assert corpus.train.reading == Reading(hides_as=9, share=0.15, length=64)


@pytest.mark.parametrize(
    ("rows", "number", "message"),
    [
        (ROWS, 1, "test: found 4 tokens, too few for 10 rows"),
        (ROWS, 3, "test: found 12 tokens, too few for 10 rows"),  # a row of one token is too short
        (None, 1, "train: found 9 tokens, too few for a row of 64"),
    ],
)
def test_a_corpus_too_short_for_its_rows_raises_an_error(rows, number, message):
    lines = ["a b"] * (100 if rows else 3)
    with pytest.raises(DataError, match=message):
        to_text("corpus", Texts(lines, "train"), Texts(["a", "b"] * number, "test"), rows)


def test_each_owner_has_its_own_rows():
    """Three owners of 70 words, 650 words and two: rows of 64, none for the last, and every fifth is for testing."""
    texts = ["a " * 34, "b " * 649, "c", "a " * 34]
    data = to_text("letters", Texts(texts, "train", owners=[7, 5, 9, 7]), None)
    assert data.names == ("<ukn>", "<eos>", "a", "b", "c")
    assert [data.names[row[0]] for row in data.train.inputs.tolist()] == ["b"] * 8 + ["a"]
    assert data.test.inputs.tolist() == [[3] * 64] * 2
    assert data.train.inputs[8].tolist() == [2] * 34 + [1] + [2] * 29
    parts = split_dataset(data, "natural", 2, seed=0)
    assert [rows.tolist() for rows in parts.train] == [list(range(8)), [8]]
    assert [rows.tolist() for rows in parts.test] == [[0, 1], []]


def test_every_row_goes_to_one_client(corpus):
    parts = split_dataset(corpus, "iid", 50, seed=3)
    assert sorted(torch.cat(parts.train).tolist()) == list(range(100))
    assert [len(rows) for rows in parts.train] == [2] * 50
    assert [len(rows) for rows in parts.test] == [1] * 10 + [0] * 40
    train, test = corpus.train.select(parts.train[4]), corpus.test.select(parts.test[4])
    assert parts.classes[4] == tuple(sorted(set(train.inputs.flatten().tolist())))
    assert train.targets is train.inputs
    assert len(test) == 1


@pytest.mark.parametrize("kind", ["non-iid-2", "dirichlet-0.3"])
def test_rows_of_text_have_no_classes_to_split_by(corpus, kind):
    with pytest.raises(ConfigError, match=r"corpus is a text, whose rows have no class: expected iid or natural"):
        split_dataset(corpus, kind, 10, seed=0)


def test_a_table_with_a_column_of_texts_and_no_classes_is_a_text(tmp_path):
    """As StackOverflow's posts would lie: other columns are not read, and a label makes it a table of examples."""
    for name, more in (("posts", {"score": [1] * 12}), ("reviews", {"label": [0] * 12})):
        (tmp_path / name).mkdir()
        columns = {"user": ["u1", "u2"] * 6, "text": ["many words " * 40] * 12, **more}
        parquet.write_table(pa.table(columns), tmp_path / name / "train.parquet")
    data = load_dataset("posts", tmp_path, owner="user")
    assert data.classes == 2 + 2
    assert len(split_dataset(data, "natural-user", 2, seed=0)) == 2
    with pytest.raises(DataError, match="column user of type string among the columns user, text, label"):
        load_dataset("reviews", tmp_path)
    with pytest.raises(DataError, match=r"wikitext-2-v1 is a text, without classes: found data\.label='a'"):
        SOURCES["wikitext2"].fill(Columns("a"))


def test_the_papers_text(shared):
    data = load_dataset("wikitext2", shared / "data")
    assert data.classes == 33_279
    assert data.train.inputs.shape == (100, 20_886)
    assert data.test.inputs.shape == (10, 24_556)
    assert sum(len(piece) > 0 for piece in data.train.inputs[0].split(64)) == 327
    parts = split_dataset(data, "iid", 100, seed=0)
    words = [len(own) for own in parts.classes]
    assert min(words) >= 2_500
    assert max(words) <= 5_000
