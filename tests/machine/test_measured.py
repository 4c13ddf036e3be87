"""What a check measures is kept, and a plan of an official model tells the time by it."""

import json
import os
import time

import pytest
from commands import run
from huggingface_hub import constants
from support import pretend_metal

from mlx_cogvideo.cli.check import main as check
from mlx_cogvideo.cli.common import show_log_messages
from mlx_cogvideo.machine.measured import keep_measured, measured, speed_file
from mlx_cogvideo.machine.speed import Ceilings
from mlx_cogvideo.nn.backend import PEAK_TERAFLOPS

RATES = Ceilings("float32", 7e12, 4e12, 2e11)
TODAY = time.strftime("%Y-%m-%d")


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The file with the measurements, which doesn't exist yet; the hub's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "mlx_cogvideo" / "speed.json"


def time_line(capsys, *options) -> str:
    """The line about the time in a plan of the 5B."""
    arguments = ["--model", "5b", "--prompt", "a", "--frames", 49, "--dry-run", *options]
    assert run(*arguments) == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("time "))
    return line[9:]


def test_a_check_measures_once_and_plans_say_when(file, monkeypatch, capsys):
    assert "check measures this machine" in time_line(capsys)
    ceilings = {"float32": RATES, "bfloat16": Ceilings("bfloat16", 1, 1, 1)}
    monkeypatch.setattr("mlx_cogvideo.cli.check.check_stages", lambda *_: [])
    monkeypatch.setattr("mlx_cogvideo.machine.speed.choices_on_macs", lambda: [])
    monkeypatch.setattr(
        "mlx_cogvideo.cli.check.measure_ceilings",
        lambda dtype: ceilings.get(str(dtype).split(".")[-1], Ceilings("float16", 1, 1, 1)),
    )
    assert check([]) == 0
    table = capsys.readouterr().out
    assert "19.6 GiB" in table and "28.9 GiB" in table and "The disk of the downloads has" in table
    assert [path.name for path in file.parent.iterdir()] == ["speed.json"]
    # 42 layers, 17,776 tokens of 3072: products, attention, and 30 arrays of 4 bytes.
    tokens = 17776
    step = 24 * 3072**2 * tokens / 7e12 + 4 * tokens**2 * 3072 / 4e12 + 120 * tokens * 3072 / 2e11
    minutes = round(42 * step * 50 * 2 / 60)
    line = time_line(capsys)
    hours = f"{minutes // 60} h {minutes % 60:02} min"
    assert line.startswith(f"about {hours} of denoising on this machine (measured by ")
    assert line.endswith(f"check on {TODAY})")
    assert time_line(capsys, "--cache", "teacache").startswith("at most ")
    seconds = round(42 * step * 4)
    assert time_line(capsys, "--steps", 4, "--guidance", 1).startswith(f"about {seconds // 60} min")


def test_the_file_of_other_machines_is_kept_and_not_used(file):
    keep_measured([RATES])
    contents = json.loads(file.read_text())
    (mine,) = contents["machines"]
    contents["machines"] = {"a Mac": contents["machines"][mine]}
    file.write_text(json.dumps(contents))
    assert measured() is None
    keep_measured([RATES])
    assert json.loads(file.read_text())["machines"].keys() == {"a Mac", mine}
    assert measured().of("float32") == RATES and measured().of("float16") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "machines": []}', "\x00", "[" * 10**5],
    ids=range(7),
)
def test_a_file_that_cannot_be_used_is_ignored_with_a_word(file, capsys, text):
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert run("--model", "5b", "--prompt", "a", "--dry-run") == 0
    printed = capsys.readouterr().err
    assert f"warning: {file} can't be used and is ignored" in printed
    assert "time     unknown" in printed
    keep_measured([RATES])
    assert measured().date == TODAY


def test_a_pipe_in_the_place_of_the_file_is_ignored(file, capsys):
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    assert run("--model", "5b", "--prompt", "a", "--dry-run") == 0
    assert capsys.readouterr().err.count(f"warning: {file} can't be used and is ignored") == 1


@pytest.mark.parametrize("date", ["soon", "2026-11-26\n", 7, {}])
def test_a_date_that_is_none_is_ignored(file, date):
    keep_measured([RATES])
    contents = json.loads(file.read_text())
    (mine,) = contents["machines"].values()
    mine["date"] = date
    file.write_text(json.dumps(contents))
    assert measured() is None


WRONG = [-1, "fast", True, 1e-308, 1e300]


@pytest.mark.parametrize(
    "row", [{}, {"dtype": "float32"}, 7, *({"matmul": rate} for rate in WRONG)]
)
def test_rates_that_cannot_be_are_ignored(file, row):
    keep_measured([RATES])
    contents = json.loads(file.read_text())
    (mine,) = contents["machines"].values()
    good = mine["ceilings"][0]
    mine["ceilings"] = [{**good, **row} if isinstance(row, dict) and "matmul" in row else row]
    file.write_text(json.dumps(contents))
    assert measured() is None


def test_a_folder_that_cannot_be_written_is_no_error(file, capsys):
    file.parent.parent.write_text("a file")
    show_log_messages()
    keep_measured([RATES])
    assert "warning: the measured speed isn't kept" in capsys.readouterr().err
    assert measured() is None


def test_a_mac_that_was_not_measured_has_an_estimate_of_its_chip(monkeypatch, capsys):
    pretend_metal(monkeypatch, "Apple M2 Max", 64)
    assert PEAK_TERAFLOPS["M2 Max"] == 10.7
    line = time_line(capsys)
    # 3.2e16 operations of 50 steps with guidance, at 70 % of 10.7 TFLOP/s, and what isn't products.
    assert line == "about 75 min of denoising on this machine (estimated from its chip)"
    pretend_metal(monkeypatch, "Apple M9", 64)
    assert time_line(capsys).startswith("unknown: ")


@pytest.mark.parametrize(
    ("system", "home", "own", "expected"),
    [
        ("darwin", "/Users/me", None, "/Users/me/Library/Caches/mlx_cogvideo/speed.json"),
        ("linux", "/home/me", None, "/home/me/.cache/mlx_cogvideo/speed.json"),
        ("linux", "/home/me", "relative", "/home/me/.cache/mlx_cogvideo/speed.json"),
        ("darwin", "/Users/me", "/cache", "/cache/mlx_cogvideo/speed.json"),
    ],
)
def test_the_file_is_in_the_cache_folder_of_the_user(monkeypatch, system, home, own, expected):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME")
    if own:
        monkeypatch.setenv("XDG_CACHE_HOME", own)
    assert str(speed_file()) == expected
