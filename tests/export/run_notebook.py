"""Runs the cells of a notebook as Jupyter does: python run_notebook.py NOTEBOOK OUT.

Each picture that a cell shows goes to OUT, by the number of its cell. This package is not imported.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell, and returns the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def main(notebook: Path, out: Path) -> None:
    """Runs all cells in order; the first that raises ends it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        if cell["cell_type"] == "code":
            shown = run_cell("".join(cell["source"]), names)
            if hasattr(shown, "_repr_png_"):
                (out / f"{number:02d}.png").write_bytes(shown._repr_png_())
    ours = {"snapvideo_jax", "flax"} & set(sys.modules)
    assert not ours, f"the notebook has imported {ours}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
