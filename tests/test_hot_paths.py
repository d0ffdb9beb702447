"""What may not stand in code that a GPU or other processes wait for, read from the source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmrec"
FILES = sorted(PACKAGE.rglob("*.py"))
BRINGS_BACK = {"item", "cpu", "tolist", "numpy", "nonzero"}
# Functions that run in each micro-batch or search pass, and how often each may bring values back:
# never while training, once where a pass's log-probabilities come to the host.
HOT = {
    "model/trainer.py": {"compute_loss": 0},
    "model/forward.py": {"forward_logits": 0, "head_at": 0, "mask_for": 0, "mask": 0},
    "model/attention.py": {"tree_attention": 0, "stacked_mask": 0},
    "model/softmax.py": {
        "branch_sums": 0,
        "branch_log_probabilities": 0,
        "_of_tokens": 0,
        "log_probabilities": 0,
        "restricted_log_probabilities": 0,
    },
    "decoding/shared_prompt.py": {"read": 0, "_forward": 0, "normalisers": 0},
    "decoding/best_first.py": {"_branched": 1, "_of_vocabulary": 1},
}
MEETINGS = {
    "answer_in_parts",
    "answered",
    "broadcast_object_list",
    "full_tensor",
    "gather",
    "gather_object",
    "gathered",
    "get_state_dict",
    "main_first",
    "main_only",
    "reduce",
    "save_model",
    "share_of",
    "taken",
    "together",
    "wait_for_everyone",
}
RANKS = {"is_main_process", "process_index", "is_local_main_process", "should_save"}
# Where processes meet, ranks do different things by design.
MEETS = "runs/processes.py"


def names_in(node):
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.Name):
            yield inner.id


def brought_back(function):
    """Lines at which a call brings values of tensors to the host."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in BRINGS_BACK:
                inner = called.value
                chained = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute)
                if not (chained and inner.func.attr == "cpu" and called.attr == "numpy"):
                    yield node.lineno
            if isinstance(called, ast.Name) and called.id == "fetched":
                yield node.lineno
            makes_a_number = isinstance(called, ast.Name) and called.id in ("bool", "float", "int")
            if makes_a_number and not isinstance(node.args[0], ast.Constant):
                yield node.lineno


def met_by_some(tree):
    """Lines at which processes would meet that only some ranks come to."""
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ("body", "orelse")):
            for at, statement in enumerate(body if isinstance(body, list) else ()):
                if not isinstance(statement, ast.If) or not RANKS & set(names_in(statement.test)):
                    continue
                only = [*statement.body, *statement.orelse]
                if isinstance(statement.body[-1], ast.Return):  # the rest is for the others
                    only += body[at + 1 :]
                for inner in only:
                    for call in ast.walk(inner):
                        if isinstance(call, ast.Call) and MEETINGS & set(names_in(call.func)):
                            yield call.lineno


@pytest.mark.parametrize("file", HOT)
def test_hot_functions_bring_no_values_back(file):
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert {f.name for f in functions} >= set(HOT[file]), "a hot function has another name now"
    for function in functions:
        if function.name in HOT[file]:
            lines = list(brought_back(function))
            assert len(lines) <= HOT[file][function.name], f"{file}: lines {lines}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_name_hangs_on_a_number_of_a_process_alone(path):
    """Containers and hosts count their processes apart; `data.files.unique` is for all."""
    if path.relative_to(PACKAGE).as_posix() in ("data/files.py", "runs/lock.py"):
        return
    assert "getpid" not in set(names_in(ast.parse(path.read_text("utf-8"))))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_processes_meet_where_all_of_them_come(path):
    if path.relative_to(PACKAGE).as_posix() != MEETS:
        assert not list(met_by_some(ast.parse(path.read_text("utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "if state.is_main_process:\n    together()",
        "if not state.is_main_process:\n    return None\nwait_for_everyone()",
        "if args.should_save:\n    x = 1\nelse:\n    accelerator.gather(x)",
        "if state.process_index == 0:\n    found = gathered(mine)",
    ],
)
def test_a_meeting_of_some_is_seen(source):
    wrapped = "def f():\n" + "".join(f"    {line}\n" for line in source.splitlines())
    assert list(met_by_some(ast.parse(wrapped)))


def test_values_brought_back_are_seen():
    source = "def f(x):\n    a = x.item()\n    b = float(x)\n    c = fetched(x)\n    return x.cpu()"
    assert len(list(brought_back(ast.parse(source)))) == 4
