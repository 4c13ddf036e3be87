"""Measures time and memory of training at full size, ours and diffusers with peft.

    python benchmarks/lora.py 5b
    python benchmarks/lora.py 5b --cases "ours 4-bit" --sizes 17x256x384
    python benchmarks/lora.py 2b --cases "full adamw_8bit" "full adafactor masters"

Trains an adapter of rank 128 on attention with AdamW, one clip a step, or all weights in bfloat16
(`full`, with an optimizer and perhaps float32 `masters`). Ours computes gradients block by block,
diffusers uses checkpointing. `in parts` computes attention's backward as on devices where MLX has
no fused one. The weights are random, with the official names and shapes, and so are
latents and text. Each case runs in its own process, which takes two steps of each size and times
the next ones; the best time is reported. Memory is the peak of what MLX or PyTorch allocated in
these steps, weights included. A step changes the adapter so little that the losses stay comparable.
diffusers needs the `test` extra.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cases import add_cases, run_apart
from step import our_network, prepare, rotation_tables, their_network
from support import OFFICIAL_SCHEDULER_CONFIG

CASES = ["ours bfloat16", "ours 4-bit", "ours 4-bit in parts", "full adafactor", "diffusers"]
SIZES = ["9x256x384", "17x256x384", "25x320x512", "49x320x512", "49x480x720"]
RANK, ALPHA, LEARNING_RATE = 128, 64, 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("variant", help="2b, 5b or 1.5-5b")
    add(
        "--sizes", nargs="+", default=SIZES, metavar="FRAMESxHEIGHTxWIDTH", help="sizes to train at"
    )
    add("--text-length", type=int, default=226, help="tokens of text (default: 226)")
    add_cases(parser, CASES, steps=2)
    args = parser.parse_args()
    if args.case:
        run_case(args)
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = (args.folder or Path(name)) / args.variant
        args.frames = args.height = args.width = None
        prepare(args)
        print(f"{'':20}{'':14}{'tokens':>8}{'seconds':>9}{'peak GiB':>10}{'loss':>9}", flush=True)
        for case in args.cases:
            command = [sys.executable, __file__, args.variant, "--case", case, "--sizes"]
            command += [*args.sizes, "--text-length", str(args.text_length)]
            command += ["--steps", str(args.steps), "--folder", str(args.folder)]
            run_apart(f"{case:20}", command, stderr=subprocess.PIPE, timeout=args.timeout)


def run_case(args: argparse.Namespace) -> None:
    side, *how = args.case.split()
    step, memory = {"ours": load_ours, "full": load_ours, "diffusers": load_diffusers}[side](
        args, how
    )
    config = json.loads((args.folder / "transformer" / "config.json").read_text())
    for size in args.sizes:
        frames, height, width = map(int, size.split("x"))
        latents = (frames - 1) // 4 + 1
        latents += -latents % (config.get("patch_size_t") or 1)
        shape = (1, latents, height // 8, width // 8, config.get("in_channels", 16))
        rng = np.random.default_rng(1)
        clip, noise = (rng.standard_normal(shape, np.float32) for _ in range(2))
        text_dim = config.get("text_embed_dim", 4096)
        text = rng.standard_normal((1, args.text_length, text_dim), np.float32)
        tokens = args.text_length + latents // (config.get("patch_size_t") or 1) * (
            shape[2] * shape[3] // 4
        )
        best = float("inf")
        for i in range(2 + args.steps):
            if i == 2:
                memory()
            start = time.perf_counter()
            loss = step(clip, text, noise)
            if i >= 2:
                best = min(best, time.perf_counter() - start)
        peak = memory() / 2**30
        print(f"{args.case:20}{size:14}{tokens:8}{best:9.2f}{peak:10.2f}{loss:9.4f}", flush=True)


def load_ours(args: argparse.Namespace, how: list[str]):
    import mlx.core as mx

    from mlx_cogvideo.distributed import ALONE
    from mlx_cogvideo.nn import attention_backward
    from mlx_cogvideo.training.loss import Batch
    from mlx_cogvideo.training.settings import TrainingSettings
    from mlx_cogvideo.training.trained_adapter import TrainedAdapter
    from mlx_cogvideo.training.trained_model import TrainedModel

    if "parts" in how:
        attention_backward.has_own_backward = lambda dtype: False
    is_full = args.case.startswith("full")
    pipe = SimpleNamespace(
        transformer=our_network(args.folder, "bfloat16" if is_full else how[0]),
        scheduler_config=OFFICIAL_SCHEDULER_CONFIG,
        dtype=mx.bfloat16,
    )
    common = {"learning_rate": LEARNING_RATE, "warmup": 0}
    if is_full:
        masters = "masters" in how
        settings = TrainingSettings(
            fine_tune_type="full", optimizer=how[0], master_weights=masters, **common
        )
        trained = TrainedModel(pipe, settings, ALONE)
    else:
        trained = TrainedAdapter(pipe, TrainingSettings(rank=RANK, alpha=ALPHA, **common), ALONE)
    mx.eval(pipe.transformer.parameters())
    losses = []

    def step(clip, text, noise) -> float:
        batch = Batch(*(mx.array(a) for a in (clip, text, noise)), mx.array([500]))
        trained.update([batch], 0, lambda found, norm: losses.append(found[0].item()))
        return losses.pop()

    def memory() -> int:
        peak = mx.get_peak_memory()
        mx.clear_cache()
        mx.reset_peak_memory()
        return peak

    mx.set_cache_limit(2**31)
    return step, memory


def load_diffusers(args: argparse.Namespace, how: list[str]):
    import peft
    import torch
    from diffusers import CogVideoXDDIMScheduler

    network = their_network(args.folder)
    device = network.device.type
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    network.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    network.enable_gradient_checkpointing()
    network.train()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    scheduler = CogVideoXDDIMScheduler.from_config(OFFICIAL_SCHEDULER_CONFIG)

    @cache
    def tables(*size: int):
        return rotation_tables(network, *size)

    def step(clip, text, noise) -> float:
        clip, noise = (torch.tensor(a, device=device).permute(0, 1, 4, 2, 3) for a in (clip, noise))
        text = torch.tensor(text, device=device, dtype=torch.bfloat16)
        timestep = torch.tensor([500], device=device)
        noisy = scheduler.add_noise(clip, noise, timestep)
        target = scheduler.get_velocity(clip, noise, timestep)
        rotation = tables(noisy.shape[1], *noisy.shape[3:])
        with torch.autocast(device, torch.bfloat16):
            velocity = network(
                noisy.bfloat16(), text, timestep, image_rotary_emb=rotation, return_dict=False
            )[0]
        loss = torch.nn.functional.mse_loss(velocity.float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def memory() -> int:
        if device != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return peak

    return step, memory


if __name__ == "__main__":
    main()
