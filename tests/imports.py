"""Reads the import statements of source files without running them."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxdiff", "ports", "experiments")


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and whether the statement is inside a function."""

    module: str
    line: int
    in_function: bool


def sources(*folders: str) -> list[Path]:
    """All Python files under these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(source: str) -> list[Import]:
    """Every import of a source text, nested ones included.

    ``from a import b`` yields ``a.b``: whether b is a module or a name in one makes no difference to which
    room or library it belongs to. ``importlib.import_module("a.b")`` and ``__import__("a.b")`` with a literal
    count too.
    """
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found.extend(Import(f"{prefix}.{alias.name}", node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append(Import(node.args[0].value, node.lineno, in_function))
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def room(module: str) -> str | None:
    """The room that a dotted name belongs to: ``jaxdiff.models.wan`` is in models, ``ports.table`` in ports.

    The public surface ``jaxdiff`` itself is the room "jaxdiff"; other libraries have none.
    """
    parts = module.split(".")
    if parts[0] == "jaxdiff":
        inside = len(parts) > 1 and ((ROOT / "jaxdiff" / parts[1]).is_dir() or _file(parts[1]).exists())
        return parts[1] if inside else "jaxdiff"
    return parts[0] if parts[0] in (*PACKAGES, "benchmarks", "tests") else None


def room_of_file(path: Path) -> str:
    """The room that a source file of the repository belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = room(".".join(part for part in parts if part != "__init__"))
    if name is None:
        raise ValueError(f"{path} is in no room")
    return name


def library(module: str) -> str | None:
    """The third-party library of a dotted name, or None for this project and the standard library."""
    top = module.split(".")[0]
    return None if room(module) or top in sys.stdlib_module_names or not top else top


def _file(name: str) -> Path:
    return ROOT / "jaxdiff" / f"{name}.py"
