// Search without a server: the index is a script (a page opened from a file may not fetch), read at the first key.
"use strict";
(() => {
  const box = document.getElementById("search"), input = box.querySelector("input");
  const list = document.getElementById("found"), root = box.dataset.root;
  const plain = (text) => text.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  let asked = null;
  box.hidden = false;

  const index = () => (asked ??= new Promise((done) => {
    const script = document.createElement("script");
    script.src = root + "search-index.js";
    script.onload = () => done(window.searchIndex.map((entry) => ({ ...entry, low: plain(entry.text) })));
    document.head.append(script);
  }));

  // A word counts most in a title, then in a heading, then in the text. An entry has to have all words.
  const worth = (entry, words) => {
    const [title, heading] = [plain(entry.title), plain(entry.heading)];
    let sum = 0;
    for (const word of words) {
      const here = (title.includes(word) ? 8 : 0) + (title === word || heading === word ? 20 : 0) +
        (heading.includes(word) ? 6 : 0) + Math.min(entry.low.split(word).length - 1, 4);
      if (!here) return 0;
      sum += here;
    }
    return sum;
  };

  const around = (entry, word) => {
    const at = Math.max(entry.low.indexOf(word), 0), from = Math.max(at - 60, 0);
    return (from ? "… " : "") + entry.text.slice(from, at + 100) + " …";
  };

  const item = (entry, words) => {
    const line = document.createElement("li"), link = document.createElement("a"), small = document.createElement("small");
    link.href = root + entry.page + (entry.anchor ? "#" + entry.anchor : "");
    link.textContent = entry.heading && entry.heading !== entry.title ? `${entry.title}: ${entry.heading}` : entry.title;
    small.textContent = around(entry, words[0]);
    link.append(small);
    line.append(link);
    return line;
  };

  const show = async () => {
    const words = plain(input.value).split(/\s+/).filter(Boolean), said = input.value;
    if (!words.length) return list.replaceChildren();
    const found = (await index()).map((entry) => [worth(entry, words), entry]).filter(([sum]) => sum);
    if (said !== input.value) return;
    found.sort((a, b) => b[0] - a[0]);
    list.replaceChildren(...found.slice(0, 15).map(([, entry]) => item(entry, words)));
    if (!found.length) {
      const none = document.createElement("li"), told = document.createElement("p");
      told.textContent = "Nothing found.";
      none.append(told);
      list.append(none);
    }
  };

  input.addEventListener("input", show);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      input.focus();
    }
    if (event.key === "Escape") { input.value = ""; list.replaceChildren(); }
    if (["ArrowDown", "ArrowUp"].includes(event.key) && box.contains(document.activeElement)) {
      const stops = [input, ...list.querySelectorAll("a")], at = stops.indexOf(document.activeElement);
      const next = stops[at + (event.key === "ArrowDown" ? 1 : -1)];
      if (next) { event.preventDefault(); next.focus(); }
    }
  });
})();
