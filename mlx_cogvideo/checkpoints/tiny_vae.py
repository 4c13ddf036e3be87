"""The weights of the small decoder: where they are, whether they are the published ones, loading.

TAECVX is published in https://github.com/madebyollin/taehv, under the MIT licence.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..device import user_cache
from ..errors import CheckpointError, InvalidInputError
from ..files import file_digest
from ..nn.autoencoder import TinyDecoder
from .components import FLOATING, listed, upstream_shape
from .model_folder import ModelFolder
from .resolve import expanded
from .tensor_files import TensorInfo, open_arrays, read_header
from .torch_file import TorchFile, TorchTensor, tensors_in

PUBLISHED = {
    "taecvx.safetensors": "64e2fd755c9356db4c5c1e24d4a67135640a1085",
    "taecvx.pth": "faf18249d011f1188d28ac3dbcca7d91316baef2",
}
"""The published files, and git's digests of them: SHA-1 of a header and their bytes."""

ADDRESS = (
    "https://github.com/madebyollin/taehv/raw/1f14a568f24bf8811e0a0ac601613e04fc1581e8/"
    "safetensors/taecvx.safetensors"
)

DIGEST = "tiny_vae_sha256"
"""What a record has among its settings for the contents of the file."""

DECODER = "decoder."
"""Start of the names of the decoder's tensors. A file may hold an encoder as well."""


def find_tiny_vae(model: ModelFolder, given: str | None = None) -> Path | None:
    """The file with the weights of the small decoder for a model, or None where there is none.

    Args:
        given: a file of the user's, which may be a finetune or for another VAE. None looks for a
            published one in the model's folder and among the user's caches. It is for the
            official models' VAE.

    Raises:
        InvalidInputError: the given file doesn't exist.
        CheckpointError: a file has a published one's name and other contents.
    """
    if given is not None:
        path = expanded(given)
        if not path.is_file():
            raise InvalidInputError(f"tiny_vae must be a file; {given} isn't one")
        return path
    if model.variant is None:
        return None
    for folder in (model.folder, user_cache()):
        for name, digest in PUBLISHED.items():
            path = folder / name
            if path.is_file():
                if _git_digest(path) != digest:
                    raise CheckpointError(
                        f"{path} isn't the published {name}: fetch it again from {ADDRESS}, or "
                        "name it with --tiny-vae if it is your own"
                    )
                return path
    return None


def need_tiny_vae(model: ModelFolder, given: str | None = None) -> Path:
    """As ``find_tiny_vae``, and checks names and shapes in the file.

    Raises:
        InvalidInputError: there is no file.
        CheckpointError: it isn't that of such a decoder.
    """
    path = find_tiny_vae(model, given)
    if path is None and model.variant is None:
        raise InvalidInputError(
            "the published tiny decoder is for the official models' VAE: leave out --vae tiny, or "
            "give one that was made for this model with --tiny-vae"
        )
    if path is None:
        raise InvalidInputError(
            f"--vae tiny needs the weights of TAECVX (23 MB): download {ADDRESS} to {user_cache()}"
        )
    check_tiny_vae(path, model.configs["vae"].latent_channels)
    return path


def tiny_digest(model: ModelFolder, given: str | None = None) -> dict[str, str]:
    """SHA-256 of the file for a record; arguments and errors as for ``find_tiny_vae``."""
    path = find_tiny_vae(model, given)
    return {} if path is None else {DIGEST: file_digest(path)}


def check_tiny_vae(path: Path, latent_channels: int) -> None:
    """Raises CheckpointError unless a file holds a decoder of latents with so many channels."""
    _check(path, TinyDecoder(latent_channels), _open(path)[0])


def load_tiny_decoder(path: Path, latent_channels: int, dtype: mx.Dtype) -> TinyDecoder:
    """Loads the small decoder, evaluated.

    Args:
        path: a safetensors file, or one of PyTorch's, which is read without running code in it.
        dtype: of the parameters.

    Raises:
        CheckpointError: the file holds something else, or is damaged.
    """
    decoder = TinyDecoder(latent_channels)
    stored, take = _open(path)
    _check(path, decoder, stored)
    weights = []
    for name, parameter in tree_flatten(decoder.parameters()):
        weight = take(name)
        if weight.ndim == 4:
            weight = mx.moveaxis(weight, 1, -1)
        # Files have a level that makes one frame of one with the kernel for two: the last counts.
        weights.append((name, mx.contiguous(weight[-len(parameter) :].astype(dtype))))
    mx.eval(weights)
    decoder.load_weights(weights)
    decoder.eval()
    return decoder


Tensors = Mapping[str, TensorInfo | TorchTensor]


def _open(path: Path) -> tuple[Tensors, Callable[[str], mx.array]]:
    """The tensors of a file's decoder, and what reads one by its name."""
    if path.suffix == ".safetensors":
        stored: Tensors = read_header(path)
        take = open_arrays(path)
    else:
        tensors = tensors_in(TorchFile(path).contents)
        stored, take = tensors, lambda name: tensors[name].read()
    return {name: info for name, info in stored.items() if name.startswith(DECODER)}, take


def _check(path: Path, decoder: TinyDecoder, stored: Tensors) -> None:
    wanted = {n: upstream_shape(p.shape) for n, p in tree_flatten(decoder.parameters())}
    problems = {
        "lacks": wanted.keys() - stored.keys(),
        "has unexpected": stored.keys() - wanted.keys(),
        "has wrong": {n for n in wanted.keys() & stored.keys() if not _fits(stored[n], wanted[n])},
    }
    for problem, names in problems.items():
        if names:
            raise CheckpointError(
                f"{path} is no tiny decoder of this VAE: it {problem} {listed(sorted(names))}"
            )


def _fits(tensor: TensorInfo | TorchTensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be a parameter; a 1x1 kernel may have outputs for more frames."""
    same = tensor.shape == shape
    if shape[2:] == (1, 1):
        same = tensor.shape[1:] == shape[1:] and tensor.shape[0] in (shape[0], 2 * shape[0])
    return same and tensor.dtype in FLOATING


def _git_digest(path: Path) -> str:
    """The name that git gives to the contents of a file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
