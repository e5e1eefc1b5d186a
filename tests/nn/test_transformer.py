import logging

import pytest
import torch

from heterofl_flwr.errors import ConfigError, DataError
from heterofl_flwr.nn import transformer
from heterofl_flwr.nn.transformer import Transformer, TransformerShape

SHAPE = TransformerShape(sequence=6, embedding=32, hidden=24, heads=4, layers=3)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.0625])
@pytest.mark.parametrize("length", [1, 4, 6])
def test_words_are_axis_one_of_the_logits(rate, length):
    assert Transformer(20, SHAPE, rate=rate)(torch.zeros(2, length, dtype=torch.int64)).shape == (2, 20, length)


def test_the_mask_token_is_one_past_the_words():
    model = Transformer(20, SHAPE)
    assert model.mask_token == 20
    assert model.embedding.token.weight.shape == (21, 32)
    model(torch.tensor([[model.mask_token]]))


def test_word_rows_are_named():
    model = Transformer(20, SHAPE)
    assert [len(model.state_dict()[name]) for name in model.label_rows] == [21, 20, 20]


def test_longer_texts_than_positions_are_refused():
    with pytest.raises(DataError, match="7 tokens are too many: this model takes up to 6"):
        Transformer(20, SHAPE)(torch.zeros(1, 7, dtype=torch.int64))


def test_encoder_layers_start_as_identical_copies_or_not():
    for choice, same in (("paper", True), ("fixed", False)):
        first, *others = Transformer(20, SHAPE, encoder_init=choice).encoder
        for other in others:
            assert torch.equal(first.linear1.weight, other.linear1.weight) == same
            assert torch.equal(first.attention.linear_q.weight, other.attention.linear_q.weight) == same
            assert first.linear1.weight is not other.linear1.weight


def test_unknown_encoder_starts_are_refused():
    with pytest.raises(ConfigError, match=r"fidelity\.encoder_init is 'same'"):
        Transformer(20, SHAPE, encoder_init="same")


def test_weights_start_as_the_papers():
    model = Transformer(20, TransformerShape(embedding=256, layers=1))
    layer = model.encoder[0]
    for linear in (layer.linear1, layer.linear2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.decoder.linear1.weight.abs().max() <= 1 / 16
    assert all((value == 0).all() for name, value in model.named_parameters() if name.endswith("bias"))


def test_dropout_is_random_in_training_only():
    model, tokens = Transformer(20, SHAPE), torch.zeros(1, 6, dtype=torch.int64)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_rate_that_does_not_fit_the_heads_is_rounded_up_and_told_once(caplog):
    transformer._embedding_width.cache_clear()
    with caplog.at_level(logging.WARNING):
        models = [Transformer(20, SHAPE, rate=0.3) for _ in range(2)]
    assert [record.message for record in caplog.records] == [
        "rate 0.3 cuts an embedding of 32 to 10, which does not fit 4 heads; using 12"
    ]
    assert {model.embedding.token.embedding_dim for model in models} == {12}
    assert models[0].encoder[0].linear1.out_features == 8


def test_a_rate_that_fits_is_not_told(caplog):
    transformer._embedding_width.cache_clear()
    Transformer(20, SHAPE, rate=0.25)
    assert not caplog.records
