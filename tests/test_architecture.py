"""The house's rules, read from the source: who imports whom, and what no file may hold."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from llmrec.recipe.systems import Kind, SystemName

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
    "server": {"data", "decoding", "recipe", "runs", "systems"},
    "stages": LOWER | {"recipe", "fetch", "runs", "inference", "methods", "systems", "server"},
    "studies": LOWER | {"recipe", "runs", "inference", "methods", "stages"},
}
BELOW_STAGES = [room for room in ROOMS if room not in {"stages", "studies"}]
MAY_READ_THE_ENVIRONMENT = {"fetch"}  # where the cache is
TOP = {"terminal", "cli", "cli_habits", "cli_recommend", "cli_results", "cli_shipped"}
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


def circle_in(needs):
    """Modules that import each other in a circle, one after the other; none where there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for other in sorted(needs.get(module, ())):
            found = visit(other)
            if found:
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for found in map(visit, sorted(needs)) if found), [])


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path, modules):
    """The modules of the house that a file imports, of a package those that are named."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inside]
        yield from (name for name in names if name in modules)


def test_no_modules_import_each_other_in_a_circle():
    """Those imported inside functions or for types alone count as well."""
    modules = {module_of(path) for path in FILES}
    assert not circle_in({module_of(p): set(imported_modules(p, modules)) for p in FILES})


def test_a_circle_is_seen():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# Words that stand in the names of systems; only their parser may look for them in a string.
PARSER = "recipe/systems.py"
NAMES = {name for name in get_args(SystemName) if name not in get_args(Kind)}
FRAGMENTS = {"tuned", "_tuned", "network", "network_", "_sft", "_ce", "_cpft", "_guided"}
FRAGMENTS |= {"guided", "_grounded", "grounded", "_free"}


def strings_of(node, constants):
    """The strings that an expression is or lists, those of tuples that the module names too."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name):
        yield from constants.get(node.id, ())
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for part in node.elts:
            yield from strings_of(part, constants)


def asks_of_system_names(source):
    """The lines of a source that tell systems apart by their names."""
    tree = ast.parse(source)
    constants = {
        target.id: list(strings_of(node.value, {}))
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        said = set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"startswith", "endswith", "removesuffix", "removeprefix"}:
                said = {s for a in node.args for s in strings_of(a, constants)} & FRAGMENTS | {
                    s for a in node.args for s in strings_of(a, constants) if s in NAMES
                }
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(s, ast.Attribute) and s.attr in {"kind", "way"} for s in sides):
                continue  # what the parser found
            said = {s for side in sides for s in strings_of(side, constants)} & NAMES
            if any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
                said |= set(strings_of(node.left, constants)) & FRAGMENTS
        if said:
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_systems_name_is_taken_apart_by_its_parser_alone(path):
    if path != PACKAGE / PARSER:
        found = list(asks_of_system_names(path.read_text("utf-8")))
        assert not found, f"lines {found} ask a system's name; ask System.parse(name) instead"


@pytest.mark.parametrize(
    "source",
    [
        'if "tuned" in system: pass',
        'any("tuned" in s for s in names)',
        'system.endswith("_guided")',
        'name.startswith(("tuned", "network"))',
        'WITHOUT = ("tgh", "_grounded")\nname.endswith(WITHOUT)',
        'if system == "tuned_sft": pass',
        'if "network_ce" in recipe.systems: pass',
        'if system not in (None, "tuned", "untuned"): pass',
        'NETWORKS = ("network", "network_ce")\nif system in NETWORKS: pass',
        'name.removesuffix("_free")',
    ],
)
def test_a_test_of_a_systems_name_is_seen(source):
    assert list(asks_of_system_names(source))


@pytest.mark.parametrize(
    "source",
    [
        'if system.kind == "network": pass',
        'if system.way in ("guided", "grounded"): pass',
        'text.endswith("\\n")',
        'systems = ["untuned", "tuned"]',
        'if key in ("none", "auto"): pass',
        'if lack(System.parse("tuned")) is None: pass',
    ],
)
def test_what_a_parsed_system_says_may_be_asked(source):
    assert not list(asks_of_system_names(source))


def test_every_room_of_the_house_is_ruled():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set(ROOMS)
