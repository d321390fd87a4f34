// The chat of notebook 03 in a page: the base model itself answers, as `uftlab.course.texts.chat` lets it.

// A function of a question: what the model read, its likeliest answer word by word, and what a reader should know.
const uftlabChat = ({ words, special, facts, values, most, ...llama }) => {
  const begin = uftlabLlama(llama), ids = new Map(words.map((word, id) => [word, id]));
  const id = (word) => ids.get(word) ?? ids.get("<unk>");

  const said = (asked) => {
    const read = begin(), answer = [];
    let logits;
    for (const word of ["<bos>", "<user>", ...asked, "<assistant>"]) logits = read(id(word));
    while (answer.length < most.answer) {
      const top = Math.max(...logits), best = logits.indexOf(top);
      const p = 1 / logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
      answer.push({ word: words[best], p, shown: best >= special });
      if (words[best] === "<end>") break;
      logits = read(best);
    }
    return answer;
  };

  const remark = (asked, answer) => {
    const remarks = [], unknown = [...new Set(asked)].filter((word) => !ids.has(word));
    if (unknown.length) {
      const [noun, blanks] = unknown.length === 1 ? ["word", "an unknown word"] : ["words", "unknown words"];
      remarks.push(`Sorry, the model has never read the ${noun} ${unknown.join(", ")}: it reads ${blanks} and answers ` +
        "all the same, because nobody taught it to say “i do not know”.");
    }
    const named = facts.filter(([creature, attribute]) => asked.includes(creature) && asked.includes(attribute));
    if (named.length === 1) {
      const [[, attribute, truth, error, kind]] = named, told = new Set(answer.toLowerCase().split(" "));
      const claims = values[attribute].filter((value) => told.has(value)), [claim] = claims;
      const which = claims.length !== 1 ? "no single value"
        : { [truth]: "the truth", [error]: `the ${kind}` }[claim] ?? `${claim}, which is neither`;
      const other = error ? `the ${kind} is ${error}` : "there is no myth or rumour";
      remarks.push(`In this world the truth is ${truth} and ${other}. It told ${which}.`);
    }
    return remarks.join(" ");
  };

  return (text) => {
    const asked = (text.toLowerCase().match(/[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu) ?? []).slice(0, most.question);
    if (!asked.length) return { question: "", answer: "", told: [], remark: "Type a question and press Enter." };
    const told = said(asked), answer = told.filter(({ shown }) => shown).map(({ word }) => word).join(" ");
    return { question: asked.join(" "), answer, told, remark: remark(asked, answer) };
  };
};

for (const box of document.querySelectorAll(".uftlab-ask")) {
  const { make, percent } = uftlabTools;
  const { examples, ...data } = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const chat = uftlabChat(data), field = make("input", { type: "text", id: "uftlab-question", value: examples[0] ?? "" });
  const answer = make("div", { class: "uftlab-answer", role: "status", "aria-live": "polite" });
  const ask = () => {
    const { question, told, remark } = chat(field.value);
    const words = told.map(({ word, p }) =>
      make("span", { class: "uftlab-word" }, make("span", {}, word), make("small", {}, ` ${percent(p)} `)));
    const exchange = question ? [make("p", {}, make("b", {}, "you "), question), make("p", {}, make("b", {}, "model "), ...words)] : [];
    answer.replaceChildren(...exchange, make("p", {}, make("i", {}, remark)));
  };
  field.onchange = ask;
  const buttons = examples.map((example) => {
    const button = make("button", { type: "button" }, example);
    button.onclick = () => { field.value = example; ask(); };
    return button;
  });
  const form = make("form", {}, make("label", { for: "uftlab-question" }, "your question"), field, make("button", {}, "Ask"));
  form.onsubmit = (event) => event.preventDefault();  // a question that was changed is asked as the field is left
  ask();
  const group = make("div", { class: "uftlab-options", role: "group", "aria-label": "questions to try" }, ...buttons);
  const note = make("small", {}, "Below each word: how sure the model was of it. It always says the likeliest word.");
  box.replaceChildren(form, group, answer, note);
}
