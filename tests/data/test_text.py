"""Text: the vocabulary, the rows, who gets which, and how they are read."""

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from heterofl_flwr.data import Reading, Split, load_dataset, split_dataset
from heterofl_flwr.data.convert import to_text
from heterofl_flwr.errors import ConfigError, DataError


@pytest.fixture
def corpus():
    """Return a data set of 100 and 10 short rows, of the words w0 to w6."""
    train = [" ".join(f"w{(row + place) % 7}" for place in range(4)) for row in range(100)]
    return to_text("corpus", train, ["w0 new w1 w2", ""] * 5)


def test_words_are_numbered_as_they_come_and_strange_ones_share_a_number(corpus):
    assert corpus.classes == 2 + 7
    assert corpus.train.inputs.shape == (100, 5)
    assert corpus.train.inputs[0].tolist() == [2, 3, 4, 5, 1]  # w0 w1 w2 w3 <eos>
    assert corpus.test.inputs.shape == (10, 3)
    assert corpus.test.inputs.flatten().tolist() == [2, 0, 3, 4, 1, 1] * 5
    assert corpus.train.reading == Reading(hides_as=9, share=0.15, length=64)


def test_what_does_not_fill_the_last_row_is_left_out():
    data = to_text("corpus", ["a b"] * 100 + ["c c c c c"], ["a"] * 19)
    assert data.train.inputs.shape == (100, 3)
    assert data.train.inputs.flatten().tolist() == [2, 3, 1] * 100
    assert data.test.inputs.shape == (10, 3)


def test_a_corpus_too_short_for_its_rows_raises_an_error():
    with pytest.raises(DataError, match=r"corpus, split test: found 4 words, too few for 10 rows"):
        to_text("corpus", ["a b"] * 100, ["a", "b"])


def test_every_row_goes_to_one_client_and_the_words_are_its_classes(corpus):
    parts = split_dataset(corpus, "iid", 50, seed=3)
    assert sorted(torch.cat(parts.train).tolist()) == list(range(100))
    assert [len(rows) for rows in parts.train] == [2] * 50
    assert [len(rows) for rows in parts.test] == [1] * 10 + [0] * 40
    train, test = parts.client_splits(4, corpus.train, corpus.test)
    assert parts.classes[4] == tuple(sorted(set(train.inputs.flatten().tolist())))
    assert train.targets is train.inputs
    assert len(test) == 1


@pytest.mark.parametrize("kind", ["non-iid-2", "dirichlet-0.3", "rotated-15"])
def test_rows_of_text_have_no_classes_to_split_by(corpus, kind):
    with pytest.raises(ConfigError, match=r"corpus is a text, whose rows have no class: expected iid"):
        split_dataset(corpus, kind, 10, seed=0)


def test_targets_of_a_text_are_its_inputs():
    rows = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(DataError, match="rows of int64 tokens that are the targets too"):
        Split(rows, rows.clone(), reading=Reading(hides_as=1))


def test_a_copy_of_the_hub_is_read(tmp_path):
    folder = tmp_path / "Salesforce" / "wikitext" / "wikitext-2-v1"
    folder.mkdir(parents=True)
    for part, lines in (("train", ["", " = Title = \n", "a b"] * 100), ("test", ["a z"] * 10), ("validation", ["q"])):
        parquet.write_table(pa.table({"text": lines}), folder / f"{part}-00000-of-00001.parquet")
    data = load_dataset("wikitext2", tmp_path)
    assert data.classes == 2 + 4  # =, Title, a, b
    assert data.train.inputs[0].tolist() == [1, 2, 3, 2, 1, 4, 5, 1]
    assert data.test.inputs[0].tolist() == [4, 0, 1]


def test_a_copy_without_text_names_its_columns(tmp_path):
    folder = tmp_path / "Salesforce" / "wikitext" / "wikitext-2-v1"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        parquet.write_table(pa.table({"line": ["a"]}), folder / f"{part}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: found the columns line; expected one named text"):
        load_dataset("wikitext2", tmp_path)


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
