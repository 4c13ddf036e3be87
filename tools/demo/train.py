"""Trains the demo's checkpoint from scratch, in five stages that can each be resumed.

    python tools/demo/train.py --out runs/demo --minutes 25

1. `vae` learns to encode and decode clips of both worlds (train_vae.py).
2. `decoder` trains the decoder alone. The encoder doesn't change, so a second process can do this
   while the stages below run (--stages).
3. `text` learns to read captions (train_text.py).
4. `bank` encodes clips of the combinations that are not held out.
5. `transformer` learns to make the bank's latents from noise and captions (train_transformer.py).

On a GPU, 25 minutes make a good checkpoint. Anywhere else, two minutes show that all losses fall.
OUT/model is the model folder, OUT/log.jsonl holds the losses, and OUT/<stage> is what a later call
resumes from.
"""

import argparse
import json
import time
from pathlib import Path

import make_tokenizer
import mlx.core as mx
import numpy as np
import train_text
import train_transformer
import train_vae
from attributes import read_attributes
from captions import ATTRIBUTES, plain_caption, split_combinations
from learner import Learner, Log, Plan, on_gpu, train
from world import to_uint8

from mlx_cogvideo.checkpoints import save_component
from mlx_cogvideo.checkpoints.recommended import KEY as RECOMMENDED
from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer

SHARES = {
    "vae": 0.3,
    "decoder": 0.2,
    "text": 0.05,
    "bank": 0.05,
    "transformer": 0.4,
}  # of --minutes
SIZES = {
    # for a GPU
    True: {
        "clips": 8,  # in a batch of the autoencoder
        "crop": 96,  # pixels
        "captions": 512,
        "pool": 32_768,  # captions to draw from
        "bank": 16_000,  # clips
        "latents": 128,
        "checked": 48,  # held-out captions at a time
        "measured": 8,  # clips
        "warmup": 300,  # steps
        "reports": 40,
    },
    # for a CPU, to show something within two minutes
    False: {
        "clips": 4,
        "crop": 16,
        "captions": 64,
        "pool": 2_048,
        "bank": 64,
        "latents": 4,
        "checked": 0,
        "measured": 1,
        "warmup": 10,
        "reports": 4,
    },
}


class Run:
    """One call of this script: its folders, its sizes and its time."""

    def __init__(self, options: argparse.Namespace):
        self.out, self.model = options.out, options.out / "model"
        self.seed = options.seed
        self.seconds = {
            stage: 60 * (getattr(options, f"{stage}_minutes") or options.minutes * share)
            for stage, share in SHARES.items()
        }
        self.deadline = time.monotonic() + 60 * (options.stop_after or float("inf"))
        self.sizes = SIZES[on_gpu()]
        self.dtype = mx.bfloat16 if on_gpu() else mx.float32
        self.log = Log(self.out)
        self.seen, self.held_out = split_combinations()

    def rng(self, stage: str, steps: int = 0) -> np.random.Generator:
        """A separate random stream for each stage, and for each time it is resumed."""
        return np.random.default_rng([self.seed, list(SHARES).index(stage), steps])

    def fit(self, stage: str, learner: Learner, make_batches, rates, check=None) -> bool:
        """Trains a stage for its time and saves it; False if this call's time was up first.

        Args:
            make_batches: makes the batches from a random generator.
            rates: the peak learning rate, and the share of the time for which it is held.
        """
        learner.restore(self.out / stage)
        mx.random.seed(self.seed * 1000 + learner.steps)
        sizes = {name: self.sizes[name] for name in ("warmup", "reports")}
        plan = Plan(self.seconds[stage], self.deadline, *rates, **sizes)
        batches = make_batches(self.rng(stage, learner.steps))
        finished = train(learner, batches, plan, self.log, stage, check)
        learner.save(self.out / stage)
        return finished

    def save(self, component: str, network, config: dict) -> None:
        save_component(self.model / component, network, config, dtype=mx.float16)


def prepare(run: Run) -> T5Tokenizer:
    """Writes the files of the model folder that are not trained networks."""
    tokenizer = run.model / "tokenizer"
    if not (tokenizer / "spiece.model").is_file():
        make_tokenizer.write(tokenizer, run.seed)
    scheduler = train_transformer.SCHEDULER_CONFIG
    index = {
        "_class_name": "CogVideoXPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        RECOMMENDED: {"num_inference_steps": 10, "guidance_scale": 2},
    }
    (run.model / "scheduler").mkdir(parents=True, exist_ok=True)
    for path, values in (
        ("model_index.json", index),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        (run.model / path).write_text(json.dumps(values, indent=2) + "\n")
    return T5Tokenizer.from_pretrained(tokenizer)


def fit_vae(run: Run):
    """Trains the autoencoder; None if the time was up."""
    learner = Learner(
        train_vae.make_vae(), train_vae.objective, run.dtype, decay=0.999, weight_decay=0.0
    )
    size, crop = run.sizes["clips"], run.sizes["crop"]
    rates = train_vae.PEAK_RATE, train_vae.HOLD
    if not run.fit("vae", learner, lambda rng: train_vae.batches(rng, size, crop), rates):
        return None
    return learner.averaged(run.dtype)


def decoder_learner(run: Run, vae) -> Learner:
    """A learner of the decoder alone, in its latest state."""
    objective = train_vae.make_decoder_objective(vae)
    learner = Learner(vae.decoder, objective, run.dtype, decay=0.999, weight_decay=0.0)
    learner.restore(run.out / "decoder")
    vae.decoder = learner.averaged(run.dtype)
    return learner


def fit_decoder(run: Run, vae) -> bool:
    """Trains the decoder; False if the time was up."""
    size, crop = run.sizes["clips"], run.sizes["crop"]
    rates = train_vae.DECODER_RATE, train_vae.DECODER_HOLD
    learner = decoder_learner(run, vae)
    finished = run.fit(
        "decoder", learner, lambda rng: train_vae.decoder_batches(rng, vae, size, crop), rates
    )
    vae.decoder = learner.averaged(run.dtype)
    return finished


def save_vae(run: Run, vae) -> float:
    """Saves the autoencoder with the scaling factor of its latents, and returns the factor."""
    rng = np.random.default_rng(run.seed)
    chosen = [run.seen[index] for index in rng.integers(len(run.seen), size=32)]
    latents = [train_transformer.encode_clips(vae, chosen[i : i + 8], rng) for i in range(0, 32, 8)]
    spread, channels = train_vae.latent_spread(mx.concatenate(latents))
    scaling = round(1 / spread, 6)
    run.save("vae", vae, train_vae.CONFIG | {"scaling_factor": scaling})
    run.log.write("vae saved", spread=spread, channels=[round(c, 2) for c in channels.tolist()])
    run.log.write("vae psnr", **train_vae.measure_psnr(vae, run.sizes["measured"]))
    return scaling


def fit_text(run: Run, tokenizer: T5Tokenizer):
    """Trains the text encoder; None if the time was up."""
    learner = Learner(train_text.Reader(), train_text.objective, mx.float32, decay=0.99)
    size, pool = run.sizes["captions"], run.sizes["pool"]

    def make_batches(rng):
        return train_text.batches(rng, tokenizer, run.seen, size, pool)

    if not run.fit("text", learner, make_batches, (train_text.PEAK_RATE, train_text.HOLD)):
        return None
    encoder = learner.averaged(mx.float32).encoder
    run.save("text_encoder", encoder, train_text.CONFIG)
    return encoder


def fill_bank(run: Run, vae) -> tuple[mx.array, np.ndarray]:
    """Encodes as many clips as fit the size and the time; returns the combination of each, too."""
    path = run.out / "bank.safetensors"
    if path.is_file():
        stored = mx.load(str(path))
        return stored["latents"], np.array(stored["owners"])
    rng, size = run.rng("bank"), 4 * run.sizes["clips"]
    latents, owners, start = [], [], time.monotonic()
    while len(owners) < run.sizes["bank"] and time.monotonic() - start < run.seconds["bank"]:
        chosen = (np.arange(size) + len(owners)) % len(run.seen)
        if chosen[0] < size:
            order = rng.permutation(len(run.seen))
        clips = train_transformer.encode_clips(vae, [run.seen[order[i]] for i in chosen], rng)
        mx.eval(clips)
        latents.append(clips.astype(mx.bfloat16))
        owners += order[chosen].tolist()
    latents = mx.concatenate(latents)
    mx.save_safetensors(str(path), {"latents": latents, "owners": mx.array(owners)})
    run.log.write("bank", clips=len(owners), seconds=time.monotonic() - start)
    return latents, np.array(owners)


def fit_transformer(run: Run, vae, scaling: float, encoder, tokenizer, bank) -> bool:
    """Trains and saves the transformer; False if the time was up."""
    texts = train_transformer.wordings(run.seen, run.rng("text"))
    rows = train_transformer.encode_captions(encoder, tokenizer, texts).astype(run.dtype)
    latents, owners = bank[0] * scaling, bank[1]
    mx.eval(rows, latents)
    objective = train_transformer.make_objective()
    learner = Learner(train_transformer.make_transformer(), objective, run.dtype)

    def make_batches(rng):
        return train_transformer.batches(rng, latents, owners, rows, run.sizes["latents"])

    def check() -> None:
        if run.sizes["checked"]:
            averaged = learner.averaged(run.dtype)
            check_held_out(run, averaged, vae, scaling, encoder, tokenizer)

    rates = train_transformer.PEAK_RATE, train_transformer.HOLD
    finished = run.fit("transformer", learner, make_batches, rates, check)
    if not finished:
        check()
    run.save("transformer", learner.averaged(mx.float32), train_transformer.CONFIG)
    return finished


def check_held_out(run: Run, transformer, vae, scaling: float, encoder, tokenizer) -> None:
    """Makes clips of a few held-out captions and logs how often each attribute is right."""
    rng = np.random.default_rng(run.seed)
    chosen = rng.permutation(len(run.held_out))[: run.sizes["checked"]]
    wanted = [run.held_out[index] for index in chosen]
    texts = ["", *(plain_caption(combination) for combination in wanted)]
    rows = train_transformer.encode_captions(encoder, tokenizer, texts)
    made = train_transformer.sample(transformer, rows[1:], rows[:1]) / scaling
    size = run.sizes["clips"]
    clips = [vae.decode(made[i : i + size].astype(run.dtype)) for i in range(0, len(made), size)]
    clips = np.concatenate([to_uint8(clip) for clip in clips])
    right = np.array([np.equal(read_attributes(c), w) for c, w in zip(clips, wanted, strict=True)])
    scores = dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
    run.log.write("held out", **scores, all=right.all(axis=1).mean().item())


def train_all(run: Run, stages: list[str]) -> bool:
    """Runs the stages in order; False if this call's time was up before the end."""
    tokenizer = prepare(run)
    vae = fit_vae(run)
    if vae is None:
        return False
    if "decoder" in stages and not fit_decoder(run, vae):
        return False
    decoder_learner(run, vae)
    scaling = save_vae(run, vae)
    if "transformer" not in stages:
        return True
    encoder = fit_text(run, tokenizer)
    if encoder is None:
        return False
    return fit_transformer(run, vae, scaling, encoder, tokenizer, fill_bank(run, vae))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--minutes", type=float, default=25, help="time of the whole training (default: 25)"
    )
    for stage in SHARES:
        parser.add_argument(f"--{stage}-minutes", type=float, help=argparse.SUPPRESS)
    parser.add_argument(
        "--stop-after",
        type=float,
        help="minutes of this call; run it again to resume (default: no limit)",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        default=["decoder", "transformer"],
        help="stages after vae (default: decoder transformer)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    # Compiling a fused kernel for every chain of operations takes minutes on CUDA, and saves less.
    mx.disable_compile()
    options = parser.parse_args()
    run = Run(options)
    finished = train_all(run, options.stages)
    print("done" if finished else "not finished: run the same command again", run.model)


if __name__ == "__main__":
    main()
