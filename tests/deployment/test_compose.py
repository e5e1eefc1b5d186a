"""The compose file starts what the tests start, and its parts fit together."""

from pathlib import Path

import pytest
import yaml

from simulations.deployment import node_words, superlink_words

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deployment"
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
NODES = {"node-a": ("a", 0), "node-b": ("b", 1), "node-c": ("c", 2), "node-e": ("e", 3)}


def test_the_superlink_is_started_as_in_the_tests():
    expected = superlink_words("/keys", "/state/superlink.db", "0.0.0.0", 8000)
    assert SERVICES["superlink"]["command"] == ["flower-superlink", *expected]


@pytest.mark.parametrize("name", NODES)
def test_nodes_are_started_as_in_the_tests(name):
    level, number = NODES[name]
    config = f'level="{level}" partition-id={number} num-partitions={len(NODES)}'
    expected = node_words("superlink:8000", 9094, config, "/keys", name)
    assert SERVICES[name]["command"] == ["flower-supernode", *expected]
    assert set(SERVICES) == {"superlink", *NODES}


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_gets_the_files_that_it_names_and_no_others(name):
    service = SERVICES[name]
    mounted = {target for _, target, *_ in (volume.split(":") for volume in service["volumes"])}
    named = {word.partition("=")[2] for word in service["command"] if "=/keys/" in word}
    assert {path for path in mounted if path.startswith("/keys/")} == named
    assert all(volume.endswith(":ro") for volume in service["volumes"] if "/keys/" in volume)
    assert "/keys/ca.key" not in mounted


def test_what_the_image_copies_is_there():
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    build = SERVICES["superlink"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
