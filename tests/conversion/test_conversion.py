"""Conversion of the demo: the written folder, which is complete or absent."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, read_config
from mlx_cogvideo.checkpoints.tensor_files import SafetensorsWriter, TensorInfo, read_header
from mlx_cogvideo.conversion import convert, describe_folder, plan_conversion
from mlx_cogvideo.errors import CheckpointError, InvalidInputError, OutputError
from mlx_cogvideo.nn.quantization import Quantization

PROMPT = "a red circle moves right on a white background"
SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 2, "seed": 1}
PARTS = ("transformer", "vae", "text_encoder")


def make(destination, source=DEMO_PATH, **options) -> dict:
    return convert(plan_conversion("demo", source, **options), destination)


def latents(folder) -> mx.array:
    pipe = CogVideoXPipeline.from_pretrained(folder)
    return pipe(PROMPT, output_type="latent", **SMALL).frames


def tensors(folder, part) -> dict:
    return {
        name: array
        for file in (folder / part).glob("*.safetensors")
        for name, array in mx.load(str(file)).items()
    }


def test_an_unquantized_copy_has_the_same_tensors_and_makes_the_same_video(tmp_path):
    report = make(tmp_path / "copy")
    for part in PARTS:
        before, after = tensors(DEMO_PATH, part), tensors(tmp_path / "copy", part)
        assert before.keys() == after.keys()
        for name in before:
            assert before[name].dtype == after[name].dtype
            assert mx.array_equal(before[name].view(mx.uint8), after[name].view(mx.uint8))
        assert report["components"][part]["bits_per_weight"] == 16
    assert mx.array_equal(latents(DEMO_PATH), latents(tmp_path / "copy"))


def test_weights_are_cast_to_another_dtype(tmp_path):
    make(tmp_path / "copy", dtype=mx.float32)
    after = tensors(tmp_path / "copy", "transformer")
    assert {array.dtype for array in after.values()} == {mx.float32}
    # On the CPU the demo is computed in float32 anyway.
    if mx.default_device().type == mx.DeviceType.cpu:
        assert mx.array_equal(latents(DEMO_PATH), latents(tmp_path / "copy"))


@pytest.mark.parametrize(("bits", "error"), [(8, 0.03), (6, 0.1), (4, 0.4)])
def test_a_quantized_model_opens_and_is_near_the_original(tmp_path, bits, error):
    report = make(tmp_path / "small", quantization=Quantization(bits, 64))
    difference = latents(tmp_path / "small") - latents(DEMO_PATH)
    assert 0 < mx.sqrt(mx.square(difference).mean()).item() < error
    kinds = {kind["kind"]: kind for part in PARTS for kind in report["components"][part]["kinds"]}
    assert {name: kind["bits"] for name, kind in kinds.items()} == {
        "attention": bits,
        "feed-forward": bits,
        "AdaLN": 8,
        "T5 attention": bits,
        "T5 feed-forward": bits,
        "T5 wo": 8,
    }
    for kind in kinds.values():
        assert kind["snr_db"] > {8: 38, 6: 31, 4: 19}[kind["bits"]]


def test_the_config_says_how_each_layer_is_packed(tmp_path):
    make(tmp_path / "small", quantization=Quantization(4, 64))
    config = read_config(tmp_path / "small" / "transformer" / "config.json")["quantization"]
    eight = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert {key: config[key] for key in eight} == {**eight, "bits": 4}
    assert config["norm_out.linear"] == config["transformer_blocks.0.norm1.linear"] == eight
    assert "quantization" not in read_config(tmp_path / "small" / "vae" / "config.json")
    stored = tensors(tmp_path / "small", "transformer")
    assert stored["transformer_blocks.0.attn1.to_q.weight"].dtype == mx.uint32
    assert stored["transformer_blocks.0.attn1.to_q.scales"].dtype == mx.float16
    assert stored["proj_out.weight"].dtype == mx.float16


@pytest.mark.parametrize(
    "how",
    [
        Quantization(2, 32),
        Quantization(3, 64),
        Quantization(5, 64),
        Quantization(4, 32, "mxfp4"),
        Quantization(8, 32, "mxfp8"),
        Quantization(4, 16, "nvfp4"),
    ],
    ids=lambda how: f"{how.mode}-{how.bits}",
)
def test_every_mode_makes_a_model_that_opens(tmp_path, how):
    make(tmp_path / "small", quantization=how)
    assert mx.isfinite(latents(tmp_path / "small")).all()
    back = tmp_path / "back"
    make(back, tmp_path / "small", dequantize=True)
    assert mx.abs(latents(back) - latents(tmp_path / "small")).max() < 0.05


def test_layers_that_groups_do_not_divide_stay_and_are_listed(tmp_path):
    report = make(tmp_path / "small", quantization=Quantization(4, 128))
    unfit = report["components"]["transformer"]["left_at_16_bits"]
    assert "transformer_blocks.0.attn1.to_q" in unfit
    config = read_config(tmp_path / "small" / "transformer" / "config.json")["quantization"]
    assert config["transformer_blocks.0.attn1.to_q"] is False
    assert mx.isfinite(latents(tmp_path / "small")).all()


def test_only_the_components_named_are_quantized(tmp_path):
    report = make(tmp_path / "small", quantization=Quantization(4, 64), components=("transformer",))
    assert report["components"]["text_encoder"]["kinds"] == []
    assert mx.isfinite(latents(tmp_path / "small")).all()


def test_dequantizing_gives_the_official_layout_again(tmp_path):
    make(tmp_path / "small", quantization=Quantization(8, 64))
    make(tmp_path / "back", tmp_path / "small", dequantize=True)
    for part in PARTS:
        before, after = tensors(DEMO_PATH, part), tensors(tmp_path / "back", part)
        assert {n: (a.shape, a.dtype) for n, a in before.items()} == {
            n: (a.shape, a.dtype) for n, a in after.items()
        }
        assert read_config(DEMO_PATH / part / "config.json") == read_config(
            tmp_path / "back" / part / "config.json"
        )


def test_a_folder_describes_itself(tmp_path):
    report = make(tmp_path / "small", quantization=Quantization(4, 64))
    assert json.loads((tmp_path / "small" / "conversion.json").read_text()) == report
    assert describe_folder(tmp_path / "small")["components"] == report["components"]
    (tmp_path / "small" / "conversion.json").unlink()
    counted = describe_folder(tmp_path / "small")["components"]["transformer"]
    assert {(kind["kind"], kind["bits"], kind["layers"]) for kind in counted["kinds"]} == {
        ("AdaLN", 8, 11),
        ("attention", 4, 20),
        ("feed-forward", 4, 10),
    }
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert "4-bit" in card


def quantized(tmp_path):
    make(tmp_path / "small", quantization=Quantization(4, 64))
    return tmp_path / "small"


def copy_of_the_demo(tmp_path):
    shutil.copytree(DEMO_PATH, tmp_path / "model")
    return tmp_path / "model"


def another_kind(tmp_path):
    folder = copy_of_the_demo(tmp_path)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return folder


def with_another_transformer(tmp_path):
    folder = copy_of_the_demo(tmp_path)
    (folder / "transformer/config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    return folder


def cut_off(tmp_path):
    folder = copy_of_the_demo(tmp_path)
    os.truncate(folder / "vae/diffusion_pytorch_model.safetensors", 1000)
    return folder


def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (quantized, {}, InvalidInputError, "is quantized already"),
        (copy_of_the_demo, {"dequantize": True}, InvalidInputError, "nothing to dequantize"),
        (another_kind, {}, CheckpointError, "holds a WanPipeline"),
        (with_another_transformer, {}, CheckpointError, "holds a FluxTransformer2DModel"),
        (cut_off, {}, CheckpointError, "vae.*is cut off|vae.*not a safetensors"),
        (empty, {}, CheckpointError, "no model folder"),
        (
            copy_of_the_demo,
            {"quantization": Quantization(4, 128), "components": ("vae",)},
            InvalidInputError,
            "no layer can be quantized",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_source_that_cannot_be_converted_is_one_clear_line(
    tmp_path, source, options, error, message
):
    with pytest.raises(error, match=message) as raised:
        plan_conversion("it", source(tmp_path), **options)
    assert "\n" not in str(raised.value)


def test_a_folder_that_exists_is_refused(tmp_path):
    with pytest.raises(OutputError, match="exists"):
        make(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"0\.0 GB free and 0\.0 GB are needed"):
        make(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    write, calls = SafetensorsWriter.write, iter(range(1000))

    def fail(*arguments):
        if next(calls) == 20:
            raise error
        write(*arguments)

    monkeypatch.setattr(SafetensorsWriter, "write", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        make(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_like_a_temporary_is_left_alone(tmp_path):
    (tmp_path / ".copy.part" / "vae").mkdir(parents=True)
    make(tmp_path / "copy")
    assert {file.name for file in tmp_path.iterdir()} == {"copy", ".copy.part"}
    assert (tmp_path / ".copy.part" / "vae").is_dir()


def test_shards_have_an_index_and_load_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(SafetensorsWriter.__init__, "__defaults__", (1_000_000,))
    make(tmp_path / "copy")
    names = sorted(file.name for file in (tmp_path / "copy" / "transformer").iterdir())
    assert names[1] == "diffusion_pytorch_model-00001-of-00007.safetensors"
    assert names[-1] == "diffusion_pytorch_model.safetensors.index.json"
    assert mx.array_equal(latents(DEMO_PATH), latents(tmp_path / "copy"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "U32", "U8"])
def test_the_writer_writes_what_others_read(tmp_path, dtype):
    from safetensors import safe_open

    from mlx_cogvideo.checkpoints.tensor_files import DTYPES

    arrays = {
        "a": mx.random.uniform(0, 255, (3, 5)).astype(DTYPES[dtype]),
        "b.c": mx.random.uniform(0, 255, (2, 3, 4)).astype(DTYPES[dtype])[:, ::2],
    }
    entries = {name: TensorInfo(dtype, tuple(array.shape)) for name, array in arrays.items()}
    with SafetensorsWriter(tmp_path, "model", entries) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    path = tmp_path / "model.safetensors"
    loaded = mx.load(str(path))
    assert all(mx.array_equal(loaded[name], array) for name, array in arrays.items())
    assert read_header(path)["a"].shape == (3, 5)
    if dtype != "BF16":
        with safe_open(path, framework="numpy") as stored:
            assert (stored.get_tensor("b.c") == np.array(arrays["b.c"])).all()


def test_the_writer_accepts_only_the_announced_tensors(tmp_path):
    entries = {"a": TensorInfo("F32", (2,)), "b": TensorInfo("F32", (3,))}
    with (
        pytest.raises(ValueError, match="b isn't the tensor that was to be written next"),
        SafetensorsWriter(tmp_path, "model", entries) as writer,
    ):
        writer.write("b", mx.zeros(3))
    with (
        pytest.raises(ValueError, match="a isn't"),
        SafetensorsWriter(tmp_path, "model", entries) as writer,
    ):
        writer.write("a", mx.zeros(3))
    with (
        pytest.raises(ValueError, match="not all"),
        SafetensorsWriter(tmp_path, "model", entries) as writer,
    ):
        writer.write("a", mx.zeros(2))


def test_memory_stays_with_the_largest_tensor(tmp_path):
    """A T5 of 24 matrices with 4 MB each is converted in a process of its own."""
    code = f"""
import mlx.core as mx
from pathlib import Path
from mlx_cogvideo.checkpoints import DEMO_PATH, read_config, save_component
from mlx_cogvideo.checkpoints.networks import make_network
from mlx_cogvideo.conversion import convert, plan_conversion
from mlx_cogvideo.nn.quantization import Quantization
from shutil import copytree
folder = Path({str(tmp_path)!r})
copytree(DEMO_PATH, folder / "model", ignore=lambda *_: ["text_encoder"])
config = read_config(DEMO_PATH / "text_encoder" / "config.json")
config |= {{"d_ff": 16384, "num_layers": 8}}
text_encoder = make_network("text_encoder", config)
save_component(folder / "model" / "text_encoder", text_encoder, config)
del text_encoder
mx.clear_cache()
plan = plan_conversion("model", folder / "model", quantization=Quantization(4, 64))
mx.reset_peak_memory()
convert(plan, folder / "small")
print(mx.get_peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000_000
