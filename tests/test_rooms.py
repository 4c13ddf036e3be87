"""The rooms of the package, and who may know whom: docs/architecture.md states it."""

import ast
import importlib
import importlib.util
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_cogvideo"
GROUND = {"errors", "version", "called", "files", "device", "distributed"}
DOORS = {"__main__", "generate", "convert", "lora", "check", "tune", "ui", "serve", "utils"}
BELOW = {"nn", "diffusion", "checkpoints", "video", "pipeline"}
MAY_IMPORT = {
    "nn": set(),
    "diffusion": {"nn"},
    "checkpoints": {"nn"},
    "video": set(),
    "pipeline": BELOW - {"pipeline"},
    "runs": BELOW,
    "training": BELOW,
    "conversion": BELOW,
    "machine": BELOW,
    "cli": {*BELOW, "runs", "training", "conversion", "machine"},
    "web": {*BELOW, "runs", "training", "conversion", "machine", "cli"},
}
REFERENCE = {"torch", "diffusers", "transformers", "peft"}


def name_of(file: Path) -> str:
    """A module's name below the package, such as ``nn.attention``; of a package, the package."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, below the package; "" is the public face."""
    file, found = MODULES[module], set()
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] if node.level > 1 else package
        base = [part for part in base if part != "__init__"]
        name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            inner = f"{name}.{alias.name}".strip(".")
            found.add(inner if inner in MODULES else name)
    return found


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_the_package_holds_rooms_ground_and_doors_and_nothing_else():
    loose = {m for m in MODULES if "." not in m and MODULES[m].name != "__init__.py"}
    assert loose == GROUND | DOORS
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"__pycache__", "demo", "demo_i2v"} == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    allowed = {room} | MAY_IMPORT[room] | (GROUND if room != "nn" else set())
    for module in MODULES:
        if room_of(module) == room and module != "__init__":
            others = {other for other in imports(module) if room_of(other) not in allowed}
            assert others == set(), f"{module} imports {others}"


def test_the_ground_imports_itself_and_networks_at_most():
    for module in GROUND:
        assert {room_of(other) for other in imports(module)} <= GROUND | {"nn"}


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(module) - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_the_package_imports_none_of_what_it_is_compared_with():
    for module, file in MODULES.items():
        text = file.read_text(encoding="utf-8")
        found = set(re.findall(r"^\s*(?:from|import) +(\w+)", text, re.MULTILINE))
        assert not found & REFERENCE, module


@pytest.mark.parametrize("folder", ["tests", "tools", "benchmarks"])
def test_everything_outside_imports_names_that_exist(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_cogvideo"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    exists = hasattr(module, alias.name) or importlib.util.find_spec(inner)
                    assert exists, f"{file}: {inner}"


def test_only_commands_print():
    for module, file in MODULES.items():
        called = {
            node.func.id
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in called or room_of(module) == "cli", module


def test_the_documentation_has_the_same_table():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    stated = {room: cell.strip() for room, cell in rows if room in MAY_IMPORT}
    assert stated.keys() == MAY_IMPORT.keys()
    for room in ("nn", "diffusion", "checkpoints", "video", "pipeline"):
        assert set(re.findall(r"`(\w+)`", stated[room])) == MAY_IMPORT[room]
    for room in ("runs", "training", "conversion", "machine"):
        assert stated[room] == "those and `pipeline`"
