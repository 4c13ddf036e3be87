"""Checks what is in a built package: ``python -m build`` first, then this with its folder.

Both files have the version of the source, and of the tag if one is given. The wheel has the
package with its demo models, nothing else, and no more than 15 MB. The sdist has all that tests
and documentation need.
"""

import argparse
import tarfile
import zipfile
from pathlib import Path

from mlx_cogvideo import __version__

LARGEST_WHEEL = 15_000_000
"""Bytes."""

IN_WHEEL = [
    "mlx_cogvideo/py.typed",
    "mlx_cogvideo/demo/model_index.json",
    "mlx_cogvideo/demo/transformer/diffusion_pytorch_model.safetensors",
    "mlx_cogvideo/demo_i2v/transformer/diffusion_pytorch_model.safetensors",
]
IN_SDIST = [
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("pyproject.toml", "mkdocs.yml", "generate.py", "lora.py", "tests/conftest.py"),
    "tools/checks/package.py",
    *("docs/architecture.md", "examples/prompts.txt"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the wheel and the sdist are")
    parser.add_argument("--tag", help="tag of the release, such as v0.2.0")
    args = parser.parse_args()
    assert args.tag in (None, f"v{__version__}"), f"{args.tag} isn't version {__version__}"
    (wheel,) = args.folder.glob("*.whl")
    (sdist,) = args.folder.glob("*.tar.gz")
    name = f"mlx_cogvideo-{__version__}"
    assert wheel.name == f"{name}-py3-none-any.whl", wheel.name
    assert sdist.name == f"{name}.tar.gz", sdist.name

    size = wheel.stat().st_size
    assert size <= LARGEST_WHEEL, f"{wheel.name} has {size / 1e6:.1f} MB"
    with zipfile.ZipFile(wheel) as archive:
        packed = {entry for entry in archive.namelist() if not entry.endswith("/")}
    with tarfile.open(sdist) as archive:
        source = {entry.name.removeprefix(f"{name}/") for entry in archive if entry.isfile()}
    package = {entry for entry in packed if not entry.startswith(f"{name}.dist-info/")}
    assert package == {entry for entry in source if entry.startswith("mlx_cogvideo/")}
    for needed, files in ((IN_WHEEL, package), (IN_SDIST, source)):
        assert set(needed) <= files, sorted(set(needed) - files)
    print(f"{wheel.name}: {len(package)} files, {size / 1e6:.1f} MB; {sdist.name}: {len(source)}")


if __name__ == "__main__":
    main()
