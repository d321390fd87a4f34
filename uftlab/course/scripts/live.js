// Explorers in a page without a kernel: controls, and a figure that follows them (`uftlab.course.live`).
//
// The static twin of a figure stays in the page until the first figure of its model is drawn, and it stays for good if
// anything here fails.
(() => {
  const { make } = uftlabTools;

  // A control of `widgets.specification`: its row in the page, and its value now.
  let count = 0;
  const controls = {
    buttons({ label, options, index }, changed) {
      const buttons = options.map(([text], i) => make("button", { type: "button" }, text));
      const choose = (i) => {
        index = i;
        buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
      };
      buttons.forEach((button, i) => { button.onclick = () => { choose(i); changed(); }; });
      choose(index);
      const group = make("div", { role: "group", class: "uftlab-options", "aria-label": label }, ...buttons);
      return [make("div", {}, make("span", {}, label), group), () => options[index][1]];
    },
    menu({ label, options, index }, changed) {
      const id = `uftlab-control-${count++}`;
      const select = make("select", { id }, ...options.map(([text], i) => new Option(text, i)));
      select.value = index;
      select.onchange = changed;
      return [make("div", {}, make("label", { for: id }, label), select), () => options[select.value][1]];
    },
    slider({ label, value, min, max, step }, changed, of = Number, back = Number) {
      const id = `uftlab-control-${count++}`;
      const range = make("input", { type: "range", min, max, step, value: back(value), "aria-label": label });
      const field = make("input", { type: "number", id, min: of(min), max: of(max), step: "any" });
      const show = () => {
        field.value = Number(of(Number(range.value)).toPrecision(3));
        range.setAttribute("aria-valuetext", field.value);
      };
      const moved = () => { show(); changed(); };
      range.oninput = moved;
      field.onchange = () => {  // the nearest step, within the range
        if (Number.isFinite(field.valueAsNumber)) range.value = back(Math.max(field.valueAsNumber, of(Number(min))));
        moved();
      };
      field.onkeydown = (event) => {
        if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
        event.preventDefault();
        range[event.key === "ArrowUp" ? "stepUp" : "stepDown"]();
        moved();
      };
      show();
      const row = make("div", {}, make("label", { for: id }, label), field, range);
      return [row, () => of(Number(range.value))];
    },
    "logarithmic slider"(own, changed) {
      const power = (exponent) => 10 ** exponent;
      return controls.slider(own, changed, power, (value) => Math.round(Math.log10(value) * 1e10) / 1e10);
    },
  };

  async function start(box) {
    const { model, data, twin, config } = JSON.parse(box.querySelector("script[type='application/json']").textContent);
    const figureOf = uftlabModels[model](twin, data, uftlabTools);
    const own = twin.layout.meta.controls.map((control) => {
      const [row, value] = controls[control.kind](control, () => follow());
      row.classList.add("uftlab-control", control.kind.endsWith("slider") ? "uftlab-number" : `uftlab-${control.kind}`);
      return { name: control.name, row, value };
    });
    const now = () => figureOf(Object.fromEntries(own.map(({ name, value }) => [name, value()])));
    let { words, ...figure } = now();
    if (!window.Plotly) await window.uftlabPlotly;  // the twin has asked for it

    const [line, place, still] = [".uftlab-line", ".uftlab-figure", ".plotly-graph-div"].map((one) => box.querySelector(one));
    const card = make("div", { class: "uftlab-card uftlab-coming" }, make("div", { class: "uftlab-plot" }));
    const plot = card.firstChild, desk = make("div", { class: "uftlab-controls" }, ...own.map(({ row }) => row));
    place.append(card);
    const remedy = "Load this page again.";
    const painter = uftlabPainter(window.Plotly, card, plot, config, () => JSON.stringify(figure), remedy);
    const follow = async () => {
      try {
        ({ words, ...figure } = now());
      } catch (error) {
        line.textContent = `This setting could not be drawn (${error.message}). Choose another.`;
        return;
      }
      line.textContent = words;
      return painter.again();
    };
    box.classList.add("uftlab-on");
    box.firstElementChild.prepend(desk);
    const first = async () => {
      if (!(await painter.again())) return;
      still.remove();
      plot.classList.add("plotly-graph-div");
      card.classList.remove("uftlab-coming");
      box.dispatchEvent(new Event("uftlab-painted", { bubbles: true }));
      seen.disconnect();
    };
    const seen = new IntersectionObserver(first, { rootMargin: "300px" });
    seen.observe(card);
  }

  for (const box of document.querySelectorAll(".uftlab-live"))
    start(box).catch((error) => console.error("This explorer stays as it is:", error));
})();
