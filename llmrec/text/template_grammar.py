"""What a prompt template may say: loops over its names, conditions, and names shown.

A template is a file that somebody else may have written. Whatever could run long, grow without
bound, read a file or draw by chance is not in this grammar, so what it renders to takes time and
memory in proportion to the titles it is given. Knows jinja's syntax trees, no template's meaning.
"""

from collections.abc import Iterator

from jinja2 import nodes

FILTERS = frozenset(
    (
        "capitalize",
        "count",
        "first",
        "join",
        "last",
        "length",
        "lower",
        "reverse",
        "title",
        "trim",
        "upper",
    )
)
DEEPEST = 2  # loops inside each other: users, and their titles
_ALLOWED = (
    nodes.Template,
    nodes.Block,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Const,
    nodes.Neg,
    nodes.Add,
    nodes.Sub,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
)
_IN_WORDS = {
    nodes.Call: "a call",
    nodes.Mul: "a product",
    nodes.Pow: "a power",
    nodes.Mod: "a format or remainder",
    nodes.Macro: "a macro",
    nodes.Assign: "an assignment",
    nodes.Include: "another file",
    nodes.Import: "another file",
    nodes.FromImport: "another file",
    nodes.Extends: "another file",
}
MAY = (
    "it may loop over `history`, `demonstrations`, `candidates`, `votes`, `others` and what these "
    f"hold, ask `if`, and show names, cut lists [-5:], and the filters {', '.join(sorted(FILTERS))}"
)


def beyond(tree: nodes.Template) -> tuple[int, str] | None:
    """Line and description of the first thing in a template that it may not say; None: nothing."""
    for node, depth in _walk(tree, 0):
        wrong = _wrong(node, depth)
        if wrong is not None:
            return node.lineno, wrong
    return None


def _walk(node: nodes.Node, depth: int) -> Iterator[tuple[nodes.Node, int]]:
    """A node and all below it, each with the number of loops around it, itself counted."""
    depth += isinstance(node, nodes.For)
    yield node, depth
    for child in node.iter_child_nodes():
        yield from _walk(child, depth)


def _wrong(node: nodes.Node, depth: int) -> str | None:
    if not isinstance(node, _ALLOWED):
        kind = next((words for k, words in _IN_WORDS.items() if isinstance(node, k)), None)
        return kind or f"something of kind {type(node).__name__}"
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop"
    if depth > DEEPEST:
        return f"loops inside each other, more than {DEEPEST}"
    if isinstance(node, nodes.Filter) and (node.name not in FILTERS or node.kwargs):
        return f"the filter {node.name}"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"the inner name {node.attr}"
    if isinstance(node, nodes.For) and not isinstance(_looped(node.iter), nodes.Name):
        return "a loop over something that is none of its names"
    return None


def _looped(node: nodes.Node) -> nodes.Node:
    """What a loop goes over, below its filters, cuts and attributes."""
    while isinstance(node, nodes.Filter | nodes.Getattr | nodes.Getitem) and node.node is not None:
        node = node.node
    return node
