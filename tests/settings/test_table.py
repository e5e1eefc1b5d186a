"""The settings as text, and the copy of the defaults in pyproject.toml."""

import tomllib
from pathlib import Path

from heterofl_flwr.settings import DEFAULTS, SPECS, describe, differences, flatten, from_flat, to_flat, to_toml

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_pyproject_has_the_defaults():
    table = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert differences(table) == [], "run: heterofl settings --format toml, and paste it under [tool.flwr.app.config]"


def test_flower_reads_the_table_as_we_do():
    from flwr.common.config import flatten_dict

    table = tomllib.loads(to_toml())
    assert flatten_dict(table) == flatten(table) == DEFAULTS


def test_differences_name_key_found_and_expected():
    table = tomllib.loads(to_toml({key: value for key, value in DEFAULTS.items() if key != "seed"}))
    lines = differences(
        {**table, "strange": {"key": 1}, "assignment": "dynamic", "engine": {**table["engine"], "window": False}}
    )
    assert lines == [
        "strange.key: unknown",
        "assignment: found 'dynamic', expected 'fix'",
        "seed: missing, expected 0",
        "engine.window: found False, expected 0",
    ]


def test_toml_carries_any_text():
    values = to_flat(from_flat({})) | {"run.dir": 'a "b" \\ é\n\t\u2028'}
    assert flatten(tomllib.loads(to_toml(values))) == values


def test_the_reference_has_every_setting_once_and_says_what_auto_is():
    text = describe()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for key, spec in SPECS.items():
        own = [row for row in rows if row.startswith(f"| `{key}` |") and spec.help.replace("|", "\\|") in row]
        assert len(own) == 1, key
    assert "| `num-rounds` | `5`, `20` | `200`, `400` | `400`, `800` | `200` | `50` |" in text
    assert "\n\n\n" not in text
