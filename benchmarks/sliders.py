"""How long a slider takes: time in the kernel (95th percentile), and time from key press to paint.

    python benchmarks/sliders.py --json build/sliders.json

Limits of the course: 100 ms in the kernel and 400 ms to the paint, on two cores. This is a measurement, not a test: run
it on a machine without other work. The paint needs Chromium and is left out without it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import driver  # noqa: E402

from uftlab.course.notebooks import Explorer, explorer_of, explorer_paths  # noqa: E402
from uftlab.plots import widgets  # noqa: E402

KERNEL_LIMIT, PAINT_LIMIT = 100.0, 400.0  # milliseconds


def positions(control, count):
    """At most `count` values over the range of a control, each once, because notebooks cache their figures."""
    if hasattr(control, "options"):
        return [value for _, value in control._options_full][:count]
    places = [control.min + (control.max - control.min) * k / (count - 1) for k in range(count)]
    if isinstance(control, widgets.ipywidgets.FloatLogSlider):
        return list(dict.fromkeys(control.base ** round(place, 1) for place in places))
    kind = int if isinstance(control.value, int) else float
    steps = (control.min + control.step * round((place - control.min) / control.step) for place in places)
    return list(dict.fromkeys(kind(step) for step in steps))


def kernel_times(explorer: Explorer, moves: int) -> list[float]:
    """Milliseconds in the kernel for each of at least `moves` moves, over all controls."""
    box = widgets.explore(explorer.picture, explorer.controls, explorer.words)
    times: list[float] = []
    while len(times) < moves:
        for control in box.controls.values():
            for value in positions(control, -(-moves // len(box.controls))):
                if value != control.value:
                    begun = time.perf_counter()
                    control.value = value
                    times.append(1000 * (time.perf_counter() - begun))
    return times


def presses(page, control):
    """Two key presses that move a control there and back: what has the focus, and the key."""
    if isinstance(control, widgets.ipywidgets.ToggleButtons):
        buttons = page.get_by_role("group", name=control.description, exact=True).get_by_role("button")
        here = control.index
        return [(buttons.nth(1 if here == 0 else 0), "Enter"), (buttons.nth(here), "Enter")]
    if hasattr(control, "step"):
        handle = page.get_by_role("slider", name=control.description, exact=True)
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        keys = ["ArrowLeft", "ArrowRight"] if at_the_end else ["ArrowRight", "ArrowLeft"]
    else:
        handle = page.get_by_role("combobox", name=control.description, exact=True)
        keys = ["ArrowUp", "ArrowDown"] if control.index else ["ArrowDown", "ArrowUp"]
    return [(handle, key) for key in keys]


def paint_times(page, explorer: Explorer, count: int) -> list[float]:
    """Milliseconds from a key press on the first slider, or the first control if there is none, to the last paint."""
    controls = list(explorer.controls.values())
    moves = presses(page, next((c for c in controls if hasattr(c, "step")), controls[0]))
    times = []
    line = page.locator(driver.LINE)
    for k in range(count):
        before = line.text_content()
        handle, key = moves[k % 2]
        handle.press(key)
        page.wait_for_function(
            f"(before) => stopwatch.painted !== null && document.querySelector('{driver.LINE}').textContent !== before",
            arg=before,
        )
        times.append(page.evaluate("stopwatch.painted"))
    return times


def main() -> None:
    """Measure every notebook, print a table, and write JSON if asked."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", type=Path, help="write the numbers here")
    options.add_argument("--only", default="", help="notebooks whose name starts with this")
    options.add_argument("--profile", default="smoke", help="smoke, class or research")
    options.add_argument("--moves", type=int, default=100, help="moves in the kernel, at least 50")
    options.add_argument("--presses", type=int, default=20, help="key presses in the browser")
    chosen = options.parse_args()
    rows = []
    for path in explorer_paths(chosen.only):
        times = kernel_times(explorer_of(path, profile=chosen.profile), max(50, chosen.moves))
        p95 = statistics.quantiles(times, n=20)[-1]
        row = {"notebook": path.stem, "moves": len(times), "kernel_p95_ms": p95}
        rows.append(row | {"kernel_ratio": p95 / KERNEL_LIMIT})
    if driver.chromium():
        with tempfile.TemporaryDirectory() as folder, driver.browser() as browser:
            for path in explorer_paths(chosen.only):
                driver.copy_notebook(path, Path(folder), chosen.profile)
            with driver.lab(folder) as address:
                for row, path in zip(rows, explorer_paths(chosen.only), strict=True):
                    page = browser.new_page(viewport={"width": 1280, "height": 720})
                    driver.run_notebook(page, address, path.stem)
                    painted = paint_times(page, explorer_of(path, profile=chosen.profile), chosen.presses)
                    row |= {"paint_median_ms": statistics.median(painted), "paint_max_ms": max(painted)}
                    row["paint_p95_ms"] = statistics.quantiles(painted, n=20, method="inclusive")[-1]
                    row["paint_ratio"] = row["paint_max_ms"] / PAINT_LIMIT
                    page.close()
    titles = f"{'notebook':<20}{'kernel p95':>12}{'of 100 ms':>11}"
    print(titles + f"  {'paint median':>13}{'p95':>9}{'max':>9}{'of 400 ms':>11}")
    for row in rows:
        text = f"{row['notebook']:<20}{row['kernel_p95_ms']:>9.1f} ms{row['kernel_ratio']:>10.2f}x"
        if "paint_max_ms" in row:
            text += f"  {row['paint_median_ms']:>10.0f} ms{row['paint_p95_ms']:>6.0f} ms{row['paint_max_ms']:>6.0f} ms"
            text += f"{row['paint_ratio']:>10.2f}x"
        print(text)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
