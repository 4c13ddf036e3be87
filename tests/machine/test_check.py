"""The check of a machine: right numbers pass, and one wrong weight is found in its stage."""

import json
import logging
import re
import shutil
from itertools import product
from pathlib import Path

import mlx.core as mx
import pytest
from winograd import emulated, nowhere

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.model_configurations import ModelConfigurations, official_model
from mlx_cogvideo.checkpoints.model_folder import ModelFolder, read_configurations
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli.check import main
from mlx_cogvideo.conversion import convert, plan_conversion
from mlx_cogvideo.device import Machine
from mlx_cogvideo.machine.speed import (
    MAC_SIZES,
    PACKINGS,
    Ceilings,
    choices_on_macs,
    dtype_advice,
    outlook,
)
from mlx_cogvideo.machine.stages import check_stages
from mlx_cogvideo.nn.quantization import Quantization


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(DEMO_PATH, tmp_path / "demo"))


@pytest.fixture(scope="module")
def results():
    return list(check_stages())


@pytest.fixture
def known_stages(monkeypatch, results):
    """Lets the command take the results of the stages, which were computed once."""
    monkeypatch.setattr("mlx_cogvideo.cli.check.check_stages", lambda *_: iter(results))


def test_every_stage_is_right_here(results):
    assert_all_right(results)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_stage_is_right_here_in_16_bits(dtype):
    assert_all_right(list(check_stages(dtype=getattr(mx, dtype))))


def assert_all_right(results):
    assert len(results) == 16
    assert [result.stage for result in results if not result.right] == []


@pytest.mark.parametrize(
    ("component", "weight", "stages"),
    [
        ("text_encoder", "encoder.block.1.layer.0.SelfAttention.q.weight", {"text encoder"}),
        ("transformer", "transformer_blocks.2.ff.net.2.weight", {"transformer"}),
        (
            "vae",
            "decoder.mid_block.resnets.0.conv1.conv.weight",
            {f"VAE, decoding, {mode}" for mode in ("none", "exact", "tiled")},
        ),
        ("vae", "encoder.conv_in.conv.weight", {"VAE, encoding"}),
    ],
)
def test_one_wrong_weight_is_found_in_its_stage(copy, capsys, component, weight, stages):
    (file,) = (copy / component).glob("*.safetensors")
    tensors = mx.load(str(file))
    flat = tensors[weight].flatten()
    flat[7] = flat[7] + 3 * mx.abs(flat).max()
    tensors[weight] = flat.reshape(tensors[weight].shape)
    mx.save_safetensors(str(file), tensors, metadata={"format": "pt"})
    logging.getLogger("mlx_cogvideo").handlers.clear()
    assert main(["--stages-only", "--model", str(copy)]) == 1
    printed = capsys.readouterr()
    wrong = {line[10:44].strip() for line in printed.out.splitlines() if "WRONG" in line}
    assert wrong == stages
    assert all(stage in printed.err for stage in stages)


def test_a_model_that_is_no_copy_of_the_demo_is_one_line(copy, capsys):
    file = copy / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_text_seq_length": 10}))
    assert main(["--stages-only", "--model", str(copy)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"error: {copy} is no copy of the demo")
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("known_stages")
def test_a_report_is_one_line_of_json(capsys, monkeypatch):
    ceilings = Ceilings("bfloat16", 7e14, 4e14, 2.5e12)
    monkeypatch.setattr("mlx_cogvideo.cli.check.measure_ceilings", lambda dtype: ceilings)
    monkeypatch.setattr("mlx_cogvideo.machine.speed.dtype_advice", lambda ceilings: "any")
    assert main(["--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    results = json.loads(line)
    assert results["right"] and len(results["stages"]["float32"]) == 16
    assert [row["variant"] for row in results["outlook"]] == [v.alias for v in VARIANTS]


def test_the_estimate_of_a_model_follows_from_the_ceilings():
    by_alias = {variant.alias: variant for variant in VARIANTS}
    fast, slow = Ceilings("bfloat16", 7e14, 4e14, 2.5e12), Ceilings("bfloat16", 7e13, 4e13, 2.5e11)
    five = outlook(by_alias["5b"], fast)
    assert outlook(by_alias["5b"], slow).step == pytest.approx(10 * five.step)
    assert outlook(by_alias["2b"], fast).step < five.step < outlook(by_alias["1.5-5b"], fast).step
    assert five.video == 50 * five.step
    assert five.memory_packed < five.memory


@pytest.mark.parametrize(
    ("available", "advice"),
    [
        (5, ["4 bits, tiled", "4 bits, tiled", "fewer frames or a smaller size, in 4 bits"]),
        (8, ["4 bits", "4 bits", "4 bits, tiled"]),
        (12, ["16 bits", "16 bits", "4 bits, tiled"]),
        (14, ["16 bits", "16 bits", "16 bits, tiled"]),
        (24, ["16 bits", "16 bits", "16 bits"]),
    ],
)
def test_the_advice_is_the_choice_for_the_available_memory(monkeypatch, available, advice):
    machine = Machine("cuda", "", available * 2**30)
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.this_machine", lambda: machine
    )
    ceilings = Ceilings("bfloat16", 7e14, 4e14, 2.5e12)
    by_alias = {variant.alias: outlook(variant, ceilings).advice for variant in VARIANTS}
    assert [by_alias[alias] for alias in ("2b", "5b", "1.5-5b")] == advice


def test_a_packed_model_has_the_size_that_the_converter_makes_it():
    """The sizes were measured: docs/benchmarks.md, in GB."""
    (variant,) = (variant for variant in VARIANTS if variant.alias == "5b")
    model = official_model(variant, PACKINGS["4 bits"])
    assert model.weight_bytes("transformer") == pytest.approx(3.56e9, rel=0.01)
    assert sum(map(model.weight_bytes, model.configs)) == pytest.approx(7.36e9, rel=0.01)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_configurations_alone_give_the_sizes_of_a_converted_folder(tmp_path, bits):
    quantization = Quantization(bits, 64) if bits else None
    convert(plan_conversion("demo", DEMO_PATH, quantization=quantization), tmp_path / "converted")
    whole = ModelFolder(tmp_path / "converted")
    for file in (tmp_path / "converted").rglob("*.safetensors"):
        file.unlink()
    contents = read_configurations(tmp_path / "converted")
    configurations = ModelConfigurations(contents, whole.dtype, quantization)
    assert configurations.configs == whole.configs
    for name in whole.configs:
        assert configurations.weight_bytes(name) == whole.weight_bytes(name)
        assert configurations.is_packed(name) == whole.is_packed(name)


def test_the_dtype_that_is_fast_is_advised():
    def advice(**rates):
        return dtype_advice([Ceilings(name, rate, 1, 1) for name, rate in rates.items()])

    assert advice(float32=9, bfloat16=1, float16=1).startswith("float32")
    assert advice(float32=1, bfloat16=1, float16=2).startswith("float16 for 2B")
    assert advice(float32=1, bfloat16=2, float16=2).startswith("what the checkpoint has")


@pytest.fixture
def kernels_on_the_cpu(monkeypatch):
    """Compares the kernels as if the CPU were a GPU, in sizes that take it seconds."""
    for module in ("machine.kernels", "cli.check"):
        monkeypatch.setattr(f"mlx_cogvideo.{module}.on_gpu", lambda: True)
    monkeypatch.setattr("mlx_cogvideo.machine.kernels.TOKENS", 256)
    monkeypatch.setattr("mlx_cogvideo.machine.kernels.SIDE", 30)
    monkeypatch.setattr("mlx_cogvideo.cli.check.check_stages", lambda *_: iter([]))


@pytest.mark.parametrize("winograd", [True, False])
def test_a_kernel_that_loses_bits_is_named_with_its_decibels(
    kernels_on_the_cpu, capsys, monkeypatch, winograd
):
    monkeypatch.delenv("MLX_CONV_WINOGRAD", raising=False)
    with emulated() if winograd else emulated(nowhere):
        assert main(["--stages-only"]) == int(winograd)
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if "dB" in line]
    assert len(lines) == 3 * 4
    wrong = [line for line in lines if "WRONG" in line]
    # The two convolutions of 3x3x3 taps in either dtype of 16 bits; that of 2x2 has no such kernel.
    assert len(wrong) == 4 * winograd and all("3-D" in line for line in wrong)
    named = re.findall(r"convolution \d+ -> \d+, \d-D in (\w+) \((\S+) dB\)", printed.err)
    assert len(named) == 4 * winograd
    for dtype, decibels in named:
        assert {"bfloat16": 20, "float16": 38}[dtype] < float(decibels) < 46
    logging.getLogger("mlx_cogvideo").handlers.clear()


@pytest.mark.usefixtures("known_stages")
def test_comparisons_that_need_a_gpu_are_listed_as_not_compared(capsys):
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("there is a GPU here")
    assert main(["--stages-only"]) == 0
    assert "not compared: the convolutions and the attention of official widths" in (
        capsys.readouterr().out
    )


def test_a_report_holds_everything_and_replaces_nothing(
    known_stages, tmp_path, capsys, monkeypatch
):
    ceilings = Ceilings("bfloat16", 7e14, 4e14, 2.5e12)
    monkeypatch.setattr("mlx_cogvideo.cli.check.measure_ceilings", lambda dtype: ceilings)
    monkeypatch.setattr("mlx_cogvideo.machine.speed.dtype_advice", lambda ceilings: "any")
    file = tmp_path / "report.json"
    assert main(["--report", str(file), "--json"]) == 0
    results = json.loads(file.read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert {"right", "stages", "kernels", "not_compared", "device", "system", "mlx", "wheel"} <= (
        results.keys()
    )
    assert len(results["macs"]) == 5 * 3 * 9 and results["memory"] >= results["available"]
    assert str(tmp_path) not in file.read_text()
    assert main(["--report", str(file)]) == 1
    assert "report.json exists" in capsys.readouterr().err
    assert main(["--report", str(tmp_path / "no" / "report.json"), "--json"]) == 1
    assert "doesn't exist: make it first" in capsys.readouterr().err


def test_the_table_of_macs_is_that_of_the_documentation():
    """docs/memory.md has the columns that differ."""
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    rows = re.findall(r"^\| ([^|]*)\| (16|8|4) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) == 15
    choices = {(c.variant, c.bits, c.gigabytes): c for c in choices_on_macs()}
    variants: list[str] = []
    for names, bits, cells in rows:
        variants = (
            [name.strip().lower() for name in names.split(",")] if names.strip() else variants
        )
        for size, cell in zip(((8,), (16,), (24,), MAC_SIZES[3:]), cells.split("|"), strict=True):
            for variant, gigabytes in product(variants, size):
                choice = choices[variant, f"{bits} bits", gigabytes]
                expected = [f"{choice.memory / 2**30:.1f}"]
                expected += ["tiled"] * (choice.tiling == "tiled")
                expected += ["split"] * choice.split_guidance
                words = cell.replace(",", "").split()
                assert words == (expected if choice.fits else ["too", "large"]), (variant, bits)
                assert choice.tiling != "none"


@pytest.mark.usefixtures("known_stages")
def test_a_check_that_cannot_end_leaves_its_report(tmp_path, monkeypatch, capsys):
    text = "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPU)."

    def fail(dtype):
        raise RuntimeError(text)

    monkeypatch.setattr("mlx_cogvideo.cli.check.measure_ceilings", fail)
    assert main(["--report", str(tmp_path / "report.json"), "--json"]) == 1
    results = json.loads((tmp_path / "report.json").read_text())
    assert text in results["error"] and not results["right"]
    assert results["mlx"] == mx.__version__
    assert len(results["stages"]["float32"]) == 16
    assert text in capsys.readouterr().err.splitlines()[-1]
