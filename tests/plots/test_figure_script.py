"""The script of a figure that follows, in a page that is not JupyterLab."""

import driver
import pytest
from plotly.offline import get_plotlyjs

from uftlab.plots import theme, widgets

# How plotly.js before 3 begins: where somebody offers `define`, as RequireJS does, it goes there and nowhere else
OLD = """!function (t, e) {
  "object" == typeof exports && "object" == typeof module ? module.exports = e()
    : "function" == typeof define && define.amd ? define([], e) : t.Plotly = e();
}(self, () => ({
  react: async (plot) => plot.append(Object.assign(document.createElement("b"), { className: "main-svg" })),
  relayout() {}, purge() {},
}));"""
RENDER = """async ([esm, script, figure]) => {
  window.define = Object.assign(() => {}, { amd: {} });
  const { default: own } = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  const heard = {};
  const kernel = {
    on: (name, tell) => { heard[name] = tell; }, off() {}, get: () => figure,
    send: () => heard["msg:custom"](null, [new TextEncoder().encode(script)]),
  };
  const model = { widget_manager: { get_model: async () => kernel }, get: (name) => (name === "drawn" ? "id" : {}) };
  own.render({ model, el: document.body });
}"""


@pytest.mark.skipif(driver.chromium() is None, reason="no Chromium here; Debian: apt-get install chromium")
@pytest.mark.parametrize("script", [OLD, get_plotlyjs()], ids=["before 3", "today"])
def test_a_figure_is_drawn_in_a_page_that_has_requirejs(script):
    figure = theme.figure(title="a title", x="x", y="y").add_scatter(x=[0, 1], y=[0, 1])
    with driver.browser() as browser:
        page = browser.new_page()
        page.set_default_timeout(driver.PATIENCE)
        page.goto("about:blank")
        page.evaluate(RENDER, [str(widgets._Figure._esm), script, figure.to_json()])
        page.wait_for_selector(".uftlab-plot .main-svg", state="attached")
