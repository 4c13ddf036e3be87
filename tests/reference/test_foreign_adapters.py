"""Adapters of other tools have the same effect as in those tools.

Each adapter is written with the tool's names. The reference is diffusers' transformer with the
products added to its weights by the tool's rule.
"""

import json

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import relative_error
from torch_reference import (
    TEXT_LENGTH,
    frames_first,
    ours,
    random,
    rotary_embedding,
    save_model,
)

from mlx_cogvideo import CogVideoXPipeline

TOLERANCE = 1e-5
RANK, ALPHA = 4, 10
ATTENTION = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
OTHERS = ["norm1.linear", "ff.net.0.proj", "ff.net.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "5b")


def matrices(transformer, names, also=()) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random A and B for the layers `names` of each block, and for other paths."""
    paths = [
        f"transformer_blocks.{i}.{n}" for i in range(transformer.config.num_layers) for n in names
    ]
    made = {}
    for seed, path in enumerate([*paths, *also]):
        outputs, inputs = transformer.get_submodule(path).weight.shape
        a, b = random(RANK, inputs, seed=seed), random(outputs, RANK, seed=1000 + seed)
        made[path] = (0.3 * a, 0.3 * b)
    return made


def check(folder, adapter, layers, scale) -> None:
    """Checks that the adapter adds products times `scale`, one number or one for each layer."""

    def fuse(path: str, weight: torch.Tensor) -> torch.Tensor:
        a, b = layers[path]
        return weight + (scale[path] if isinstance(scale, dict) else scale) * (b @ a)

    check_weights(folder, adapter, layers, fuse)


def check_weights(folder, adapter, paths, fuse) -> None:
    """Checks that the adapter has the effect of the weights ``fuse(path, weight)``."""
    theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    with torch.no_grad():
        for path in paths:
            layer = theirs.get_submodule(path)
            layer.weight.copy_(fuse(path, layer.weight))
        latents, text = random(1, 5, 16, 8, 12, seed=1), random(1, TEXT_LENGTH, 24, seed=2)
        timestep, rotation = torch.tensor([700]), rotary_embedding(theirs, 5, 8, 12)
        expected = theirs(latents, text, timestep, image_rotary_emb=rotation).sample
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(adapter)
    result = pipe.transformer(ours(frames_first(latents)), ours(text), ours(timestep))
    assert relative_error(result, frames_first(expected)) < TOLERANCE
    pipe.unload_lora()
    plain = pipe.transformer(ours(frames_first(latents)), ours(text), ours(timestep))
    assert relative_error(plain, frames_first(expected)) > 1000 * TOLERANCE


@pytest.fixture
def transformer(folder):
    return diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")


def test_former_names_of_diffusers(folder, transformer, tmp_path):
    """They have no alpha, which its loader replaces by the rank."""
    layers = matrices(transformer, ATTENTION + OTHERS)
    file, tensors = tmp_path / "pytorch_lora_weights.safetensors", {}
    for path, (a, b) in layers.items():
        tensors[f"transformer.{path}.lora.down.weight"] = a
        tensors[f"transformer.{path}.lora.up.weight"] = b
    save_file(tensors, file)
    check(folder, tmp_path, layers, 1.0)


@pytest.mark.parametrize("prefix", ["lora_unet__", "lora_unet_"])
@pytest.mark.parametrize("alphas", [True, False], ids=["alpha", "no alpha"])
def test_kohya_and_videox_fun(folder, transformer, tmp_path, prefix, alphas):
    """The scale of each layer is its alpha / rank, or 1 without an alpha."""
    also = ["patch_embed.text_proj", "time_embedding.linear_1", "norm_out.linear"]
    layers = matrices(transformer, ATTENTION + OTHERS, also)
    file, tensors, scales = tmp_path / "any.safetensors", {}, {}
    for number, (path, (a, b)) in enumerate(layers.items()):
        name = prefix + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = a, b
        scales[path] = 1.0
        if alphas:
            tensors[f"{name}.alpha"] = torch.tensor(float(1 + number % 5))
            scales[path] = (1 + number % 5) / RANK
    save_file(tensors, file, {"sshs_model_hash": "0"})
    check(folder, file, layers, scales)


@pytest.mark.parametrize("flat", [True, False], ids=["kohya", "PEFT with the adapter's name"])
def test_dora(folder, transformer, tmp_path, flat):
    layers = matrices(transformer, ATTENTION + OTHERS)
    tensors, magnitudes = {}, {}
    for seed, (path, (a, b)) in enumerate(layers.items()):
        magnitudes[path] = 1 + 0.3 * random(len(b), 1, seed=seed)
        if flat:
            name = "lora_unet_" + path.replace(".", "_")
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = a, b
            tensors[f"{name}.alpha"] = torch.tensor(float(ALPHA))
            tensors[f"{name}.dora_scale"] = magnitudes[path]
        else:
            name = f"base_model.model.{path}.lora"
            for half, tensor in zip("AB", layers[path], strict=True):
                tensors[f"{name}_{half}.default.weight"] = tensor
            tensors[f"{name}_magnitude_vector.default.weight"] = magnitudes[path][:, 0]
    save_file(tensors, tmp_path / "any.safetensors")

    def fuse(path, weight):
        a, b = layers[path]
        changed = weight + (ALPHA / RANK if flat else 1) * (b @ a)
        return magnitudes[path] / torch.linalg.norm(changed, dim=1, keepdim=True) * changed

    check_weights(folder, tmp_path, layers, fuse)


@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_", "transformer.", "diffusion_model."])
def test_lokr_of_lycoris(folder, transformer, tmp_path, prefix):
    """The scale is alpha / rank, or 1 where both matrices are whole, whatever alpha is."""
    tensors, products = {}, {}
    paths = matrices(transformer, ATTENTION + OTHERS)
    for seed, path in enumerate(paths):
        outputs, inputs = transformer.get_submodule(path).weight.shape
        w1 = 0.3 * random(4, 8, seed=seed)
        shape = outputs // 4, inputs // 8
        name = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
        tensors[f"{name}.lokr_w1"] = w1
        tensors[f"{name}.alpha"] = torch.tensor(float(ALPHA))
        if seed % 2:
            a, b = random(shape[0], RANK, seed=seed), random(RANK, shape[1], seed=99 + seed)
            tensors[f"{name}.lokr_w2_a"], tensors[f"{name}.lokr_w2_b"] = a, b
            products[path] = ALPHA / RANK * torch.kron(w1, a @ b)
        else:
            tensors[f"{name}.lokr_w2"] = random(*shape, seed=seed)
            products[path] = torch.kron(w1, tensors[f"{name}.lokr_w2"])
    save_file(tensors, tmp_path / "any.safetensors")
    check_weights(folder, tmp_path, paths, lambda path, weight: weight + products[path])


def test_videox_fun_under_its_names_with_the_halves_of_diffusers(folder, transformer, tmp_path):
    layers = matrices(transformer, ATTENTION)
    tensors = {}
    for path, halves in layers.items():
        for half, tensor in zip("AB", halves, strict=True):
            tensors[f"lora_unet__{path.replace('.', '_')}.lora_{half}.weight"] = tensor
    save_file(tensors, tmp_path / "any.safetensors")
    check(folder, tmp_path, layers, 1.0)


def test_finetrainers(folder, transformer, tmp_path):
    """The names are diffusers', and alpha is in metadata that diffusers ignores."""
    layers = matrices(transformer, ATTENTION)
    tensors = {}
    for path, halves in layers.items():
        for half, tensor in zip("AB", halves, strict=True):
            tensors[f"transformer.{path}.lora_{half}.weight"] = tensor
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"]}
    config["init_lora_weights"] = True
    metadata = {"format": "pt", "lora_config": json.dumps(config, indent=4)}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", metadata)
    check(folder, tmp_path, layers, ALPHA / RANK)


@pytest.mark.parametrize("whole", [True, False], ids=["with the model", "alone"])
def test_sat(folder, transformer, tmp_path, whole):
    """The scale is 1 / rank; queries, keys and values are numbered."""
    layers = matrices(transformer, ATTENTION)
    state = {}
    for i in range(transformer.config.num_layers):
        attention = f"model.diffusion_model.transformer.layers.{i}.attention"
        for name, place in (
            ("to_q", "query_key_value.matrix_{}.0"),
            ("to_k", "query_key_value.matrix_{}.1"),
            ("to_v", "query_key_value.matrix_{}.2"),
            ("to_out.0", "dense.matrix_{}.0"),
        ):
            for half, tensor in zip(
                "AB", layers[f"transformer_blocks.{i}.attn1.{name}"], strict=True
            ):
                state[f"{attention}.{place.format(half)}"] = tensor
        if whole:
            state[f"{attention}.dense.weight"] = random(48, 48)
            state[f"{attention}.query_key_value.bias"] = random(144)
    file = tmp_path / "1000" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    torch.save({"module": state, "iteration": 1000}, file)
    (tmp_path / "latest").write_text("1000")
    check(folder, tmp_path if whole else file, layers, 1 / RANK)
