"""The settings of a training: options, checks, and the comparison when a training is resumed."""

from dataclasses import asdict, replace

import pytest

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.cli.config_file import with_config_file
from mlx_cogvideo.cli.generate import make_parser as make_generate_parser
from mlx_cogvideo.cli.lora_options import make_parser, read_settings
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.training.settings import TrainingSettings, changed_settings


def parsed(*arguments) -> TrainingSettings:
    return read_settings(make_parser().parse_args(["--data", "clips", *map(str, arguments)]))


def test_without_options_a_command_has_the_default_settings():
    assert parsed() == TrainingSettings()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--iters", 3], "iters", 3),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--lr-schedule", "cosine"], "schedule", "cosine"),
        (["--warmup", 0], "warmup", 0),
        (["--rank", 8], "rank", 8),
        (["--alpha", 4], "alpha", 4.0),
        (["--target", "to_q", "ff.net.2"], "targets", ("to_q", "ff.net.2")),
        (["--batch-size", 2], "batch_size", 2),
        (["--grad-accumulation-steps", 5], "accumulate", 5),
        (["--caption-dropout", 0], "caption_dropout", 0.0),
        (["--image-dropout", "0.5"], "image_dropout", 0.5),
        (["--image-latent-scale", "diffusers"], "image_latent_scale", "diffusers"),
        (["--prior-weight", 1], "prior_weight", 1.0),
        (["--seed", 7], "seed", 7),
        (["--accumulate", 5], "accumulate", 5),
        (["--batch_size", 2], "batch_size", 2),
    ],
    ids=str,
)
def test_each_option_sets_its_setting_alone(words, name, value):
    assert parsed(*words) == replace(TrainingSettings(), **{name: value})


def test_prior_prompts_are_drawn_only_from_a_file_of_them():
    prompts = ["--prior-prompts", "prior.txt"]
    assert parsed("--prior-batch-size", 2).prior_batch_size == 0
    assert parsed(*prompts).prior_batch_size == 1
    assert parsed(*prompts, "--prior-batch-size", 2).prior_batch_size == 2


@pytest.mark.parametrize("name", settings_of(TrainingSettings))
def test_a_setting_may_change_on_resume_only_if_its_field_says_so(name):
    now = asdict(TrainingSettings())
    changes = changed_settings({**now, name: "another"}, now)
    if name == "iters":
        assert not changes
    else:
        assert changes == [f"{name} was another and is now {now[name]}"]


def test_a_setting_that_an_old_checkpoint_lacks_is_not_compared():
    recorded = asdict(TrainingSettings())
    del recorded["image_latent_scale"]
    assert not changed_settings(recorded, asdict(TrainingSettings()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iters": 0},
        {"seed": 2**63},
        {"learning_rate": float("nan")},
        {"alpha": 0},
        {"caption_dropout": 1.5},
        {"prior_weight": float("inf")},
        {"image_latent_scale": "none"},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_the_name_of_its_setting(wrong):
    (name,) = wrong
    with pytest.raises(InvalidInputError, match=f"{name} must be"):
        TrainingSettings(**wrong)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("compile = false", "--no-compile"),
        ("compile = true", "--compile"),
        ("no-compile = true", "--no-compile"),
        ("no-compile = false", "--compile"),
    ],
)
def test_a_switch_in_a_config_file_can_be_turned_off(tmp_path, text, option):
    config = tmp_path / "options.toml"
    config.write_text(text)
    words = with_config_file(make_generate_parser(), ["--config", str(config)])
    assert words[0] == option
