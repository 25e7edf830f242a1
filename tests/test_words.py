"""The words of the code: one word for one thing, and docstrings that begin with a verb."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "snapvideo_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")])

# What says nothing of what a thing is, or named several things (docs/how_it_works.md has the words
# that took their places).
BANNED = {
    "walk", "stretch", "lean", "once", "kept", "told", "tell", "given", "asked", "made", "found",
    "wanted", "go", "together", "gathered", "named",
}  # fmt: skip


def words(name):
    """The parts of snake_case and CamelCase."""
    return {part.lower() for part in re.split(r"_|(?<=[a-z])(?=[A-Z])", name) if part}


def names(tree):
    """Every name that a file gives: functions, classes, parameters, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_holds_a_word_that_says_nothing(path):
    assert not words(path.stem) & BANNED
    for name, line in names(ast.parse(path.read_text())):
        assert not words(name) & BANNED, f"{path.name}:{line}: {name}"


def functions(tree):
    """Functions and methods with a docstring; properties are nouns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            if not any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list):
                yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_a_verb_or_are_an_equation(path):
    for node in functions(ast.parse(path.read_text())):
        first = ast.get_docstring(node).split("\n\n")[0]
        verb = re.match(r"[A-Z][a-z]+s\b", first)
        assert verb or " = " in first, f"{path.name}:{node.lineno}: {node.name}: {first}"
