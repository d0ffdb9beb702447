"use strict";
// The playground: a history is built from found items and put to several systems at once. What
// comes from the server is set as text, never as HTML.

const at = (id) => document.getElementById(id);
const chosenItems = [];
let found = [];
let marked = -1;
let searches = 0;

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children);
  return element;
}

async function get(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const said = await response.json();
  if (!response.ok) {
    throw new Error(typeof said.detail === "string" ? said.detail : JSON.stringify(said.detail));
  }
  return said;
}

function say(text, bad = false) {
  at("said").textContent = text;
  at("said").className = bad ? "bad" : "";
}

function showFound() {
  const list = at("found");
  list.replaceChildren(...found.map((item, number) => made("li", {
    id: `found-${number}`, role: "option", "aria-selected": String(number === marked),
    onmousedown: (event) => { event.preventDefault(); add(item); },
  }, item.title, " ", made("small", {text: item.item_id}))));
  const open = found.length > 0;
  list.hidden = !open;
  at("words").setAttribute("aria-expanded", String(open));
  if (open && marked >= 0) {
    at("words").setAttribute("aria-activedescendant", `found-${marked}`);
    list.children[marked].scrollIntoView({block: "nearest"});
  } else at("words").removeAttribute("aria-activedescendant");
}

function closeFound() {
  found = [];
  marked = -1;
  showFound();
}

async function search() {
  const words = at("words").value.trim();
  const mine = ++searches;
  if (!words) return closeFound();
  try {
    const items = await get(`items?limit=12&q=${encodeURIComponent(words)}`);
    if (mine !== searches) return;
    found = items;
    marked = items.length ? 0 : -1;
    showFound();
    say(items.length ? "" : `No item is called ${words}.`);
  } catch (error) { say(error.message, true); }
}

function add(item) {
  chosenItems.push(item);
  at("words").value = "";
  searches++;
  closeFound();
  showHistory();
  say(`${item.title} added.`);
}

function move(from, to) {
  if (to < 0 || to >= chosenItems.length) return;
  chosenItems.splice(to, 0, ...chosenItems.splice(from, 1));
  showHistory();
  at("history").children[to].querySelector(to < from ? ".earlier" : ".later").focus();
}

function remove(number) {
  const [item] = chosenItems.splice(number, 1);
  showHistory();
  say(`${item.title} removed.`);
  const next = at("history").children[Math.min(number, chosenItems.length - 1)];
  (next ? next.querySelector(".remove") : at("words")).focus();
}

function button(kind, sign, label, does) {
  return made("button", {type: "button", class: kind, "aria-label": label, title: label, text: sign, onclick: does});
}

function showHistory() {
  at("history").replaceChildren(...chosenItems.map((item, number) => made("li", {}, made("div", {class: "line"},
    made("span", {class: "name"}, item.title, " ", made("small", {text: item.item_id})),
    button("earlier", "↑", `${item.title}: earlier`, () => move(number, number - 1)),
    button("later", "↓", `${item.title}: later`, () => move(number, number + 1)),
    button("remove", "×", `Remove ${item.title}`, () => remove(number)),
  ))));
  at("empty").hidden = chosenItems.length > 0;
  at("clear").hidden = chosenItems.length === 0;
}

function scored(value, is) {
  if (is === "log-probability") return percent(Math.exp(value));
  return Number.isFinite(value) ? value.toPrecision(3) : "–";
}

function percent(p) {
  const value = 100 * p;
  return value >= 10 ? `${value.toFixed(1)} %` : value >= 0.01 ? `${value.toFixed(2)} %` : "< 0.01 %";
}

function lasted(seconds) {
  return seconds >= 10 ? `${seconds.toFixed(1)} s` : `${(1000 * seconds).toFixed(0)} ms`;
}

function entries() {
  return chosenItems.map((item) => ({id: item.item_id}));
}

async function answer(system, top) {
  const begun = performance.now();
  try {
    const said = await get("recommend", {histories: [entries()], system, top_k: top});
    const whole = (performance.now() - begun) / 1000;
    return {system, items: said.results[0].items, is: said.score_is, computed: said.computed, rest: Math.max(0, whole - said.computed)};
  } catch (error) { return {system, problem: error.message}; }
}

async function ask() {
  const systems = [...document.querySelectorAll("#systems input:checked")].map((box) => box.value);
  if (!systems.length) return say("Choose at least one system.", true);
  at("ask").disabled = true;
  say("Asking …");
  const top = Math.min(50, Math.max(1, Math.round(Number(at("top").value)) || 10));
  const answers = await Promise.all(systems.map((system) => answer(system, top)));
  at("ask").disabled = false;
  showAnswers(answers);
  const well = answers.filter((one) => !one.problem);
  const all = well.length === answers.length;
  say(all ? `${well.length} answered.` : `${well.length} of ${answers.length} answered.`, !all);
  const before = at("explained").value;
  at("explained").replaceChildren(...well.map((one) => made("option", {value: one.system, text: one.system})));
  if (well.some((one) => one.system === before)) at("explained").value = before;
  at("how-section").hidden = well.length === 0;
  if (well.length) await explain();
}

function showAnswers(answers) {
  const times = new Map();
  for (const one of answers) {
    for (const item of one.items || []) times.set(item.item_id, (times.get(item.item_id) || 0) + 1);
  }
  at("answers").replaceChildren(...answers.map((one) => {
    const card = made("article", {class: "answer", "aria-label": one.system}, made("h3", {text: one.system}));
    if (one.problem) {
      card.append(made("p", {class: "quiet", text: one.problem}));
      return card;
    }
    const is = one.is === "log-probability" ? "probability" : one.is;
    card.append(made("p", {class: "quiet", text: `${is} · ${lasted(one.computed)} and ${lasted(one.rest)} of waiting`}));
    card.append(made("ol", {}, ...one.items.map((item) => made("li", {}, made("div", {class: "line"},
      made("span", {class: times.get(item.item_id) > 1 ? "name shared" : "name", title: item.item_id, text: item.title}),
      made("span", {class: "score", text: scored(item.score, one.is)}),
    )))));
    if (!one.items.length) card.append(made("p", {class: "quiet", text: "Nothing is left to recommend."}));
    return card;
  }));
  at("shared-legend").hidden = ![...times.values()].some((count) => count > 1);
  at("answers-section").hidden = false;
}

async function explain() {
  const system = at("explained").value;
  at("how-said").textContent = "Reading …";
  try {
    const said = await get("explain", {history: entries(), system, top_k: 5});
    if (system === at("explained").value) showExplained(system, said.explained, said.seconds);
  } catch (error) {
    at("how-said").textContent = error.message;
    at("prompt-part").hidden = at("tree-part").hidden = true;
  }
}

function showExplained(system, explained, seconds) {
  at("prompt-part").hidden = !explained;
  at("tree-part").hidden = !(explained && explained.tree);
  if (!explained) {
    at("how-said").textContent = `${system} reads no prompt and searches nothing: it scores every item at once.`;
    return;
  }
  const left = explained.titles_left_out ? ` The ${explained.titles_left_out} oldest titles are not shown to the model.` : "";
  const proven = explained.certified ? " That no item outside the list is more probable is proven." : "";
  at("how-said").textContent = `${explained.tokens.length} tokens read, explained in ${lasted(seconds)}.${left}${proven}`;
  at("tokens").replaceChildren(...explained.tokens.map((token) => made("span", {
    class: `token ${token.kind}`, title: token.title ? `${token.id}: of ${token.title}` : String(token.id),
    text: token.text.replaceAll("\n", "⏎\n"),
  })));
  if (explained.tree) at("tree").replaceChildren(made("ul", {}, branch(explained.tree)));
}

function branch(node) {
  const ends = node.items.map((item) => item.title).join(", ");
  const below = node.open === 1 ? "1 item below" : `${node.open} items below`;
  const line = made("div", {class: node.listed ? "choice listed" : "choice"},
    made("span", {class: "number", text: percent(node.p)}),
    made("meter", {min: 0, max: 1, value: node.p, "aria-hidden": "true"}),
    made("span", {class: "words", text: node.text || "(the beginning)"}),
    made("span", {class: "below", text: ends ? `→ ${ends}, ${percent(Math.exp(node.log_p))} in all` : below}),
  );
  const item = made("li", {}, line);
  if (node.children.length) {
    const rest = node.rest.count ? [made("li", {}, made("div", {class: "choice"},
      made("span", {class: "number", text: percent(node.rest.p)}),
      made("span", {class: "below", text: node.rest.count === 1 ? "1 other way" : `${node.rest.count} other ways`})))] : [];
    item.append(made("ul", {}, ...node.children.map(branch), ...rest));
  }
  return item;
}

at("words").addEventListener("input", search);
at("words").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!found.length) return;
    event.preventDefault();
    marked = (marked + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length;
    showFound();
  } else if (event.key === "Enter" && !event.ctrlKey && marked >= 0) {
    event.preventDefault();
    add(found[marked]);
  } else if (event.key === "Escape") closeFound();
});
at("words").addEventListener("blur", closeFound);
at("clear").addEventListener("click", () => {
  chosenItems.length = 0;
  showHistory();
  say("All removed.");
  at("words").focus();
});
at("ask").addEventListener("click", ask);
at("explained").addEventListener("change", explain);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey && !at("ask").disabled) ask();
});

(async () => {
  try {
    const health = await get("health");
    at("run").textContent = `· ${health.run}`;
    at("about").textContent = `${health.items} items, ${health.systems.length} systems`;
    at("systems").replaceChildren(...health.systems.map((system, number) => made("label", {},
      made("input", {type: "checkbox", value: system, checked: number < 2}), system)));
  } catch (error) { say(error.message, true); }
})();
