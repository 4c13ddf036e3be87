"""A few of the cases of ``tools/checks/fuzz.py``: changed files end in a result or in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "tools" / "checks" / "fuzz.py"


def test_changed_files_of_all_kinds_end_as_they_should(tmp_path):
    if sys.platform == "darwin":
        pytest.skip("its cases are forks, which Metal doesn't allow")
    command = [sys.executable, str(FUZZ), "--cases", "8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "104 cases, 0 ended as they should not" in done.stdout
