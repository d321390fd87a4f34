"""The functions of a notebook's explorer, without running the notebook: only the cells that its explorer needs."""

import dis
from types import CodeType
from unittest import mock

import nbformat

from uftlab.course.notebooks import NOTEBOOKS, Explorer, has_explorer
from uftlab.plots import theme, widgets


def _names(code):
    """Names that code reads outside its own variables, functions in it included."""
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*map(_names, inside))


def _made(code):
    return {line.argval for line in dis.get_instructions(code) if line.opname in ("STORE_NAME", "STORE_GLOBAL")}


def explorer_alone(name, **parameters):
    """The arguments of the `widgets.explore` of a notebook, see `notebooks.explorer_of`, which runs all before it."""
    cells = [cell for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    last = next(i for i, cell in enumerate(cells) if has_explorer(cell.source))
    codes = [compile(cell.source, f"{name}:{cell.id}", "exec") for cell in cells[: last + 1]]
    wanted, kept = _names(codes[last]), [last]
    for i in range(last - 1, -1, -1):
        if _made(codes[i]) & wanted or "parameters" in cells[i].metadata.get("tags", []):
            kept.append(i)
            wanted |= _names(codes[i])
    found, names = [], {"__name__": "__main__"}

    def explore(figure_fn, controls, describe, *rest, **more):
        found.append(Explorer(figure_fn, dict(controls), describe))

    with mock.patch.object(widgets, "explore", explore), mock.patch.object(theme, "show", lambda thing: None):
        for i in sorted(kept):
            exec(codes[i], names)
            if "parameters" in cells[i].metadata.get("tags", []):
                names |= parameters
    return found[0]
