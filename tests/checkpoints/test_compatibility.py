"""Configurations that no network can have, and networks that don't fit each other, are refused."""

import json
import random

import commands
import pytest
from clips import make_clip
from config_mutations import linked_demo, mutate, mutations, read

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.model_configurations import ModelConfigurations
from mlx_cogvideo.checkpoints.networks import NETWORKS
from mlx_cogvideo.cli import check, convert, lora
from mlx_cogvideo.conversion import convert as convert_model
from mlx_cogvideo.conversion import describe_folder, plan_conversion
from mlx_cogvideo.errors import CheckpointError, CogVideoXError
from mlx_cogvideo.nn.config import SchedulerConfig, TransformerConfig
from mlx_cogvideo.nn.quantization import Quantization
from mlx_cogvideo.video import write_video

TRANSFORMER, VAE, TEXT = (f"{name}/config.json" for name in ("transformer", "vae", "text_encoder"))
SCHEDULER = "scheduler/scheduler_config.json"
SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return linked_demo(tmp_path / "model")


def opened(folder) -> None:
    CogVideoXPipeline.from_pretrained(folder).request("a", **SMALL)


def planned(folder) -> None:
    plan_conversion("it", folder, quantization=Quantization(4, 64))


WAYS = [opened, planned, describe_folder]


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_of_a_configuration_is_a_traceback(demo, seed):
    """A share of 2,000; ``tools/checks/configurations.py`` tries all of them."""
    for file, field, value in random.Random(seed).sample(list(mutations()), 15):
        mutate(demo, file, field, value)
        for way in WAYS:
            try:
                way(demo)
            except CogVideoXError as error:
                assert "\n" not in str(error)
        (demo / file).write_text(json.dumps(read(file)))


MISFITS = {
    "Fun": (TRANSFORMER, {"in_channels": 33}, ["in_channels 33", "latent_channels 16", "control"]),
    "one": (TRANSFORMER, {"in_channels": 48}, ["in_channels 48", "latent_channels 16"]),
    "less": (TRANSFORMER, {"in_channels": 8}, ["in_channels 8", "latent_channels 16"]),
    "out": (TRANSFORMER, {"out_channels": 32}, ["out_channels 32", "latent_channels 16"]),
    "VAE": (VAE, {"latent_channels": 8}, ["out_channels 16", "latent_channels 8"]),
    "text": (TRANSFORMER, {"text_embed_dim": 16}, ["text_embed_dim 16", "d_model 64"]),
    "T5": (TEXT, {"d_model": 16}, ["text_embed_dim 64", "d_model 16"]),
    "vocabulary": (TEXT, {"vocab_size": 20}, ["576 pieces", "vocab_size of 20"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_networks_that_do_not_fit_are_refused_with_the_two_facts(demo, name, capsys):
    file, changes, facts = MISFITS[name]
    (demo / file).write_text(json.dumps({**read(file), **changes}))
    assert commands.generate("a.mp4", "--model", demo, "--dry-run") == 1
    (line,) = commands.errors(capsys.readouterr().err)
    assert all(fact in line for fact in facts)
    assert convert.main(["--model", str(demo), "--dry-run"]) == 1
    assert commands.errors(capsys.readouterr().err) == [line]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (lora.main, ["--data", "clips", "--dry-run", "--model"]),
        (check.main, ["--stages-only", "--model"]),
        (convert.main, ["--info"]),
        (convert.main, ["--mlx-path", "out", "-q", "--model"]),
    ],
    ids=["lora", "check", "info", "convert"],
)
def test_every_command_that_opens_a_model_checks_it(demo, main, arguments, capsys):
    (demo.parent / "clips").mkdir()
    write_video(demo.parent / "clips" / "a.mp4", make_clip(9), 8)
    (demo.parent / "clips" / "a.txt").write_text("a square")
    mutate(demo, TRANSFORMER, "in_channels", 33)
    assert main([*arguments, str(demo)]) == 1
    (line,) = commands.errors(capsys.readouterr().err)
    assert "in_channels 33" in line


def test_configurations_without_a_folder_are_checked_too():
    contents = {name: read(f"{name}/config.json") for name in NETWORKS}
    contents["vae"]["latent_channels"] = 8
    with pytest.raises(CheckpointError, match="latent_channels 8"):
        ModelConfigurations(contents)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *[
            ("model_index.json", name)
            for name in ("WanPipeline", "LTXPipeline", "ConsisIDPipeline")
        ],
        *[
            ("model_index.json", f"CogVideoXFun{kind}Pipeline")
            for kind in ("", "Control", "Inpaint")
        ],
        (TRANSFORMER, "WanTransformer3DModel"),
        (TRANSFORMER, "ConsisIDTransformer3DModel"),
        (VAE, "AutoencoderKLWan"),
        (SCHEDULER, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_model_of_another_kind_is_named(demo, file, name, capsys):
    mutate(demo, file, "_class_name", name)
    mutate(demo, TRANSFORMER, "patch_size", [1, 2, 2]) if file != TRANSFORMER else None
    assert commands.generate("a.mp4", "--model", demo, "--dry-run") == 1
    (line,) = commands.errors(capsys.readouterr().err)
    assert f"holds a {name}" in line
    assert "can be used" in line


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        (TRANSFORMER, "patch_size", [1, 2, 2], "must be a whole number; got [1, 2, 2]"),
        (TRANSFORMER, "num_layers", None, "must be a whole number; got null"),
        (TRANSFORMER, "num_layers", True, "must be a whole number; got true"),
        (TRANSFORMER, "num_layers", 10**9, "must be from 1 to 1024; got 1000000000"),
        (TRANSFORMER, "norm_eps", float("nan"), "must be from 1e-15 to 1; got NaN"),
        (TRANSFORMER, "attention_bias", 1, "must be true or false; got 1"),
        (TRANSFORMER, "attention_head_dim", 63, "the width must be a multiple of 16; got 189"),
        (TRANSFORMER, "ofs_embed_dim", 32, "ofs_embed_dim is 32 and time_embed_dim 64"),
        (TRANSFORMER, "activation_fn", "gelu", 'must be "gelu-approximate"; got "gelu"'),
        (TEXT, "feed_forward_proj", "gated-silu", 'must be "gated-gelu"; got "gated-silu"'),
        (TEXT, "relative_attention_max_distance", 8, "is too small for 32"),
        (VAE, "block_out_channels", [16, 32, 32, 50], "don't divide into norm_num_groups 8"),
        (VAE, "block_out_channels", "16", 'must be a list of numbers; got "16"'),
        (VAE, "scaling_factor", -1, "must be from 0.0001 to 10000; got -1"),
        (VAE, "norm_eps", 1e-5, "must be 1e-06; got 1e-05"),
        (VAE, "temporal_compression_ratio", 8, "must be 4; got 8"),
        (SCHEDULER, "beta_schedule", "linear", 'must be "scaled_linear"; got "linear"'),
        (SCHEDULER, "num_train_timesteps", "1000", 'must be a whole number; got "1000"'),
        (SCHEDULER, "prediction_type", "epsilon", "can't be undone"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_what_it_may_be(demo, file, field, value, message):
    mutate(demo, file, field, value)
    with pytest.raises(CheckpointError) as caught:
        opened(demo)
    assert f"{demo}: {file}: " in str(caught.value)
    assert field in str(caught.value) or field == "attention_head_dim"
    assert message in str(caught.value)


def test_numbers_are_read_as_json_writes_them():
    config = TransformerConfig.from_dict({"num_layers": 5.0, "norm_eps": 1, "new_field": [3]})
    assert (config.num_layers, type(config.num_layers), config.norm_eps) == (5, int, 1)
    assert TransformerConfig.from_dict({"patch_size_t": None}).patch_size_t is None
    with pytest.raises(ValueError, match="snr_shift_scale must be from"):
        SchedulerConfig(snr_shift_scale=float("inf"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "model"
    convert_model(plan_conversion("demo", DEMO_PATH, quantization=Quantization(4, 64)), folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 0},
        {"bits": 4.0},
        {"bits": None},
        {"group_size": 0},
        {"group_size": [64]},
        {"mode": 1},
    ],
    ids=str,
)
def test_a_quantization_that_mlx_lacks_is_refused(quantized, changes):
    path = quantized / TRANSFORMER
    whole = path.read_text()
    config = json.loads(whole)
    config["quantization"] |= changes
    path.write_text(json.dumps(config))
    try:
        for way in (opened, describe_folder):
            with pytest.raises(CheckpointError, match="doesn't say how its layers are quantized"):
                way(quantized)
    finally:
        path.write_text(whole)
