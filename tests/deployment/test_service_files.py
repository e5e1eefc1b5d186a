"""The units, the Slurm script and the KubeRay manifest: what can be checked without systemd, Slurm and Kubernetes."""

import re
import shutil
import subprocess
import sysconfig

import pytest
import yaml

from tests.docs.pages import DOCS

FOLDER = DOCS / "deployment"
UNITS = sorted((FOLDER / "systemd").iterdir())
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    for unit in UNITS:  # an instance of each template; the commands are those that are installed here
        text = unit.read_text(encoding="utf-8").replace("/opt/heterofl/bin/", f"{sysconfig.get_path('scripts')}/")
        (tmp_path / unit.name.replace("@", "@phone")).write_text(text, encoding="utf-8")
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run([ANALYZE, "verify", "--man=no", *paths], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "heterofl" in line and "/usr/sbin/nginx" not in line]
    assert complaints == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_service_is_bounded_and_not_roots(unit):
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE))
    assert settings["User"] not in ("", "root")
    assert {"MemoryMax", "NoNewPrivileges", "ProtectSystem"} <= settings.keys()


def test_the_slurm_script_is_bash_and_keeps_its_token_to_itself():
    script = FOLDER / "ray.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.index("umask 077") < text.index("mktemp") < text.index("ray start")


def test_each_pod_gets_the_token_from_the_secret_and_none_is_roots():
    spec = yaml.safe_load((FOLDER / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        environment = {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"]["secretKeyRef"]["name"] == "heterofl-ray"
