"""A conversion publishes only what can be opened and has usable numbers."""

import json
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest
from commands import errors
from config_mutations import linked_demo
from uploads import FakeHub

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, model_identity, save_adapter
from mlx_cogvideo.cli.convert import main
from mlx_cogvideo.conversion import convert, describe_folder, plan_conversion
from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.nn.low_rank import LowRank
from mlx_cogvideo.nn.quantization import Quantization

FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
ATTENTION = "transformer_blocks.2.attn1.to_q"
WEIGHT = f"{ATTENTION}.weight"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, made the current one, with a copy of the demo beside it."""
    linked_demo(tmp_path / "model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "model"


def rewrite(folder, part, name, change) -> None:
    """Changes a tensor of a component, in float32."""
    file = folder / part / FILES[part]
    tensors = {key: array.astype(mx.float32) for key, array in mx.load(str(file)).items()}
    tensors[name] = change(tensors[name])
    mx.eval(tensors)
    file.unlink()
    mx.save_safetensors(str(file), tensors)


def with_one(value):
    def change(array):
        flat = np.array(array).reshape(-1)
        flat[7] = value
        return mx.array(flat.reshape(array.shape))

    return change


def refused(capsys, *arguments, code: int = 1) -> str:
    """The line with which a command is refused that leaves nothing behind."""
    assert main(["--quiet", *map(str, arguments)]) == code
    (line,) = errors(capsys.readouterr().err)
    assert os.listdir() == []
    return line


@pytest.mark.parametrize("missing", ["tokenizer", "scheduler"])
@pytest.mark.parametrize("option", ["--dry-run", "-q"])
def test_a_source_without_a_part_is_refused_before_it_begins(
    folder, capsys, monkeypatch, missing, option
):
    shutil.rmtree(folder / missing)
    monkeypatch.setattr("mlx_cogvideo.cli.convert.convert", None)
    assert f"is incomplete, it lacks {missing}: " in refused(capsys, "--model", folder, option)


@pytest.mark.parametrize(
    ("part", "name", "value", "options"),
    [
        ("transformer", WEIGHT, np.nan, ["-q", "4"]),
        ("transformer", WEIGHT, np.inf, ["-q", "--q-mode", "mxfp4"]),
        ("text_encoder", "encoder.block.1.layer.0.SelfAttention.v.weight", -np.inf, []),
        ("vae", "decoder.conv_in.conv.bias", np.nan, []),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(
    folder, capsys, part, name, value, options
):
    rewrite(folder, part, name, with_one(value))
    line = refused(capsys, "--model", folder, *options)
    assert f"{part} has NaN or infinity, in {name}: take another copy" in line


@pytest.mark.parametrize("options", [[], ["-q", "--q-mode", "mxfp4"]], ids=" ".join)
def test_weights_beyond_float16_are_refused_by_name_with_the_way_out(folder, capsys, options):
    rewrite(folder, "transformer", WEIGHT, lambda array: array.at[3].add(70_000))
    command = ["--model", folder, *options, "--dtype"]
    line = refused(capsys, *command, "float16", code=2)
    assert f"weights too large for float16, in {WEIGHT}: use --dtype bfloat16 or float32" in line
    assert main(["--quiet", *map(str, command), "bfloat16"]) == 0


@pytest.mark.parametrize(("mode", "bits", "size"), [("mxfp4", 4, 1e-40), ("nvfp4", 4, 1e5)])
def test_a_weight_that_a_mode_cannot_hold_is_refused(folder, mode, bits, size):
    rewrite(folder, "transformer", WEIGHT, lambda array: array / mx.abs(array).max() * size)
    how = Quantization(bits, 32 if mode == "mxfp4" else 16, mode)
    plan = plan_conversion("it", folder, quantization=how)
    with pytest.raises(InvalidInputError, match=rf"mode {mode} can't hold, in {WEIGHT}"):
        convert(plan, folder.with_name("small"))
    assert not folder.with_name("small").exists()


def test_weights_of_zeros_are_quantized_without_an_error(folder):
    rewrite(folder, "transformer", WEIGHT, lambda array: 0 * array)
    for layer in "qkv":
        name = f"encoder.block.0.layer.0.SelfAttention.{layer}.weight"
        rewrite(folder, "text_encoder", name, lambda array: 0 * array)
    convert(plan_conversion("it", folder, quantization=Quantization(4, 64)), folder / "small")
    back = folder / "back"
    convert(plan_conversion("it", folder / "small", dequantize=True), back)
    stored = mx.load(str(back / "transformer" / FILES["transformer"]))
    assert mx.abs(stored[WEIGHT]).max() == 0


@pytest.fixture
def adapter(folder):
    """A function that writes an adapter for one layer, with this in each element of B."""

    def write(value):
        path = folder.with_name("adapter")
        path.mkdir()
        layer = LowRank(mx.ones((2, 192)), mx.full((192, 2), value), 1.0)
        save_adapter(path, {ATTENTION: layer}, rank=2, alpha=2)
        return path

    return write


@pytest.mark.parametrize("option", ["--dry-run", "-q"])
@pytest.mark.parametrize(("value", "scale"), [(0.01, "nan"), (0.01, "inf"), (float("nan"), "1")])
def test_an_adapter_that_is_not_finite_is_refused_before_it_begins(
    adapter, capsys, monkeypatch, value, scale, option
):
    monkeypatch.setattr("mlx_cogvideo.cli.convert.convert", None)
    code = 1 if scale == "1" else 2
    line = refused(capsys, "--model", "demo", option, "--lora", adapter(value), scale, code=code)
    assert ("has NaN or infinity in it" if scale == "1" else f"finite number; got {scale}") in line


@pytest.mark.parametrize(
    ("scale", "dtype", "code", "message"),
    [
        ("1e7", "float16", 2, "weights too large for float16, in {}: lower the scale of --lora"),
        ("1e300", "float32", 1, "with its adapters added, NaN or infinity, in {}: lower the scale"),
    ],
)
def test_an_adapter_that_is_too_strong_is_refused(adapter, capsys, scale, dtype, code, message):
    arguments = ["--model", "demo", "--dtype", dtype, "--lora", adapter(0.01), scale]
    assert message.format(WEIGHT) in refused(capsys, *arguments, code=code)


def test_nothing_is_uploaded_that_failed_the_check(folder, capsys, monkeypatch):
    hub = FakeHub(monkeypatch)
    rewrite(folder, "transformer", WEIGHT, with_one(np.nan))
    assert "NaN" in refused(capsys, "--model", folder, "--upload-repo", "me/tiny")
    assert hub.files == {}


def test_what_was_written_is_opened_before_it_appears(folder, capsys, monkeypatch):
    def forgetful(path, contents):
        path.write_text("{}" if path.parent.name == "vae" else json.dumps(contents))

    monkeypatch.setattr("mlx_cogvideo.conversion.write.write_config", forgetful)
    assert "vae" in refused(capsys, "--model", folder)


def test_stray_files_of_a_source_are_left_out(folder):
    for part in ("tokenizer", "scheduler", "transformer", "vae"):
        (folder / part / "._config.json").write_bytes(b"\0\5\x16\7")
        (folder / part / ".DS_Store").write_bytes(b"\0")
        (folder / part / "old.json").mkdir()
    assert model_identity("it", folder) == model_identity("it", linked_demo(folder / "again"))
    shutil.rmtree(folder / "again")
    convert(plan_conversion("it", folder), folder / "small")
    names = {path.name for path in (folder / "small").rglob("*")}
    assert not {"._config.json", ".DS_Store", "old.json"} & names
    CogVideoXPipeline.from_pretrained(folder / "small")


@pytest.mark.parametrize(
    "report",
    [
        *({}, {"components": []}, {"components": {"transformer": 3}}),
        {"components": {"transformer": {"kinds": [1, {"kind": "AdaLN", "bits": 2}]}}},
    ],
    ids=str,
)
def test_a_folder_is_described_by_its_files_whatever_its_report_says(folder, report):
    (folder / "conversion.json").write_text(json.dumps(report))
    described = describe_folder(folder)["components"]
    expected = describe_folder(DEMO_PATH)["components"]
    assert described["transformer"]["kinds"] == expected["transformer"]["kinds"] == []
    assert described["vae"]["bytes_after"] == expected["vae"]["bytes_after"]


def test_no_file_of_this_machine_is_brought_into_a_model_by_a_link(folder, tmp_path, capsys):
    added = folder / "tokenizer" / "added.json"
    (tmp_path / "secret.json").write_text('{"token": "x"}')
    added.symlink_to(tmp_path / "secret.json")
    assert "added.json is a link to" in refused(capsys, "--model", folder)
    added.unlink()
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "1"
    shutil.copytree(folder, snapshot)
    linked = snapshot / "tokenizer" / "special_tokens_map.json"
    (cache / "blobs").mkdir()
    shutil.move(linked, cache / "blobs" / "2")
    linked.symlink_to(cache / "blobs" / "2")
    assert main(["--quiet", "--model", str(snapshot), "--mlx-path", "m"]) == 0
    assert os.path.isfile("m/tokenizer/special_tokens_map.json")
