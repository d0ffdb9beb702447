"""The house's rules, read from the source: who imports whom, and what no file may hold."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmrec"
# What each room may import of the others, those above it in the house.
LOWER = {"data", "evaluation", "text", "retrieval", "baselines", "model", "decoding"}
ROOMS = {
    "recipe": set(),
    "fetch": {"data"},
    "data": set(),
    "evaluation": {"data"},
    "text": {"data"},
    "retrieval": {"data"},
    "baselines": {"data", "evaluation", "text"},
    "model": {"data", "evaluation", "text"},
    "decoding": {"data", "text", "model", "baselines"},
    "runs": {"recipe", "fetch", "data", "evaluation"},
    "inference": LOWER | {"recipe", "fetch", "runs"},
    "methods": LOWER | {"recipe", "fetch", "runs", "inference"},
    "systems": LOWER | {"recipe", "fetch", "runs", "inference", "methods"},
    "stages": LOWER | {"recipe", "fetch", "runs", "inference", "methods", "systems"},
    "studies": LOWER | {"recipe", "runs", "inference", "stages"},
}
BELOW_STAGES = [room for room in ROOMS if room not in {"stages", "studies"}]
MAY_READ_THE_ENVIRONMENT = {"fetch"}  # where the cache is
TOP = {"terminal", "cli"}
NO_TORCH = {"data", "evaluation", "retrieval", "recipe"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else "top"


def imports(path, everywhere=True):
    """Full names of imported modules; with `everywhere` False, those at the top level alone."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "llmrec" or len(parts) < 2:
            continue
        other = parts[1]
        if room in ROOMS and other in ROOMS and other != room:
            assert other in ROOMS[room], f"{room} imports {name}"
        if room in BELOW_STAGES:
            assert other not in TOP, f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_below_the_stages_nothing_prints_or_reads_the_environment(path):
    if room_of(path) not in BELOW_STAGES:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and room_of(path) not in MAY_READ_THE_ENVIRONMENT:
            assert node.attr not in ("environ", "getenv"), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_rooms_import_no_torch(path):
    heavy = {"torch", "transformers", "peft", "accelerate"}
    if room_of(path) in NO_TORCH:
        assert not heavy & {name.split(".")[0] for name in imports(path)}
    if room_of(path) in {"top", "text", "fetch"}:
        at_top = {name.split(".")[0] for name in imports(path, everywhere=False)}
        assert not heavy & at_top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_say_what_they_are_and_stay_small(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_or_unpickles_what_it_reads(path):
    called = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called.add(ast.unparse(node.func))
    assert not called & {
        "eval",
        "exec",
        "compile",
        "torch.load",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "yaml.unsafe_load",
        "os.system",
    }
    assert "pickle" not in set(imports(path))


def test_every_room_of_the_house_is_ruled():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set(ROOMS)
