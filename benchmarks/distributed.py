"""Times generation that several processes divide, on one machine.

    python benchmarks/distributed.py 5b --processes 1 2 4
    python benchmarks/distributed.py 5b --cases "2 tokens" "4 guidance x tokens"
    python benchmarks/distributed.py 5b --processes 1 2 4 --run
    python benchmarks/distributed.py demo

With CUDA each process has a GPU of its own and they communicate through NCCL, otherwise through
MLX's ring on the loopback interface. The cases are compared with one process.

By default, the program times a denoising step with guidance: a batch of two texts. The processes
divide the two texts (guidance), the tokens, or both. All of them read the same random weights with
the official names and shapes; `demo` has its own weights. Each takes two steps, and then times the
next ones, which all begin together. A step takes as long as its slowest process; the best step is
reported. Memory is the peak of what MLX allocated in these steps, weights included, in the process
that allocated most. "Given" is what a process hands over to exchanges in a step; a ring of N
processes sends it N - 1 times. The difference is the largest difference of any process's velocities
from those of one process, divided by the largest velocity. Divided guidance differs by rounding,
because one process computes both texts in one batch.

With --run, the program times whole runs of generate.py with random weights, from the start of the
processes to the file, and prints the seconds of each stage. Further options are passed on.
"""

import argparse
import json
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from cases import add_size, run_apart, run_together
from run import ROOT
from run import prepare as prepare_model
from step import our_network, prepare

from mlx_cogvideo.diffusion.denoising import velocities
from mlx_cogvideo.diffusion.division import divide
from mlx_cogvideo.diffusion.split import Split
from mlx_cogvideo.distributed import Distributed, Processes

ONE = "1"
CASE = re.compile(r"1|(?!1 )[1-9]\d* (guidance|tokens|guidance x tokens)")


def main() -> None:
    args, rest = make_parser().parse_known_args()
    if rest and not args.run:
        sys.exit(f"unknown arguments: {' '.join(rest)}")
    if args.dtype is None:
        args.dtype = "float32" if args.variant == "demo" else "bfloat16"
    args.timeout = args.timeout or (6 * 3600 if args.run else 1800)
    if args.case:
        print(json.dumps(run_case(args)))
        return
    # Ends the processes, too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if args.run:
            compare_runs(args, folder, rest)
        else:
            args.folder = folder / f"{args.variant}-steps"
            share_weights(folder / args.variant, args.folder)
            compare_steps(args)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_size(parser)
    add = parser.add_argument
    add(
        "--processes",
        nargs="+",
        type=int,
        default=[1, 2],
        metavar="N",
        help="numbers of processes to compare with one (default: 1 2)",
    )
    add(
        "--cases",
        nargs="+",
        type=case,
        metavar="CASE",
        help='cases to run, such as "2 guidance", "3 tokens" or "4 guidance x tokens" (default: '
        "all of --processes)",
    )
    add("--run", action="store_true", help="time whole runs instead of single steps")
    add(
        "--steps",
        type=int,
        help="steps to time (default: 3), or denoising steps of a whole run (default: 50)",
    )
    add(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        help="dtype of a step (default: bfloat16; float32 for demo)",
    )
    add(
        "--timeout",
        type=float,
        help="seconds after which all processes of a case are ended (default: half an hour; with "
        "--run, six hours)",
    )
    add(
        "--folder",
        type=Path,
        help="folder to keep the weights in, which steps share with an earlier --run (default: a "
        "temporary one)",
    )
    add("--bits", type=int, help="bits of the weights of whole runs (default: 16)")
    add("--case", help=argparse.SUPPRESS)
    return parser


def case(text: str) -> str:
    if not CASE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f'{text!r} must be like "2 guidance", "2 tokens" or "4 guidance x tokens"'
        )
    return text


def all_cases(counts: list[int]) -> list[str]:
    """The ways in which several processes, of these numbers, can divide a step."""
    cases = []
    for count in counts:
        if count % 2 == 0:
            cases.append(f"{count} guidance" + " x tokens" * (count > 2))
        if count > 1:
            cases.append(f"{count} tokens")
    return cases


def share_weights(whole: Path, folder: Path) -> None:
    """Takes the transformer of a whole model, where an earlier --run has made one."""
    own, shared = folder / "transformer", whole / "transformer"
    if shared.exists() and not own.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own.symlink_to(shared.resolve())


def compare_steps(args: Namespace) -> None:
    shape = prepare(args)
    print(
        f"{args.variant}, latents {'x'.join(map(str, shape[1:4]))}, {args.dtype}, {description()}"
    )
    print(
        f"{'':22}{'seconds':>9}{'speed-up':>10}{'peak GiB':>10}{'given MiB':>11}{'difference':>12}"
    )
    one, expected = None, None
    for each in dict.fromkeys([ONE, *(args.cases or all_cases(args.processes))]):
        numbers = measure_step(args, each)
        if numbers is None:
            continue
        made = [np.load(velocity_file(args.folder, rank)) for rank in range(int(each.split()[0]))]
        row = f"{each:22}{numbers['seconds']:9.3f}"
        if each == ONE:
            one, expected = numbers["seconds"], made[0]
        row += "-".rjust(10) if one is None else f"{one / numbers['seconds']:10.2f}"
        row += f"{numbers['peak'] / 2**30:10.3f}{numbers['given'] / 2**20:11.2f}"
        if expected is None:
            row += "-".rjust(12)
        else:
            difference = max(np.abs(velocity - expected).max() for velocity in made)
            row += f"{difference / np.abs(expected).max():12.2g}"
        print(row, flush=True)


def measure_step(args: Namespace, each: str) -> dict[str, float] | None:
    """The numbers of a case; None, after one line, if it fails."""
    title = f"{each:22}"
    command = [sys.executable, __file__, args.variant, "--case", each, "--dtype", args.dtype]
    command += ["--folder", str(args.folder), "--steps", str(args.steps or 3)]
    printed = run_group(title, command, int(each.split()[0]), args)
    if printed is None:
        return None
    of_all = [json.loads(output.splitlines()[-1]) for output in printed]
    slowest = np.max([numbers["seconds"] for numbers in of_all], axis=0)
    largest = {name: max(numbers[name] for numbers in of_all) for name in ("peak", "given")}
    return {"seconds": slowest.min(), **largest}


def run_group(title: str, command: list[str], count: int, args: Namespace) -> list[str] | None:
    """Runs a command in so many connected processes, and returns what each has printed.

    If one of them fails, prints one line and returns None.
    """
    gpus = own_gpus()
    if gpus is not None and len(gpus) < count:
        print(f"{title} needs {count} GPUs; this machine has {len(gpus)}", flush=True)
        return None
    with tempfile.TemporaryDirectory() as name:
        variables = connections(count, gpus, Path(name))
        return run_together(title, command, variables, args.timeout)


def own_gpus() -> list[str] | None:
    """Names of the GPUs, of which each process has one; None means that all share a device."""
    if not mx.cuda.is_available():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [*map(str, range(mx.device_count(mx.gpu)))]


def connections(count: int, gpus: list[str] | None, folder: Path) -> list[dict[str, str]]:
    """The environment variables through which each of the processes finds the others.

    Args:
        folder: where the ring's host file is written.
    """
    own = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:count]] if gpus else [{}] * count
    if count == 1:
        return own
    if gpus:
        (port,) = free_ports(1)
        shared = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(port), "MLX_WORLD_SIZE": str(count)}
    else:
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
        shared = {"MLX_HOSTFILE": str(hosts)}
    return [{**each, **shared, "MLX_RANK": str(rank)} for rank, each in enumerate(own)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Counting(Distributed):
    """Counts the bytes that this process gives to exchanges."""

    given = 0

    def all_gather(self, array: mx.array) -> mx.array:
        if self.size > 1:
            Counting.given += array.nbytes
        return super().all_gather(array)


def run_case(args: Namespace) -> dict[str, Any]:
    """Times the steps of one of the processes, and writes its velocities."""
    count, *how = args.case.split()
    distributed = Counting.connect()
    if distributed.size != int(count):
        sys.exit(f"connected to {distributed.size} of {count} processes, this one included")
    processes = Processes(distributed.size, how[0] if how else None)
    split = Split(divide(processes, guided=True), distributed)
    mx.set_cache_limit(2**31)
    network, dtype = our_network(args.folder, args.dtype), getattr(mx, args.dtype)
    inputs = np.load(args.folder / "inputs.npz")
    latents = mx.repeat(mx.array(inputs["latents"]).astype(dtype), 2, axis=0)
    text = mx.array(inputs["text"]).astype(dtype)

    def step() -> mx.array:
        velocity = velocities(network, latents, text, mx.array([500, 500]), split=split)
        mx.eval(velocity)
        return velocity

    for _ in range(2):
        velocity = step()
    mx.reset_peak_memory()
    Counting.given = 0
    seconds = []
    for _ in range(args.steps):
        distributed.wait()
        start = time.perf_counter()
        velocity = step()
        seconds.append(time.perf_counter() - start)
    np.save(velocity_file(args.folder, distributed.rank), np.array(velocity.astype(mx.float32)))
    given = Counting.given // args.steps
    return {"seconds": seconds, "peak": mx.get_peak_memory(), "given": given}


def velocity_file(folder: Path, rank: int) -> Path:
    return folder / f"velocity-{rank}.npy"


def compare_runs(args: Namespace, folder: Path, rest: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    is_demo = args.variant == "demo"
    model = "demo" if is_demo else prepare_model(args, folder)
    model = model if is_demo else as_snapshot(model)
    steps = args.steps or 50
    options = ["--model", str(model), "--prompt", "a paper boat", "--steps", str(steps)]
    options += ["--seed", "1", "--overwrite", "--quiet", *rest]
    for name in ("frames", "height", "width"):
        if (number := getattr(args, name)) is not None:
            options += [f"--{name}", str(number)]
    about = [args.variant, f"{args.bits or 16} bits", f"{steps} steps", *rest, description()]
    print(", ".join(about))
    print(f"{'processes':12}{'seconds':>9}{'speed-up':>10}  stages")
    one = None
    for count in dict.fromkeys([1, *args.processes]):
        output = folder / f"video-{count}.mp4"
        measured = measure_run(args, count, [*options, "--output", str(output)], output)
        if measured is None:
            continue
        seconds, timings = measured
        one = seconds if count == 1 else one
        speed_up = "-" if one is None else f"{one / seconds:.2f}"
        stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in timings.items())
        print(f"{count:<12}{seconds:9.1f}{speed_up:>10}  {stages}", flush=True)


def as_snapshot(model: Path) -> Path:
    """The model as the hub's cache has it: a commit identifies it, and no file is hashed."""
    snapshot = model.parent / f"models--random--{model.name}/snapshots/{'0' * 40}"
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    snapshot.unlink(missing_ok=True)
    snapshot.symlink_to(model.resolve())
    return snapshot


def measure_run(
    args: Namespace, count: int, options: list[str], output: Path
) -> tuple[float, dict[str, float]] | None:
    """Seconds to the finished file, and those of each stage; None, after one line, if it fails."""
    title, script = f"{count:<12}", [sys.executable, str(ROOT / "generate.py")]
    start = time.time()
    printed = run_group(title, [*script, *options], count, args)
    if printed is None:
        return None
    if sum(output.name in text for text in printed) != 1:
        print(f"{title} failed: each process made a video of its own", flush=True)
        return None
    seconds = output.stat().st_mtime - start
    shown = run_apart(title, [*script, "--show", str(output)], capture_output=True)
    return None if shown is None else (seconds, json.loads(shown.stdout)["timings"])


def description() -> str:
    where = "NCCL" if mx.cuda.is_available() else "ring"
    return f"{where}, {mx.default_device()}, MLX {mx.__version__}, {platform.platform()}"


if __name__ == "__main__":
    main()
