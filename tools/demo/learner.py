"""An optimizer step and a timed loop for all of the demo's networks."""

import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

MAX_GRADIENT_NORM = 1.0

Losses = dict[str, mx.array]


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


class Learner:
    """A network, the running average of its weights, and the optimizer that moves them.

    The float32 weights are one vector, so clipping, averaging and optimizing take a handful of
    operations for any number of layers. The network computes with a copy in `dtype`.

    Args:
        objective: ``objective(network, *batch)`` returns the loss and the parts of it to report.
        decay: decay of the running average per step; it starts lower.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Callable[..., tuple[mx.array, Losses]],
        dtype: mx.Dtype,
        decay: float = 0.9995,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ):
        self.network, self.dtype, self.decay = network, dtype, decay
        self.steps, self.seconds = 0, 0.0
        self._layout = [(name, array.shape) for name, array in _flat(network)]
        self.weights = mx.concatenate(
            [array.flatten().astype(mx.float32) for _, array in _flat(network)]
        )
        self.average = self.weights + 0
        self.optimizer = optim.AdamW(
            0.0, betas=list(betas), weight_decay=weight_decay, bias_correction=True
        )
        self.optimizer.init({"weights": self.weights})
        mx.eval(self.weights, self.average)

        def loss(parameters, *batch):
            network.update(parameters)
            return objective(network, *batch)

        self._gradients = mx.value_and_grad(loss)

    def step(self, rate: float, *batch) -> Losses:
        """Makes one update at learning rate `rate`; the result may still be computing."""
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 20))
        (_, losses), gradients = self._gradients(self._unpacked(self.weights, self.dtype), *batch)
        gradient = mx.concatenate([array.flatten() for _, array in tree_flatten(gradients)])
        gradient = gradient.astype(mx.float32)
        norm = mx.linalg.norm(gradient)
        gradient = gradient * mx.minimum(MAX_GRADIENT_NORM / (norm + 1e-6), 1)
        self.optimizer.learning_rate = rate
        updated = self.optimizer.apply_gradients({"weights": gradient}, {"weights": self.weights})
        self.weights = updated["weights"]
        self.average = self.weights + keep * (self.average - self.weights)
        losses["gradient"] = norm
        mx.async_eval(losses, self.weights, self.average, self.optimizer.state)
        return losses

    def _unpacked(self, vector: mx.array, dtype: mx.Dtype) -> dict:
        """Splits one vector into the network's parameters."""
        sizes = np.cumsum([np.prod(shape) for _, shape in self._layout])[:-1]
        parts = mx.split(vector.astype(dtype), sizes.tolist())
        named = [
            (n, part.reshape(shape)) for (n, shape), part in zip(self._layout, parts, strict=True)
        ]
        return tree_unflatten(named)

    def averaged(self, dtype: mx.Dtype) -> nn.Module:
        """The network with its averaged weights in `dtype`, until the next step."""
        self.network.update(self._unpacked(self.average, dtype))
        return self.network

    def save(self, folder: Path) -> None:
        """Writes everything that a later call needs to resume."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in self._arrays().items():
            mx.save_safetensors(str(folder / f"{name}.safetensors"), arrays)
        progress = {"steps": self.steps, "seconds": round(self.seconds, 1)}
        (folder / "progress.json").write_text(json.dumps(progress) + "\n")

    def restore(self, folder: Path) -> None:
        """Loads what `save` wrote, if anything; the optimizer's file may be missing."""
        if not (folder / "progress.json").is_file():
            return
        self.weights, self.average = (
            mx.load(str(folder / f"{name}.safetensors"))["weights"]
            for name in ("weights", "average")
        )
        if (folder / "optimizer.safetensors").is_file():
            stored = mx.load(str(folder / "optimizer.safetensors"))
            self.optimizer.state.update(tree_unflatten(stored))
        progress = json.loads((folder / "progress.json").read_text())
        self.steps, self.seconds = progress["steps"], progress["seconds"]

    def _arrays(self) -> dict[str, dict[str, mx.array]]:
        state = dict(tree_flatten(self.optimizer.state))
        return {
            "weights": {"weights": self.weights},
            "average": {"weights": self.average},
            "optimizer": state,
        }


def _flat(network: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(network.trainable_parameters())


class Log:
    """Writes progress: short lines on the screen, full ones in ``log.jsonl``."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"

    def write(self, stage: str, **values) -> None:
        values = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage} | values) + "\n")
        shown = "  ".join(f"{name} {value}" for name, value in values.items())
        print(f"{stage:12}{shown}", flush=True)


@dataclass(frozen=True)
class Plan:
    """How long to train and how fast.

    The rate rises for `warmup` steps, stays at `peak_rate` until the share `hold` of the time has
    passed, then falls linearly to 0.

    Attributes:
        seconds: total training time, including earlier calls.
        deadline: when to stop in any case, in the time of ``time.monotonic()``.
        reports: number of lines in the log.
        checks: number of calls of the stage's check.
    """

    seconds: float
    deadline: float
    peak_rate: float
    hold: float
    warmup: int
    reports: int
    checks: int = 4

    def rate(self, step: int, done: float) -> float:
        """The learning rate at a step, from 0, when the share `done` of the time has passed."""
        return (
            self.peak_rate * min(1, (step + 1) / self.warmup) * min(1, (1 - done) / (1 - self.hold))
        )


class Means:
    """Averages losses between two reports."""

    def __init__(self):
        self.count, self.sums, self.since = 0, {}, time.monotonic()

    def add(self, losses: Losses) -> None:
        mx.eval(losses)
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def values(self) -> dict[str, float]:
        """Milliseconds per step, and the means."""
        pace = (time.monotonic() - self.since) / self.count * 1000
        return {"ms": pace} | {name: total / self.count for name, total in self.sums.items()}


def train(
    learner: Learner,
    batches: Generator,
    plan: Plan,
    log: Log,
    stage: str,
    check: Callable[[], None] | None = None,
) -> bool:
    """Trains by `plan` and reports as it goes.

    Args:
        batches: a generator that is sent the share of the time that has passed.

    Returns:
        Whether the time is used up; False if the deadline came first.
    """
    next(batches)
    done = learner.seconds / plan.seconds
    means, last, previous = Means(), time.monotonic(), None
    while done < 1 and last < plan.deadline:
        losses = learner.step(plan.rate(learner.steps, done), *batches.send(done))
        if previous is not None:
            means.add(previous)  # waits for the previous step, so only one is ever in flight
        previous, before, now = losses, done, time.monotonic()
        learner.seconds, last = learner.seconds + now - last, now
        done = learner.seconds / plan.seconds
        if means.count and int(done * plan.reports) > int(before * plan.reports):
            log.write(stage, step=learner.steps, seconds=learner.seconds, **means.values())
            means = Means()
        if check and int(done * plan.checks) > int(before * plan.checks):
            check()
            means.since += time.monotonic() - last
            last = time.monotonic()
    mx.eval(learner.weights, learner.average, learner.optimizer.state)
    return done >= 1
