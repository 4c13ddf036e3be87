"""Decisions for a Mac, made on a pretended one: this machine needs no Metal."""

import os
import sys
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from commands import PROMPT, SMALL, errors, generate, run
from support import pretend_metal, relative_error

from mlx_cogvideo import CogVideoXPipeline, DeviceError, device
from mlx_cogvideo.checkpoints.model_configurations import ModelConfigurations, official_model
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli import awake
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.device import GIB, Machine, free_in_vm_stat, mac
from mlx_cogvideo.errors import FAILURES, device_error, mlx_errors, wider_dtype
from mlx_cogvideo.machine import system
from mlx_cogvideo.machine.speed import MAC_SIZES, choices_on_macs
from mlx_cogvideo.nn import attention as attention_module
from mlx_cogvideo.nn import attention_backward
from mlx_cogvideo.nn.attention import attention
from mlx_cogvideo.nn.attention_backward import attention_gradients
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from mlx_cogvideo.nn.backend import PEAK_TERAFLOPS, backend, kernel_operations, kernels
from mlx_cogvideo.nn.eval_schedule import EvalSchedule
from mlx_cogvideo.nn.transformer import FeedForward, feed_forward_parts
from mlx_cogvideo.pipeline import estimates as memory
from mlx_cogvideo.pipeline import run_stages
from mlx_cogvideo.video import read_video

SMALL_VAE = AutoencoderConfig(
    block_out_channels=(32, 32, 64, 64), layers_per_block=1, norm_num_groups=4
)


# Convolutions.


@pytest.mark.parametrize(("by_user", "expected"), [(None, "0"), ("1", "1"), ("0", "0")])
def test_winograd_is_off_before_the_first_convolution_unless_the_user_chose(
    monkeypatch, by_user, expected
):
    monkeypatch.delenv("MLX_CONV_WINOGRAD", raising=False)
    if by_user is not None:
        monkeypatch.setenv("MLX_CONV_WINOGRAD", by_user)
    seen = []
    for name in ("conv2d", "conv3d"):
        convolve = getattr(mx, name)
        monkeypatch.setattr(
            mx,
            name,
            lambda *args, convolve=convolve, **how: (
                seen.append(os.environ.get("MLX_CONV_WINOGRAD")) or convolve(*args, **how)
            ),
        )
    with monkeypatch.context() as patch:
        pretend_metal(patch)
        vae = AutoencoderKLCogVideoX(SMALL_VAE)
    mx.eval(vae.decode(mx.zeros((1, 1, 4, 4, 16)), "exact"))
    mx.eval(vae.encode(mx.zeros((1, 1, 32, 32, 3)), "none").mean)
    assert len(seen) > 20 and set(seen) == {expected}


def test_elsewhere_than_on_a_mac_nothing_is_set(monkeypatch):
    monkeypatch.delenv("MLX_CONV_WINOGRAD", raising=False)
    AutoencoderKLCogVideoX(SMALL_VAE)
    assert "MLX_CONV_WINOGRAD" not in os.environ


# Memory.

CHOSEN = """
2b         16 -      8.9e   8.9e   8.9e   8.9e   8.9e   8.9e   8.9e   8.9e
2b         8  5.2t   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e
2b         4  3.5t   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e
5b         16 -      -      12.6e  12.6e  12.6e  12.6e  12.6e  12.6e  12.6e
5b         8  -      8.0e   8.0e   8.0e   8.0e   8.0e   8.0e   8.0e   8.0e
5b         4  4.7ts  5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e   5.8e
5b-i2v     16 -      -      12.7e  12.7e  12.7e  12.7e  12.7e  12.7e  12.7e
5b-i2v     8  -      8.1e   8.1e   8.1e   8.1e   8.1e   8.1e   8.1e   8.1e
5b-i2v     4  4.8ts  5.9e   5.9e   5.9e   5.9e   5.9e   5.9e   5.9e   5.9e
1.5-5b     16 -      -      14.6es 16.1e  16.1e  16.1e  16.1e  16.1e  16.1e
1.5-5b     8  -      8.6ts  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e
1.5-5b     4  -      9.3t   14.6e  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e
1.5-5b-i2v 16 -      -      14.6es 16.1e  16.1e  16.1e  16.1e  16.1e  16.1e
1.5-5b-i2v 8  -      8.7ts  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e
1.5-5b-i2v 4  -      9.3t   14.6e  14.6e  14.6e  14.6e  14.6e  14.6e  14.6e
"""
"""Choices by the memory of a Mac: GiB of the stage that needs most, the VAE's mode (e: strips), and
whether the passes of guidance are split (s)."""


def test_the_choices_on_macs_of_all_sizes_fit():
    expected = {}
    for line in CHOSEN.split("\n")[1:-1]:
        variant, bits, *cells = line.split()
        key = variant, f"{bits} bits"
        expected |= {(*key, size): c for size, c in zip(MAC_SIZES, cells, strict=True)}
    for choice in choices_on_macs():
        mode = {"none": "w", "exact": "e", "tiled": "t"}[choice.tiling]
        cell = f"{choice.memory / GIB:.1f}{mode}{'s' * choice.split_guidance}"
        key = choice.variant, choice.bits, choice.gigabytes
        assert expected[key] == (cell if choice.fits else "-"), key
        if not choice.fits:  # then no other mode needs less
            assert choice.tiling == "tiled" or choice.memory > memory.WHOLE_FRAMES
            assert choice.split_guidance or choice.variant == "2b"


@pytest.mark.parametrize(("chip", "more"), [("M4", 0.27), ("M2 Max", 0.61), ("M3 Ultra", 0.61)])
def test_a_faster_chip_makes_the_same_choices_in_a_little_more_memory(chip, more):
    """docs/memory.md says how much: its kernels may take more operations at once."""
    increases = []
    for slowest, faster in zip(choices_on_macs(), choices_on_macs(chip), strict=True):
        assert replace(faster, memory=slowest.memory) == slowest and faster.fits == slowest.fits
        increases.append((faster.memory - slowest.memory) / GIB)
    assert min(increases) >= 0 and max(increases) == pytest.approx(more, abs=0.005)


def official(machine: Machine, alias: str = "5b") -> ModelConfigurations:
    (variant,) = (variant for variant in VARIANTS if variant.alias == alias)
    model = official_model(variant)
    model.machine = machine
    return model


@pytest.mark.parametrize(
    ("machine", "whole", "strips", "tiles"),
    [
        (mac(16), (9.5, 12.1), (5.7, 6.1), (2.6, 3.0)),
        (Machine("metal", "", 16 * GIB, winograd=True), (25, 30), (5.9, 6.4), (4.3, 4.8)),
        (Machine("cuda", "", 16 * GIB), (8.5, 9.3), (5.5, 6.0), (2.6, 3.0)),
    ],
    ids=["metal", "metal with winograd", "cuda"],
)
def test_decoding_is_estimated_by_backend(machine, whole, strips, tiles):
    """The size is 720x480 in 16 bits. Metal's ranges are counted in its source, CUDA's measured."""
    modes = {"none": whole, "exact": strips, "tiled": tiles}
    for mode, (low, high) in modes.items():
        need = memory.vae_memory(official(machine), memory.Tiling(mode), 60, 90, frames=13)
        assert low < need / GIB < high, f"{mode}: {need / GIB:.2f}"


def test_tiles_are_chosen_by_the_machine_and_not_by_the_moment():
    model = official(Machine("metal", "", 16 * GIB, free=lambda: 2 * GIB))
    assert memory.choose_tiling(model, 60, 90) == "exact"
    assert memory.choose_tiling(official(Machine("metal", "", 4 * GIB)), 60, 90) == "tiled"
    model = official(Machine("metal", "", 64 * GIB, free=lambda: 4 * GIB))
    assert memory.choose_tiling(model, 48, 72) == "exact"
    model.machine = mac(64)
    assert memory.choose_tiling(model, 48, 72) == "none"


def test_a_run_that_needs_more_than_is_free_now_gets_a_warning(monkeypatch, capsys, tmp_path):
    machine = Machine("cpu", "", 2**40, free=lambda: 2**20)
    monkeypatch.setattr(
        "mlx_cogvideo.checkpoints.model_configurations.this_machine", lambda: machine
    )
    assert generate(tmp_path / "video.mp4") == 0
    logged = capsys.readouterr().err
    assert "1 MiB are free now: close other programs, or it may take several times" in logged
    assert "1 MiB available" in logged


MAC_MINI = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                    24141.
Pages active:                                 383318.
Pages inactive:                               388196.
Pages speculative:                              1272.
Pages throttled:                                   0.
Pages wired down:                             106741.
Pages purgeable:                                4133.
"Translation faults":                     1896659814.
Pages copy-on-write:                       157695573.
Pages zero filled:                        1177536752.
Pages reactivated:                          16332485.
Pages purged:                               35288602.
File-backed pages:                            409145.
Anonymous pages:                              363641.
Pages stored in compressor:                   478454.
Pages occupied by compressor:                 110063.
"""
OLD_MACBOOK = """Mach Virtual Memory Statistics: (page size of 4096 bytes)
Pages free: 90518.
Pages active: 205479.
Pages inactive: 32417.
Pages speculative: 134461.
Pages wired down: 61009.
"Translation faults": 26323651.
Pages copy-on-write: 177180.
Object cache: 14 hits of 797355 lookups (0% hit rate)
"""


def test_the_free_memory_of_macos_is_read_from_vm_stat():
    """The texts are from an M4 with 16 GB and an Intel Mac with 2 GB."""
    assert free_in_vm_stat(MAC_MINI) == 16384 * (24141 + 388196 + 1272 + 4133)
    assert free_in_vm_stat(OLD_MACBOOK) == 4096 * (90518 + 32417 + 134461)
    for text in ("", "Pages free: 3.", "page size of 4096 bytes"):
        with pytest.raises(ValueError, match="vm_stat"):
            free_in_vm_stat(text)


def test_the_memory_of_a_mac_is_the_smaller_of_metal_s_limit_and_the_free_memory(
    monkeypatch, tmp_path
):
    program = tmp_path / "vm_stat"
    monkeypatch.setattr(device, "VM_STAT", str(program))
    monkeypatch.setattr(sys, "platform", "darwin")
    mine = 2**20
    monkeypatch.setattr(mx, "get_active_memory", lambda: mine)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 0)
    pretend_metal(monkeypatch, gigabytes=16)
    working_set, free = int(2 / 3 * 16 * GIB), free_in_vm_stat(MAC_MINI)
    for text, expected in [
        (MAC_MINI, free + mine),
        (MAC_MINI.replace("388196", "988196"), working_set),
        ("something else", working_set),
    ]:
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        program.chmod(0o755)
        device.free_memory.cache_clear()
        assert device.available_memory() == expected
        assert device.machine_memory() == working_set
    program.unlink()
    device.free_memory.cache_clear()
    assert device.available_memory() == working_set
    device.free_memory.cache_clear()


def test_memory_is_wired_only_on_request(monkeypatch, capsys, tmp_path):
    wired = []
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: None)
    pretend_metal(monkeypatch, gigabytes=16)
    device.manage_memory()
    assert wired == []
    device.manage_memory(wired=4 * GIB)
    device.manage_memory(wired=2**50)
    assert wired == [4 * GIB, int(2 / 3 * 16 * GIB)]
    assert generate(tmp_path / "v.mp4", "--wired-limit", 4, "--dry-run") == 2
    assert "--wired-limit needs macOS 15 or later" in capsys.readouterr().err


# Kernels that don't take too long.


def test_a_kernel_takes_less_than_half_a_second_on_its_chip(monkeypatch):
    assert kernel_operations() == float("inf") and kernels(1e30) == 1
    for chip, peak in PEAK_TERAFLOPS.items():
        pretend_metal(monkeypatch, f"Apple {chip}")
        assert backend() == "metal"
        assert 0.2 < kernel_operations() / (peak * 1e12) <= 0.4
    slowest = kernel_operations("Apple M1")
    for unknown in ("Apple M9 Ultra", "", "Apple Paravirtual device"):
        assert kernel_operations(unknown) == slowest


@pytest.mark.parametrize(("chip", "parts"), [("Apple M1", 5), ("Apple M2 Max", 2)])
def test_feed_forward_parts_follow_the_chip(monkeypatch, chip, parts):
    rows, dim = 2 * 17_776, 3072
    pretend_metal(monkeypatch, chip)
    assert feed_forward_parts(rows, dim) == parts
    assert 8 * rows * dim**2 / parts <= kernel_operations()
    monkeypatch.undo()
    assert feed_forward_parts(rows, dim) == 2


def recorded(monkeypatch, module, name: str) -> list[float]:
    """The number of operations of each call of a convolution or a product."""
    made, compute = [], getattr(module, name)

    def record(x, weight, *args, **how):
        y = compute(x, weight, *args, **how)
        made.append(2 * weight.size * y.size // y.shape[-1])
        return y

    monkeypatch.setattr(module, name, record)
    return made


@pytest.mark.parametrize("mode", ["none", "exact"])
def test_convolutions_are_divided_by_frames_and_channels_to_the_same_numbers(monkeypatch, mode):
    vae = AutoencoderKLCogVideoX(SMALL_VAE)
    latents = mx.random.normal((1, 3, 4, 4, 16), key=mx.random.key(0))
    pixels = mx.random.normal((1, 9, 32, 32, 3), key=mx.random.key(1))
    decoded, encoded = vae.decode(latents, mode), vae.encode(pixels, mode).mean
    mx.eval(decoded, encoded)
    most = max(recorded_operations(monkeypatch, vae, latents, pixels, mode, limit=float("inf")))
    for limit in (most / 3, most / 10):
        made = recorded_operations(monkeypatch, vae, latents, pixels, mode, limit)
        assert max(made) <= limit * 1.3  # its padding counts, and parts differ by a frame
        assert relative_error(vae.decode(latents, mode), decoded) < 1e-5
        assert relative_error(vae.encode(pixels, mode).mean, encoded) < 1e-5


def recorded_operations(monkeypatch, vae, latents, pixels, mode, limit) -> list[float]:
    with monkeypatch.context() as patch:
        patch.setattr("mlx_cogvideo.nn.backend.kernel_operations", lambda of_chip=None: limit)
        two, three = recorded(patch, mx, "conv2d"), recorded(patch, mx, "conv3d")
        mx.eval(vae.decode(latents, mode), vae.encode(pixels, mode).mean)
        return two + three


def test_the_gradients_of_attention_are_divided_more_than_attention_is(monkeypatch):
    arrays = [mx.random.normal((1, 6, 64, 16), key=mx.random.key(i)) for i in range(4)]
    *arguments, cotangent = arrays

    def gradients_of():
        return attention_gradients(*arguments, lambda output: cotangent, EvalSchedule())

    expected = gradients_of()
    limit = 4 * 6 * 64 * 64 * 16 / 2  # two groups of three heads
    monkeypatch.setattr(attention_module, "kernel_operations", lambda: limit)
    monkeypatch.setattr(attention_backward, "has_own_backward", lambda dtype: True)
    made, compute = [], mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda q, *rest, **how: made.append(q.shape[1]) or compute(q, *rest, **how),
    )
    attention(*arguments)
    assert made == [3, 3]
    made.clear()
    gradients = gradients_of()
    assert made == [1] * 6  # 2.5 times the operations
    for found, wanted in zip(gradients, expected, strict=True):
        assert relative_error(found, wanted) < 1e-5


def test_linear_layers_are_divided_by_rows_to_the_same_numbers(monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(PROMPT, seed=1, num_inference_steps=1)
    embeds = mx.random.normal((2, 32, 64), key=mx.random.key(0))
    (expected,) = pipe.denoise(request, embeds)
    monkeypatch.setattr("mlx_cogvideo.nn.backend.kernel_operations", lambda of_chip=None: 1e6)
    monkeypatch.setattr("mlx_cogvideo.nn.transformer.kernel_operations", lambda: 1e6)
    layers = []
    layer = FeedForward._run
    monkeypatch.setattr(
        FeedForward, "_run", lambda self, x: layers.append(x.shape[:-1]) or layer(self, x)
    )
    (divided,) = pipe.denoise(request, embeds)
    assert len(layers) > 5 * 10 and max(rows for (rows,) in layers) < 10
    assert relative_error(divided.latents, expected.latents) < 1e-5


# Errors.

METAL = "[METAL] Command buffer execution failed: "
TEXTS = {
    METAL + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpacting"
    "Interactivity).": ("interactivity", "pmset displaysleepnow", True),
    METAL + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).": (
        "timeout",
        "close other programs that use the GPU",
        True,
    ),
    METAL + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).": (
        "memory",
        "close other programs",
        True,
    ),
    METAL + "Ignored (for causing prior/excessive GPU errors) (00000004:kIOGPUCommandBuffer"
    "CallbackErrorSubmissionsIgnored).": ("ignored", "restart the Mac", True),
    METAL + "Innocent Victim (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim).": (
        "ignored",
        "start the command again",
        True,
    ),
    METAL + "Etwas anderes (0000000b:kIOGPUCommandBufferCallbackErrorPageFault).": (
        "other",
        "mlx-cogvideo check",
        True,
    ),
    "[metal::malloc] Attempting to allocate 9663676416 bytes which is greater than the maximum "
    "allowed buffer size of 8589934592 bytes.": ("memory", "close other programs", False),
    "[malloc] Unable to allocate 4294967296 bytes.": ("memory", "a smaller size", False),
    "CUDA error: out of memory": ("memory", "a smaller size", False),
    "[conv] Expect the input channels in the input and weight array to match but got shapes - "
    "input: (6,8,12,32) and weight: (48,2,2,33)": ("shapes", "please report", False),
    "Shapes (2,3) and (4,5) cannot be broadcast.": ("shapes", "please report", False),
    "[Load::eval_gpu] Not implemented.": ("other", "mlx-cogvideo check", False),
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[-40:])
def test_each_kind_of_failure_has_its_own_advice_and_keeps_mlx_s_words(text):
    kind, advice, ends_process = TEXTS[text]
    error = device_error(RuntimeError(f"{text}\nmore about it"))
    assert (error.kind, error.ends_process) == (kind, ends_process)
    assert text in str(error) and advice in str(error) and "\n" not in str(error)
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in str(error) or kind not in (
        "timeout",
        "interactivity",
    )


@pytest.mark.parametrize("text", list(TEXTS)[:2], ids=lambda text: text[-40:])
def test_advice_that_is_followed_already_is_left_out(monkeypatch, text):
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    message = str(device_error(RuntimeError(text)))
    assert "AGX_RELAX" not in message and "start the command again" in message


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("float16", "try --dtype bfloat16 or float32"),
        ("bfloat16", "try --dtype float32"),
        ("float32", "the weights of the model or of an adapter are bad"),
    ],
)
def test_numbers_that_are_not_finite_name_wider_dtypes_only(dtype, advice):
    assert wider_dtype(dtype) == advice


def test_the_kinds_differ_in_what_they_say():
    problems = {failure.problem for failure in FAILURES.values()}
    advised = {failure.advice for failure in FAILURES.values()}
    assert len(problems) == len(advised) == len(FAILURES) == 5
    assert device_error(MemoryError()).kind == "memory"


@pytest.mark.parametrize("kind", [ValueError, IndexError, OverflowError])
def test_errors_that_arent_mlx_s_pass(kind):
    with pytest.raises(kind, match="a fault of our own"), mlx_errors():
        raise kind("a fault of our own")
    with pytest.raises(DeviceError), mlx_errors():
        raise kind("[reshape] Cannot reshape array of size 3 into shape (2,).")


@pytest.mark.parametrize("text", [*list(TEXTS)[:4], list(TEXTS)[-3]], ids=lambda text: text[-40:])
@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_a_failure_in_a_run_is_one_line_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys, stage, text
):
    monkeypatch.chdir(tmp_path)
    assert generate("whole.mp4") == 0
    capsys.readouterr()
    owner = {"denoise": CogVideoXPipeline, "decode": run_stages}[stage]
    compute = getattr(owner, stage)
    raised = ValueError if TEXTS[text][0] == "shapes" else RuntimeError

    def fail(*args, **how):
        yield next(iter(compute(*args, **how)))
        raise raised(text)

    with monkeypatch.context() as patch:
        patch.setattr(owner, stage, fail)
        assert generate("video.mp4") == 1
    logged = capsys.readouterr().err
    (line,) = errors(logged)
    assert logged.splitlines()[-1] == line and "Traceback" not in logged
    kind, advice, _ = TEXTS[text]
    if (kind, stage) == ("memory", "decode"):
        advice = "resume with --tiling tiled"
    assert text in line and advice in line
    steps = 1 if stage == "denoise" else 2
    assert f"{steps} of 2 steps are kept" in line
    assert line.endswith("mlx-cogvideo generate --resume video.mp4.resume")
    assert run("--resume", "video.mp4.resume") == 0
    assert (read_video("video.mp4")[0] == read_video("whole.mp4")[0]).all()


def test_saving_after_a_failure_needs_no_gpu(tmp_path, monkeypatch):
    """A GPU that failed can't convert or copy the saved arrays."""
    monkeypatch.chdir(tmp_path)
    streams, convert_type = [], mx.array.astype
    from mlx_cogvideo.checkpoints import save_arrays
    from mlx_cogvideo.pipeline.events import RunState
    from mlx_cogvideo.runs import saved_run

    class Recorded:
        def __init__(self, array):
            self.array = array

        def astype(self, dtype, stream=None):
            streams.append(stream)
            return convert_type(self.array, dtype, stream=stream)

    run_ = saved_run.SavedRun(
        {"settings": {"num_inference_steps": 2}}, "v.mp4", RunState(Recorded(mx.ones(3)))
    )
    run_.save(tmp_path / "v.mp4.resume")
    assert streams == [mx.cpu]
    defaults, save = [], mx.save_safetensors
    monkeypatch.setattr(
        mx,
        "save_safetensors",
        lambda *args: defaults.append(mx.default_device()) or save(*args),
    )
    save_arrays(tmp_path / "a.safetensors", {"a": mx.ones(3)})
    assert defaults == [mx.Device(mx.cpu)]


def test_a_batch_ends_where_the_gpu_can_do_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    decode = run_stages.decode

    def fail(model, settings, *arguments):
        if settings.seed == 2:
            raise RuntimeError(next(iter(TEXTS)))
        return decode(model, settings, *arguments)

    batch = ["--prompt", PROMPT, *SMALL, "--seed", 1, 2, 3, "--output", "v{seed}.mp4"]
    with monkeypatch.context() as patch:
        patch.setattr(run_stages, "decode", fail)
        assert run(*batch) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "1 of 3 videos are made: the same command with --resume makes the rest" in line
    assert run(*batch, "--resume") == 0
    assert {file.name for file in tmp_path.iterdir()} == {"v1.mp4", "v2.mp4", "v3.mp4"}


# Awake.


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A replacement for macOS's program, which writes its arguments to a file."""
    program, log = tmp_path / "caffeinate", tmp_path / "caffeinate.log"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {log}\ntrap 'exit' TERM\nsleep 30 & wait\n")
    program.chmod(0o755)
    monkeypatch.setattr(awake, "CAFFEINATE", str(program))
    monkeypatch.setattr(awake, "AFTER_SECONDS", 0.05)
    monkeypatch.setattr(awake.sys, "platform", "darwin")
    return log


def wait_for(file) -> str:
    import time

    end = time.monotonic() + 10
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return file.read_text()


def test_a_mac_stays_awake_and_its_display_may_sleep(caffeinate, caplog):
    caplog.set_level("INFO", logger="mlx_cogvideo")
    with awake.awake():
        assert wait_for(caffeinate) == f"-i -w {os.getpid()}\n"
    assert len([r for r in caplog.records if "doesn't fall asleep" in r.getMessage()]) == 1


def test_a_mac_may_sleep_on_request_or_if_the_run_is_short(caffeinate, monkeypatch):
    with awake.awake(wanted=False):
        pass
    monkeypatch.setattr(awake, "AFTER_SECONDS", 60)
    with awake.awake():
        pass
    monkeypatch.setattr(awake, "AFTER_SECONDS", 0)
    monkeypatch.setattr(awake.sys, "platform", "linux")
    with awake.awake():
        pass
    assert not caffeinate.exists()


def test_commands_keep_a_mac_awake_by_default(caffeinate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(awake, "AFTER_SECONDS", 0)
    assert generate(tmp_path / "a.mp4", "--no-caffeinate") == 0
    assert convert(["--model", "demo", "--mlx-path", str(tmp_path / "m"), "--no-caffeinate"]) == 0
    assert not caffeinate.exists()
    assert generate(tmp_path / "b.mp4") == 0
    assert wait_for(caffeinate).startswith("-i -w")
    assert "--no-caffeinate" in capsys.readouterr().err


def test_a_mac_without_caffeinate_gets_a_warning(caffeinate, monkeypatch, caplog):
    monkeypatch.setattr(awake, "CAFFEINATE", "/nowhere/caffeinate")
    monkeypatch.setattr(awake, "AFTER_SECONDS", 0)
    with awake.awake():
        import time

        time.sleep(0.2)
    assert "may fall asleep" in caplog.records[0].getMessage()


# The check's description of a machine.


@pytest.mark.parametrize(
    ("architecture", "macos", "wheel", "used"),
    [
        ("applegpu_g13s", "26.2", "macosx_26_0_arm64", None),
        ("applegpu_g17s", "26.2", "macosx_26_0_arm64", True),
        ("applegpu_g17s", "26.1", "macosx_26_0_arm64", False),
        ("applegpu_g17s", "26.2", "macosx_15_0_arm64", False),
        ("applegpu_g18c", "27.0", "macosx_26_0_arm64", True),
    ],
)
def test_neural_accelerators_are_inferred(monkeypatch, architecture, macos, wheel, used):
    pretend_metal(monkeypatch, "Apple M5", architecture=architecture)
    monkeypatch.setattr(system, "metal_wheel", lambda: wheel)
    monkeypatch.setattr(system.platform, "mac_ver", lambda: (macos, ("", "", ""), "arm64"))
    assert system.neural_accelerators() is used
    notes = " ".join(system.notes())
    assert ("aren't used" in notes) == (used is False)
    assert ("TF32" in notes) == (used is not None)
    described = system.describe()
    assert described["system"] == f"macOS {macos}" and described["device"] == "metal Apple M5"
    assert described["wheel"] == wheel and described["memory"] == int(2 / 3 * 16 * GIB)


def test_the_wheel_s_tag_is_read(monkeypatch):
    class Wheel:
        def read_text(self, name):
            return "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-macosx_26_0_arm64\n"

    monkeypatch.setattr(system, "distribution", lambda name: Wheel())
    assert system.metal_wheel() == "macosx_26_0_arm64"


def test_a_setting_of_winograd_that_loses_precision_is_noted(monkeypatch):
    pretend_metal(monkeypatch)
    monkeypatch.setenv("MLX_CONV_WINOGRAD", "1")
    assert "the VAE is less exact" in " ".join(system.notes())
    assert device.this_machine().winograd
    monkeypatch.setenv("MLX_CONV_WINOGRAD", "0")
    assert "Winograd" not in " ".join(system.notes())
    assert np.isfinite(device.this_machine().kernel_operations)
