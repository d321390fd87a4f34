// Keeps a figure drawn on its card, in a notebook (`widgets.py`) and in an exported page (`course/scripts/live.js`).
//
// The figure is drawn when it is on the screen or near, at its own height and at least 620 pixels wide. Then it is made
// smaller as a whole, so that it fits into its place and leaves 300 pixels of the window's height to the rest.
//
// `current` gives the figure as JSON, `remedy` is said where it cannot be drawn. Returns `again`, to be called when the
// figure has changed, and `end`. Both give a promise. That of `again` is true once the figure is drawn.
function uftlabPainter(Plotly, card, plot, config, current, remedy) {
  const [NARROWEST, LOWEST, ELSE] = [620, 400, 300];
  let [shown, size, last, ended] = ["", "", Promise.resolve(), false];
  const draw = async () => {
    const [text, room] = [current(), card.clientWidth];
    // plotly.js measures wrongly in a cell that the browser skips: traces would not fit their axes
    if (ended || !room || !card.checkVisibility({ contentVisibilityAuto: true })) return shown !== "";
    const { data, layout } = JSON.parse(text);
    const [height, most] = [layout.height ?? 500, Math.max(LOWEST, innerHeight - ELSE)];
    const scale = Math.min(most / height, room / NARROWEST, 1);
    const width = room / scale, fits = [width, height * scale].join();
    if (text === shown && fits === size) return true;
    if (!shown) plot.replaceChildren();
    card.style.height = `${height * scale}px`;
    plot.style.transform = scale < 1 ? `scale(${scale})` : "";
    if (text === shown) await Plotly.relayout(plot, { width });
    else await Plotly.react(plot, data, { ...layout, height, width }, config);
    [shown, size] = [text, fits];
    return true;
  };
  const again = () => (last = last.then(draw).catch((error) => {
    Plotly.purge(plot);
    [shown, size] = ["", ""];
    const textContent = `The figure could not be drawn (${error.message}). ${remedy}`;
    plot.replaceChildren(Object.assign(document.createElement("div"), { className: "uftlab-trouble", textContent }));
    return false;
  }));
  const sizes = new ResizeObserver(again);
  sizes.observe(card);
  const seen = new IntersectionObserver(again, { rootMargin: "300px" });
  seen.observe(card);
  addEventListener("resize", again);
  const end = () => {
    ended = true;
    sizes.disconnect();
    seen.disconnect();
    removeEventListener("resize", again);
    return last.then(() => Plotly.purge(plot));
  };
  return { again, end };
}
