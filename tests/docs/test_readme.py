"""The README shows an excerpt of the drop-in diff; it must not drift from the one that is tested."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_changed_line_in_the_readme_is_in_the_tested_diff():
    (shown,) = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    changed = [line for line in shown.splitlines() if line.startswith(("+", "-"))]
    tested = (ROOT / "docs" / "dropin.diff").read_text(encoding="utf-8").splitlines()
    assert len(changed) > 5
    assert [line for line in changed if line not in tested] == []
