"""Makes the image-to-video demo from the text-to-video one.

    python tools/demo/train_image.py --out runs/demo-i2v --minutes 6

The official image-to-video models were made in the same way. The patch embedding gets more
channels, for the picture's latents, with weights of zero. The whole transformer then trains on,
with the first frame of each clip as its picture. The picture has noise of a different strength
each time, and is sometimes left out. Half of the pictures have been through the autoencoder, like
the last frame of a window that a longer clip continues from. The result is OUT/transformer. The
other parts of the model are those of the text-to-video demo.
"""

import argparse
import time
from collections.abc import Generator
from pathlib import Path

import mlx.core as mx
import numpy as np
import train_transformer
from attributes import read_attributes
from captions import ATTRIBUTES, plain_caption, split_combinations
from learner import Learner, Log, Plan, on_gpu, train
from train_transformer import CONFIG, EMPTY_SHARE, WORDINGS
from train_vae import encode_batch
from world import render, to_uint8, world_scene

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, save_component
from mlx_cogvideo.diffusion.conditioning import place_image
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from mlx_cogvideo.training.prepare import IMAGE_NOISE

IMAGE_CONFIG = CONFIG | {"in_channels": 2 * CONFIG["in_channels"]}
PEAK_RATE, HOLD = 5e-4, 0.5
NO_IMAGE_SHARE = 0.05
DRAWS = 2  # noisy pictures for each clip: its first frame as drawn, and as decoded
SIZES = {
    True: {"bank": 12_000, "batch": 128, "checked": 44},
    False: {"bank": 32, "batch": 4, "checked": 2},
}


def widened(transformer: CogVideoXTransformer3DModel) -> CogVideoXTransformer3DModel:
    """Adds input channels for a picture, which the network ignores at first."""
    wider = CogVideoXTransformer3DModel(TransformerConfig.from_dict(IMAGE_CONFIG))
    patches = transformer.patch_embed.proj.weight
    weight = mx.concatenate([patches, mx.zeros_like(patches)], axis=-1)
    transformer.patch_embed.proj.weight = weight
    wider.update(transformer.parameters())
    return wider


def encode(vae, combinations, rng: np.random.Generator) -> tuple[mx.array, mx.array, mx.array]:
    """Renders clips: pixels, their latents, and the latents of their noisy first frames.

    The latents are unscaled, those of the first frames ``[N, DRAWS, h, w, c]``.
    """
    # Half of them begin anywhere, like a window that continues where another one ended.
    half = len(combinations) // 2
    scenes = [
        world_scene(rng, some, anywhere=anywhere)
        for some, anywhere in ((combinations[:half], False), (combinations[half:], True))
    ]
    pixels = mx.concatenate([render(scene) for scene in scenes])
    dtype = vae.encoder.conv_in.conv.weight.dtype
    drawn = pixels[:, :1].astype(dtype)
    restored = mx.concatenate(list(vae.decode_chunks(encode_batch(vae, drawn))), axis=1)
    first = mx.stack([drawn, mx.clip(restored, -1, 1)], axis=1)
    first = first.reshape(-1, *drawn.shape[1:]).astype(mx.float32)
    mean, deviation = IMAGE_NOISE
    sigma = mx.exp(mean + deviation * mx.random.normal((len(first), 1, 1, 1, 1)))
    noisy = first + sigma * mx.random.normal(first.shape)
    images = encode_batch(vae, noisy.astype(dtype))
    images = images.reshape(len(pixels), DRAWS, *images.shape[2:])
    return pixels, encode_batch(vae, pixels.astype(dtype)), images


def fill_bank(vae, seen, count: int, rng: np.random.Generator) -> tuple[mx.array, ...]:
    latents, images, owners = [], [], []
    while len(owners) < count:
        chosen = rng.integers(len(seen), size=32)
        _, clips, pictures = encode(vae, [seen[i] for i in chosen], rng)
        mx.eval(clips, pictures)
        latents.append(clips.astype(mx.bfloat16))
        images.append(pictures.astype(mx.bfloat16))
        owners += chosen.tolist()
    return mx.concatenate(latents), mx.concatenate(images), np.array(owners)


def batches(rng, latents, images, owners, rows, size) -> Generator:
    yield
    while True:
        chosen = rng.integers(len(owners), size=size)
        wording = 1 + owners[chosen] * WORDINGS + rng.integers(WORDINGS, size=size)
        wording = np.where(rng.random(size) < EMPTY_SHARE, 0, wording)
        picture = images[mx.array(chosen), mx.array(rng.integers(DRAWS, size=size))]
        there = mx.array(rng.random((size, 1, 1, 1)) >= NO_IMAGE_SHARE)
        given = place_image(mx.where(there, picture, 0)[:, None], latents.shape[1])
        yield latents[mx.array(chosen)], rows[mx.array(wording)], given


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=6, help="training time (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate")
    options = parser.parse_args()
    mx.disable_compile()
    sizes, dtype = SIZES[on_gpu()], mx.bfloat16 if on_gpu() else mx.float32
    log = Log(options.out)
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, dtype)
    vae, encoder, scaling = pipe.vae, pipe.text_encoder, pipe.configs["vae"].scaling_factor
    seen, held_out = split_combinations()
    rng = np.random.default_rng(options.seed)
    mx.random.seed(options.seed)

    start = time.monotonic()
    latents, images, owners = fill_bank(vae, seen, sizes["bank"], rng)
    latents, images = latents * scaling, images * scaling
    log.write("bank", clips=len(owners), seconds=time.monotonic() - start)
    texts = train_transformer.wordings(seen, np.random.default_rng([options.seed, 2]))
    rows = train_transformer.encode_captions(encoder, pipe.tokenizer, texts).astype(dtype)
    mx.eval(latents, images, rows)

    wanted = [held_out[i] for i in rng.permutation(len(held_out))[: sizes["checked"]]]
    real = render(world_scene(rng, wanted))
    pictures = encode_batch(vae, real[:, :1].astype(dtype)) * scaling
    pictures = place_image(pictures, latents.shape[1])
    captions = ["", *map(plain_caption, wanted)]
    held_rows = train_transformer.encode_captions(encoder, pipe.tokenizer, captions).astype(dtype)
    mx.eval(real, pictures, held_rows)
    learner = Learner(
        widened(pipe.transformer), train_transformer.make_objective(), dtype, decay=0.999
    )

    def check() -> None:
        made = train_transformer.sample(
            learner.averaged(dtype), held_rows[1:], held_rows[:1], guidance=2.0, images=pictures
        )
        made = made / scaling
        clips = [vae.decode(made[i : i + 8].astype(dtype)) for i in range(0, len(made), 8)]
        clips = mx.concatenate(clips)
        found = [read_attributes(clip) for clip in to_uint8(clips)]
        right = np.array([np.equal(f, w) for f, w in zip(found, wanted, strict=True)])
        error = mx.square((mx.clip(clips[:, 0], -1, 1) - real[:, 0]).astype(mx.float32) / 2)
        psnr = -10 * mx.log10(error.mean((1, 2, 3)))
        scores = dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
        log.write("held out", **scores, psnr=psnr.mean().item(), worst=psnr.min().item())

    seconds = 60 * options.minutes
    plan = Plan(seconds, time.monotonic() + 2 * seconds, options.rate, HOLD, 300, 30, checks=3)
    stream = batches(rng, latents, images, owners, rows, sizes["batch"])
    train(learner, stream, plan, log, "image", check)
    save_component(
        options.out / "transformer", learner.averaged(mx.float32), IMAGE_CONFIG, dtype=mx.float16
    )
    log.write("saved", steps=learner.steps, seconds=learner.seconds)


if __name__ == "__main__":
    main()
