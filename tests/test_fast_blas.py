"""The tests run on a fast BLAS, in this process and in those that they start."""

import os
import subprocess
import sys

import pytest
from fast_blas import BLAS, libraries
from support import environment


@pytest.mark.skipif(sys.platform != "linux" or not libraries(), reason="there is no OpenBLAS here")
def test_a_bare_process_finds_openblas_and_gives_it_to_those_that_it_starts():
    variables = {k: v for k, v in environment().items() if k != "LD_PRELOAD"}
    there = "import ctypes; ctypes.CDLL(None).cblas_sgemm"
    code = (
        f"import fast_blas, subprocess, sys; print(fast_blas.BLAS); {there}\n"
        f"subprocess.run([sys.executable, '-c', {there!r}], check=True)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"BLAS: {libraries()[0]}\n"


@pytest.mark.skipif(sys.platform != "linux" or not libraries(), reason="there is no OpenBLAS here")
def test_a_blas_that_is_loaded_already_keeps_its_kernels_in_children_too():
    variables = environment() | {"LD_PRELOAD": str(libraries()[0])}
    variables.pop("OPENBLAS_CORETYPE", None)
    code = "import fast_blas, os; print(os.environ.get('OPENBLAS_CORETYPE'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


def test_the_report_names_the_blas():
    assert BLAS.startswith("BLAS: ") and "\n" not in BLAS
    if sys.platform == "linux" and libraries():
        assert os.environ["OPENBLAS_NUM_THREADS"].isdigit() and "MLX's own" not in BLAS
