// What explorers and chat share: numbers that plotly packs, text as Python formats it, elements of the page.
//
// A model is `uftlabModels[name](twin, data, tools)`: it gives a function of the values of the controls, which returns
// the figure's data and layout, and its sentence. `twin` is the figure at the first values.
const uftlabModels = {};

const uftlabTools = (() => {
  const TYPES = {
    f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u4: Uint32Array,
    u2: Uint16Array, u1: Uint8Array,
  };
  // an array of a plotly figure, which may be packed
  const numbers = (array) => {
    if (!array.bdata) return array;
    const bytes = Uint8Array.from(atob(array.bdata), (letter) => letter.charCodeAt(0));
    return Array.from(new TYPES[array.dtype](bytes.buffer));
  };
  // as Python's f"{x:.2f}", or f"{x:+.2f}": what lies exactly in the middle goes to the even digit
  const fixed = (x, digits, plus = "") => {
    const size = Math.abs(x), up = size.toFixed(digits);
    const tie = digits < 20 && /^50*$/.test(size.toFixed(digits + 50).split(".")[1].slice(digits));
    const text = tie && /[13579]$/.test(up) ? (Number(up) - 10 ** -digits).toFixed(digits) : up;
    return (x < 0 || Object.is(x, -0) ? "-" : plus) + text;
  };
  // as Python's f"{x:.3g}"
  const short = (x, digits) => {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x > 0 ? "inf" : "-inf";
    const [mantissa, exponent] = x.toExponential(digits - 1).split("e");
    const bare = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (Number(exponent) >= -4 && Number(exponent) < digits) return bare(fixed(x, digits - 1 - Number(exponent)));
    return `${bare(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  };
  const percent = (share) => `${fixed(share * 100, 0)}%`;
  // a title as `theme._title` has it: lines of whole words, and space above for each
  const titled = (title, words) => {
    const lines = [""];
    for (const piece of words.match(/ ?(?:[^ -]+-(?=[a-z])|[^ ]+)/gi) ?? []) {
      if ((lines.at(-1) + piece).length <= 48) lines.push(lines.pop() + piece);
      else lines.push(piece.trimStart());
    }
    return { ...title, text: lines.join("<br>"), pad: { ...title.pad, t: 20 + 15 * (lines.length - 1) } };
  };
  // an element of the page
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  return { numbers, fixed, short, percent, titled, make };
})();
