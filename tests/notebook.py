"""Run the cells of a notebook in the current folder, and write it with their outputs: python notebook.py OLD NEW.

It needs no Jupyter. A cell's output is what it prints, and the value of its last line.
"""

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run(content: dict[str, Any]) -> None:
    """Run the code cells one after the other, and give each its outputs."""
    names: dict[str, Any] = {}
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        tree, printed, value = ast.parse("".join(cell["source"])), io.StringIO(), None
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        outputs: list[dict[str, Any]] = []
        if text := printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        if value is not None:
            data = {"text/plain": repr(value).splitlines(keepends=True)}
            if hasattr(value, "_repr_html_"):
                data["text/html"] = value._repr_html_().splitlines(keepends=True)
            outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
        cell |= {"execution_count": number, "outputs": outputs}


if __name__ == "__main__":
    notebook = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run(notebook)
    Path(sys.argv[2]).write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")
