"""Settings from the command line and from files."""

import pytest

from heterofl_flwr.app.cli.settings import read_assignments, read_config
from heterofl_flwr.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=0.5", "train.lr", 0.5),
        ("train.lr=auto", "train.lr", "auto"),
        ("train.lr=fast", "train.lr", "fast"),
        ("num-rounds=7", "num-rounds", 7),
        ("model.scaler=false", "model.scaler", False),
        ("data.name=mnist", "data.name", "mnist"),
        ('data.name="mnist"', "data.name", "mnist"),
        ("data.root=2024", "data.root", "2024"),
        ("data.root=/a=b c", "data.root", "/a=b c"),
        ("train.milestones=100", "train.milestones", 100),
        ("train.milestones=100,150", "train.milestones", "100,150"),
        ("train.mask-fill=-inf", "train.mask-fill", "-inf"),
        ("seed=1.5", "seed", 1.5),
        ("run.dir=[1]", "run.dir", "[1]"),
        ("not.ours=3", "not.ours", 3),
        ("not.ours=text", "not.ours", "text"),
        (" seed =1", "seed", 1),
    ],
)
def test_values_are_what_their_settings_can_be(text, key, value):
    found = read_assignments([text])
    assert found == {key: value}
    assert type(found[key]) is type(value)


@pytest.mark.parametrize("text", ["train.lr", "=3", ""])
def test_an_assignment_has_a_key_and_a_value(text):
    with pytest.raises(ConfigError, match="expected key=value"):
        read_assignments([text])


def test_a_file_may_be_nested_or_dotted(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("seed = 3\ntrain.lr = 0.1\n[data]\nname = 'mnist'\n")
    assert read_config(path) == {"seed": 3, "train.lr": 0.1, "data.name": "mnist"}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read"):
        read_config(path)
    path.write_text("seed = ")
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read"):
        read_config(path)
