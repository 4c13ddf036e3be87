"""Options of the command line, made from the settings' classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROMPT, SMALL, errors, run

from mlx_cogvideo.cli.generate import make_parser
from mlx_cogvideo.cli.options import given_settings, help_text
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.video import read_record

ROOT = Path(__file__).parents[2]


def test_every_setting_is_an_option_with_a_help_that_ends_with_a_full_stop():
    parser = make_parser()
    options = {option for action in parser._actions for option in action.option_strings}
    for name, about in settings_of(RunSettings).items():
        assert {f"--{name}", "--" + name.replace("_", "-"), *about.options} <= options
        assert help_text(RunSettings, name).endswith(".")


def test_what_is_not_given_is_not_a_setting():
    assert given_settings(make_parser().parse_args(["--prompt", "a"]), RunSettings) == {
        "prompt": "a"
    }


@pytest.mark.parametrize("option", ["--frames", "--num_frames", "--num-frames"])
def test_an_option_has_the_names_of_python_and_of_other_tools(option):
    args = make_parser().parse_args(["--prompt", "a", option, "9"])
    assert given_settings(args, RunSettings)["num_frames"] == 9


def test_values_are_typed_by_their_field():
    words = "--prompt a --tile-size 32 48 --tile-overlap 1/6 0.2 --no-sequential-guidance --seed 1"
    given = given_settings(make_parser().parse_args(words.split()), RunSettings)
    assert given["tile_size"] == [32, 48]
    assert given["tile_overlap"] == [1 / 6, 0.2]
    assert given["sequential_guidance"] is False


def test_a_configuration_file_gives_options_that_the_command_line_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.toml").write_text(
        f'prompt = "{PROMPT}"\nframes = 9\nheight = 32\nwidth = 48\nsteps = 5\nseed = [3]\n'
        'tiling = "seamless"\n'
    )
    assert run("--config", "options.toml", "--steps", 2) == 0
    settings = read_record(tmp_path / "video.mp4")["settings"]
    assert (settings["num_inference_steps"], settings["seed"]) == (2, 3)
    assert settings["tiling"] == "exact"


def test_a_number_out_of_range_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", PROMPT, *SMALL, "--fps", 0) == 2
    assert errors(capsys.readouterr().err) == ["error: fps must be above 0; got 0.0"]


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "1e100000000"])
def test_what_is_no_finite_number_is_refused_with_the_range(capsys, number):
    assert run("--prompt", PROMPT, "--guidance", number, "--dry-run") == 2
    assert "guidance_scale must be a finite number" in errors(capsys.readouterr().err)[0]


def test_switches_with_an_optional_value_in_a_configuration_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.json").write_text('{"resume": true, "prompt": "a"}')
    assert run("--config", "options.json") == 2
    assert "nothing to resume" in errors(capsys.readouterr().err)[0]
    (tmp_path / "options.json").write_text('{"prompt": "a", "steps": null}')
    assert run("--config", "options.json") == 2
    assert "--steps has no value" in errors(capsys.readouterr().err)[0]


@pytest.mark.parametrize("script", ["generate.py", "lora.py"])
def test_help_is_in_groups_and_ends_with_three_examples(script):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    )
    examples = done.stdout.split("examples:\n")[1].strip().splitlines()
    assert len(examples) == 3 and all(script in line for line in examples)


def test_the_table_of_settings_in_the_documentation_is_up_to_date():
    script = ROOT / "tools" / "docs" / "settings_tables.py"
    assert subprocess.run([sys.executable, script, "--check"], cwd=ROOT).returncode == 0


def test_a_record_names_only_settings_that_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", PROMPT, *SMALL, "--seed", 1) == 0
    capsys.readouterr()
    assert run("--show", "video.mp4") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings.keys() <= settings_of(RunSettings).keys()
