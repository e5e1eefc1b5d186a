"""Who was dealt which classes: the table, the matrix, and the run that leaves them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from PIL import Image

from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import DataError
from heterofl_flwr.report.drawing import light, to_png, to_svg
from heterofl_flwr.report.figures import draw_deal, draw_run
from heterofl_flwr.runs.class_split import Deal
from heterofl_flwr.settings import from_flat

TRAIN = ((4, 0, 0), (0, 2, 1))
TEST = ((1, 0, 0), (0, 1, 1))


def counts(clients, classes):
    row = st.tuples(*[st.integers(0, 9)] * classes)
    return st.tuples(*[row] * clients)


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(lambda size: st.tuples(counts(*size), counts(*size))))
def test_a_table_is_read_as_it_was_written(both):
    train, test = both
    # An entry in the last place, because what nobody has at the end leaves no line.
    train = (*train[:-1], (*train[-1][:-1], 1))
    assert Deal.from_csv(Deal(train, test).to_csv()) == Deal(train, test)


def test_the_table_has_a_line_for_each_class_that_a_client_has():
    assert Deal(TRAIN, TEST).to_csv().splitlines() == [
        "client,class,train,test",
        "0,0,4,1",
        "1,1,2,1",
        "1,2,1,1",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", "its head is a,b, expected client,class,train,test"),
        ("client,class,train,test\n0,0,many,1\n", "'many'"),
        ("client,class,train,test\n", "cannot be read"),
        ("client,class,train,test\n0,0,1\n", "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused(text, fault):
    with pytest.raises(DataError, match=fault):
        Deal.from_csv(text)


def test_the_matrix_is_the_darker_the_more_examples_there_are():
    image = draw_deal(TRAIN).axes[0].images[0]
    shown = image.get_array()
    assert shown.shape == (3, 2, 4)  # classes, clients, colour
    np.testing.assert_allclose(shown[..., 3], np.array(TRAIN).T / 4)
    np.testing.assert_allclose(shown[0, 0, :3], to_rgba(light("blue"))[:3])


def test_it_is_a_figure_of_the_run_with_its_own_numbers():
    (drawing,) = draw_run([], None, Deal(TRAIN, TEST))
    assert drawing.name == "deal"
    assert "the fullest entry has 4" in drawing.caption
    assert np.asarray(Image.open(io.BytesIO(to_png(drawing.figure, dpi=60))).convert("L")).std() > 5
    assert "<image" in to_svg(drawing.figure, drawing.name, drawing.title)


def test_what_clients_were_dealt_is_what_they_train_on():
    task = Task(from_flat({"data.split": "non-iid-2"}))
    deal = task.deal(10)
    for client in range(10):
        train, test, classes = task.part(client, 10)
        assert list(deal.train[client]) == train.targets.bincount(minlength=10).tolist()
        assert list(deal.test[client]) == test.targets.bincount(minlength=10).tolist()
        assert tuple(number for number, count in enumerate(deal.train[client]) if count) == classes


def test_there_is_none_where_the_server_has_no_data():
    assert Task(from_flat({"evaluate.central": False})).deal(10) is None
