"""The parts of the compose file fit together, speak TLS and know one another."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deployment"
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
NODES = {"node-a": ("a", 0), "node-b": ("b", 1), "node-c": ("c", 2), "node-e": ("e", 3)}


def test_the_superlink_takes_known_nodes_alone_and_speaks_tls():
    own = {"--ssl-certfile=/keys/server.crt", "--ssl-keyfile=/keys/server.key", "--enable-supernode-auth"}
    assert own <= set(SERVICES["superlink"]["command"])
    assert set(SERVICES) == {"superlink", "proxy", *NODES}


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_logs_are_bounded_and_health_is_checked(name):
    service = SERVICES[name]
    assert {"mem_limit", "pids_limit", "healthcheck"} <= service.keys()
    assert {"max-size", "max-file"} == service["logging"]["options"].keys()


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_its_level_its_part_and_its_key(name):
    level, number = NODES[name]
    own = {f'--node-config=level="{level}" partition-id={number} num-partitions={len(NODES)}'}
    own |= {"--superlink=proxy:8443", "--root-certificates=/keys/ca.crt", f"--auth-supernode-private-key=/keys/{name}"}
    assert own <= set(SERVICES[name]["command"])


@pytest.mark.slow
def test_the_image_has_what_the_package_is_built_from(tmp_path):
    for line in (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines():
        match line.split():
            case ["COPY", *sources, target]:
                for source in sources:
                    copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                    copy(ROOT / source, tmp_path / Path(target).relative_to("/build"))
    wheel = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(tmp_path)]
    done = subprocess.run(wheel, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_reach_the_superlink_through_the_proxy_alone():
    inside = set(SERVICES["superlink"]["networks"])
    assert {name for name, service in SERVICES.items() if inside & set(service["networks"])} == {"superlink", "proxy"}
    opened = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert opened == {"superlink": ["127.0.0.1:8000:8000", "127.0.0.1:9090:9090"], "proxy": ["8443:8443"]}


def test_the_proxy_gets_the_files_that_its_configuration_names():
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["proxy"]["volumes"])
    named = set(re.findall(r"\bkeys/[\w.]+", (FOLDER / "nginx.conf").read_text(encoding="utf-8")))
    expected = {f"./{path}": f"/etc/nginx/{path}" for path in named | {"nginx.conf"}}
    assert mounted == expected
    assert all(volume.endswith(":ro") for volume in SERVICES["proxy"]["volumes"])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"proxy"}))
def test_each_container_gets_the_files_that_it_names_alone(name):
    service = SERVICES[name]
    mounted = {target for _, target, *_ in (volume.split(":") for volume in service["volumes"])}
    named = {word.partition("=")[2] for word in service["command"] if "=/keys/" in word}
    assert {path for path in mounted if path.startswith("/keys/")} == named
    assert all(volume.endswith(":ro") for volume in service["volumes"] if "/keys/" in volume)
    assert "/keys/ca.key" not in mounted
