"""Look up known vulnerabilities of all that is installed; exit with 1 if there is one.

The lookup needs a network and a registry that knows of them. Where there is none, this says that nothing was looked up;
with ``--strict`` that is an error too.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]


def main(arguments: Sequence[str]) -> int:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        found, reason = [], (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    else:
        reason = "the registry knows none of the packages"
    lines, audited, vulnerable = told(found)
    print("\n".join(lines) if audited else f"known vulnerabilities: NOT CHECKED, nothing was looked up ({reason})")
    return int(vulnerable or (not audited and "--strict" in arguments))


def told(dependencies: Sequence[Mapping[str, Any]]) -> tuple[list[str], int, bool]:
    """Return what to print, how many packages were looked up, and whether any of them is vulnerable."""
    audited = [package for package in dependencies if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'none'}"
        for package in audited
        for one in package["vulns"]
    ]
    whole = f"{len(audited)} of {len(dependencies)} packages looked up, {len(lines)} known vulnerabilities"
    return [*lines, whole], len(audited), bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
