"""Recognizes files of other kinds in place of weights, to say what can be done with them."""

from pathlib import Path

_PYTORCH = "save it again as safetensors, with save_pretrained or safetensors.torch.save_file"
ZIP = b"PK\x03\x04"
"""How a zip archive begins, as PyTorch writes one."""

_BEGINNINGS = {
    ZIP: f"a PyTorch file: {_PYTORCH}",
    b"\x80\x02\x8a\n": f"a PyTorch file of an old form: {_PYTORCH}",
    b"GGUF": "a GGUF file, which can't be read: give the model in the official layout",
    b"version https://git-lfs": "only a pointer of Git LFS: run git lfs pull in its folder",
}


def foreign_kind(file: Path, expected: bytes | None = None) -> str | None:
    """What a file is, by how it begins, and what to do; None for anything unknown.

    Args:
        expected: how a file begins that is of the right kind, if damaged.
    """
    with file.open("rb") as stream:
        beginning = stream.read(max(map(len, _BEGINNINGS)))
    kinds = {start: what for start, what in _BEGINNINGS.items() if start != expected}
    return next((what for start, what in kinds.items() if beginning.startswith(start)), None)
