"""Options of the command line, made from the settings' classes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROMPT, SMALL, errors, run, warnings

from mlx_cogvideo.cli import check, convert, generate, lora_options, tune
from mlx_cogvideo.cli.config_file import with_config_file
from mlx_cogvideo.cli.generate import make_parser
from mlx_cogvideo.cli.options import given_settings, help_text
from mlx_cogvideo.cli.other_names import EVERYWHERE, OTHER_NAMES
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.video import read_record
from mlx_cogvideo.web import serve, ui

ROOT = Path(__file__).parents[2]


def test_every_setting_is_an_option_with_a_help_that_ends_with_a_full_stop():
    parser = make_parser()
    options = {option for action in parser._actions for option in action.option_strings}
    for name, about in settings_of(RunSettings).items():
        assert {"--" + name.replace("_", "-"), *about.options} <= options
        assert parser.own_name(f"--{name}") in options
        assert help_text(RunSettings, name).endswith(".")


def test_what_is_not_given_is_not_a_setting():
    assert given_settings(make_parser().parse_args(["--prompt", "a"]), RunSettings) == {
        "prompt": "a"
    }


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("-p b", "prompt", "b"),
        ("--num_frames 9", "num_frames", 9),
        ("--num-frames=9", "num_frames", 9),
        ("--num-inference-steps 3", "num_inference_steps", 3),
        ("--guidance_scale 3", "guidance_scale", 3),
        ("--cfg-scale 3", "guidance_scale", 3),
        ("--cfg_scale=3", "guidance_scale", 3),
        ("--output_path b.mp4", "output", "b.mp4"),
        ("--model_path 2b", "model", "2b"),
        ("--quantization_bits 4", "quantize", 4),
        ("--lora_path a 0.5 --lora b", "lora", [("a", 0.5), ("b", 1)]),
        ("--no-compile", "compile", False),
        ("--no_compile", "compile", False),
    ],
)
def test_an_option_has_the_names_of_python_and_of_other_tools(options, name, value):
    args = make_parser().parse_args(["--prompt", "a", *options.split()])
    assert getattr(args, name) == value


def test_every_name_of_another_tool_leads_to_an_option_or_says_what_to_do():
    makers = {"convert": convert, "check": check, "generate": generate, "lora": lora_options}
    makers |= {"tune": tune, "ui": ui, "serve": serve}
    for command, others in OTHER_NAMES.items():
        parser = makers[command].make_parser()
        options = {option for action in parser._actions for option in action.option_strings}
        assert not others.keys() & options, "an option of its own is no other name"
        for name, meaning in (EVERYWHERE | others).items():
            assert meaning in options if meaning.startswith("-") else " " in meaning, name
            assert re.fullmatch("--[a-z]+(-[a-z0-9]+)*", name)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--guidence 3", "unknown option --guidence: did you mean --guidance?"),
        ("--Steps=3", "unknown option --Steps: did you mean --steps?"),
        ("--zzz", "unknown option --zzz"),
        (
            "--guidence 3 --stepps 4",
            "unknown option --guidence: did you mean --guidance?; "
            "unknown option --stepps: did you mean --steps?",
        ),
        (
            "--scheduler dmp",
            "--scheduler: must be one of ddim, dpm, dpm++; got 'dmp': did you mean dpm?",
        ),
        ("--dtype bf16", "got 'bf16': did you mean bfloat16?"),
        ("--generate_type i2v", "--generate_type: isn't needed: --image makes image-to-video"),
        ("--q-mode mxfp4", "--q-mode: only the command convert has this option: convert the model"),
        ("--num_videos_per_prompt 2", "give several seeds, --seed 1 2 3"),
        ("red circle", "'red' follows no option: a text of several words needs quotes"),
    ],
)
def test_a_wrong_option_is_one_line_with_what_to_write(capsys, options, problem):
    assert run("-p", "a", *options.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and problem in line


def test_a_prompt_without_its_option_is_recognized(capsys):
    assert run("a red circle") == 2
    expected = "error: 'a red circle' follows no option: did you mean --prompt 'a red circle'?"
    assert capsys.readouterr().err.startswith(expected)


def test_words_that_look_like_options_stay_values():
    args = make_parser().parse_args(["-p=a", "--guidance", "-1", "-ob.mp4", "--negative-prompt=-x"])
    assert (args.guidance_scale, args.output, args.negative_prompt) == (-1, "b.mp4", "-x")
    for text in ("-a b", "--a b", "--a=b c"):
        assert make_parser().parse_args(["-p", text]).prompt == text
    assert make_parser().parse_args(["--output_path=a b.mp4"]).output == "a b.mp4"


def test_a_configuration_file_has_the_same_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"cfg_scale": 3, "output-path": "b.mp4", "num-frames": 9, "lora_path": ["a", 0.5]}
    (tmp_path / "options.json").write_text(json.dumps(names))
    words = ["-p", "a", "--config", "options.json", "--adapter-path", "b", "--n-frames", "17"]
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, words))
    assert (args.guidance_scale, args.output, args.num_frames) == (3, "b.mp4", 17)
    assert args.lora == [("b", 1)]
    for text, problem in (
        ('{"guidence": 3}', "unknown option --guidence: did you mean --guidance?"),
        ('{"generate_type": "i2v"}', "--generate_type: isn't needed"),
        ('{"cfg": 3, "guidance": 4}', "cfg and guidance are one option"),
        ('{"version": true}', "'version', which is for the command line only"),
    ):
        assert problem in refused(tmp_path / "options.json", text, capsys)


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


def refused(file, text, capsys) -> str:
    """The error that a configuration file gives, in one line."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("--config", file, "--dry-run") == 2
    (line,) = errors(capsys.readouterr().err)
    return line


def test_yaml_is_read_by_the_types_of_the_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yml").write_text(
        "prompt: no\nframes: 9\nheight: 32\nwidth: 48\nsteps: 1\nguidance: 1e0\nseed: [017]\n"
        "output: 12:30.mp4\nquiet: yes\ncompile: off\nnegative_prompt: ''  # nothing\n"
    )
    assert run("--config", "options.yml") == 0
    settings = read_record(tmp_path / "12:30.mp4")["settings"]
    assert (settings["prompt"], settings["seed"], settings["compile"]) == ("no", 17, False)


def test_a_training_takes_its_options_from_yaml(tmp_path):
    file = tmp_path / "lora.YAML"
    file.write_text(
        "data: clips\nlearning_rate: 1e-4\nrank: &rank 8\nalpha: *rank\n"
        "sample-prompt: [a, 'b: c']\n"
    )
    parser = lora_options.make_parser()
    args = parser.parse_args(with_config_file(parser, ["--config", str(file), "--rank", "4"]))
    assert (args.learning_rate, args.rank, args.alpha) == (1e-4, 4, 8)
    assert args.sample_prompt == ["a", "b: c"]


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 10 aliases"),
        ("a: " + "x" * 2**20, "more than 1,048,576 bytes"),
        ("[" * 10_000, "nested too deeply"),
        ("frames: 9\nframes: 17", "it has 'frames' 2 times"),
        ("frames: 9\nnum_frames: 17", "frames and num_frames are one option"),
        ("prompt:", "--prompt has no value"),
        ("prompt: true", "--prompt can't be True: put a text in quotes"),
        ("prompt: [a, b]", "--prompt takes one value, not a list"),
        ("prompt: {a: b}", "--prompt can't be {'a': 'b'}"),
        ("prompt: a\n\t- b", "line 2: found character"),
        ("- prompt", "must hold options by name"),
        ("prompt: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("prompt: a\n---\nprompt: b", "another document"),
        ("prompt: a".encode("utf-16"), "it isn't UTF-8 text"),
        (b"prompt: caf\xe9", "it isn't UTF-8 text"),
    ],
    ids=range(15),
)
def test_yaml_that_is_no_list_of_options_is_refused_in_one_line(tmp_path, capsys, text, words):
    assert words in refused(tmp_path / "options.yaml", text, capsys)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"frames": 9, "frames": 17}', "it has 'frames' 2 times"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"prompt": "a", "guidance": NaN}', "guidance_scale must be a finite number"),
        ("a.json", '{"prompt": "a"}'.encode("utf-16"), "it isn't UTF-8 text"),
        ("a.toml", "a = " + "[" * 100_000, "nested too deeply"),
        ("a.toml", "prompt = 2024-01-01", "put a text in quotes"),
        ("a.toml", "frames = 9\nframes = 17", "can't be read"),
        ("a.ini", "frames = 9", "must end in .toml, .json, .yaml or .yml"),
    ],
    ids=range(8),
)
def test_toml_and_json_that_hold_no_options_are_refused_in_one_line(
    tmp_path, capsys, name, text, words
):
    assert words in refused(tmp_path / name, text, capsys)


def test_yaml_without_its_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "YAML needs PyYAML" in refused(tmp_path / "a.yaml", "prompt: a", capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--guidance 1 --negative-prompt b", "negative_prompt has no effect"),
        ("--guidance 1 --guidance-schedule cosine", "dynamic_cfg has no effect"),
        ("--output frames --fps 5", "fps has no effect"),
        ("--output a.safetensors --tiling exact", "tiling has no effect"),
        ("--preview-every 3", "--preview-every 3 has no effect: there are 2 steps"),
        ("--save-every 3", "--save-every 3 has no effect"),
        ("--json", "--json has no effect"),
    ],
)
def test_an_option_without_effect_is_a_warning(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", PROMPT, *SMALL, "--dry-run", *options.split()) == 0
    (line,) = warnings(capsys.readouterr().err)
    assert words in line


def test_a_guidance_that_does_nothing_is_called_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", PROMPT, *SMALL, "--dry-run", "--guidance", 0.5) == 0
    assert "no guidance" in capsys.readouterr().err
    assert run("--prompt", PROMPT, *SMALL, "--dry-run", "--guidance", -3) == 2
    assert "guidance_scale must be a finite number, 0 or more" in capsys.readouterr().err


def test_options_beside_one_that_stops_are_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--show", "video.mp4", "--steps", 3, "-o", "a.mp4") == 2
    assert warnings(capsys.readouterr().err) == [
        "warning: --steps, --output: no effect beside --show"
    ]


def test_the_demo_is_announced_where_no_model_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for named, announced in (([], True), (["--model", "demo"], False)):
        assert run("--prompt", PROMPT, *SMALL, "--dry-run", *named) == 0
        assert ("using the bundled demo" in capsys.readouterr().err) == announced


def test_what_the_model_does_not_get_of_a_prompt_is_said_by_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n一只狗 🎈\n{'a red ' * 40}circle\n")
    options = ["--prompt-file", "prompts.txt", *SMALL, "--seed", 1, 2, "--negative-prompt", "猫"]
    assert run(*options, "--output", "{index}-{seed}.mp4", "--dry-run") == 0
    found = warnings(capsys.readouterr().err)
    assert len(found) == 3
    assert (
        "warning: line 2: the prompt has characters that the model doesn't know: 一只狗 🎈" in found
    )
    assert "warning: the negative prompt has characters that the model doesn't know: 猫" in found
    (cut,) = (line for line in found if "is cut at 32 tokens; this is lost: " in line)
    assert cut.startswith("warning: line 3: the prompt") and cut.endswith("red circle")


def test_a_prompt_is_reported_once_by_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", "a 猫 circle", *SMALL, "--steps", 1, "--guidance", 1) == 0
    assert len(warnings(capsys.readouterr().err)) == 1


def test_a_configuration_file_repeats_an_option(tmp_path):
    file, parser = tmp_path / "training.toml", lora_options.make_parser()
    file.write_text(
        'data = [["clips", 2], ["more"]]\nlora = [["style", 0.8], ["motion"]]\n'
        'report-to = ["wandb", "tensorboard"]\n'
    )
    args = parser.parse_args(with_config_file(parser, ["--config", str(file)]))
    assert [(each.path.name, each.weight) for each in args.data] == [("clips", 2), ("more", None)]
    assert args.lora == [("style", 0.8), ("motion", 1.0)]
    assert args.report_to == ("wandb", "tensorboard")


@pytest.mark.parametrize("value", ['[["a"], 1]', '[[["a"]]]', "[[true]]", "[[]]", "[]"])
def test_an_odd_list_in_a_configuration_file_is_refused(tmp_path, capsys, value):
    line = refused(tmp_path / "odd.toml", f'prompt = "a"\nlora = {value}\n', capsys)
    assert "--lora" in line or "at least one argument" in line
