// What the models really saw: the rendered text and its tokens, a tab for each way in which the text was rendered.

import { beginning, count, element } from "./dom.js";
import { pieces } from "./pieces.js";

const SHOWN_AT_ONCE = 2000; // tokens
const PREVIEWED = 80; // characters of a text that is folded
const INVISIBLE = /([\s\p{Cc}\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff])/u;
const SIGNS = { " ": "·", "\n": "↵", "\t": "→", "\u00a0": "⍽" };
const SPECIAL =
  /^(?:<\|.+\|>|<｜.+｜>|<\/?s>|<\/?(?:pad|bos|eos|unk|mask|cls|sep|start_of_turn|end_of_turn)>|\[\/?(?:PAD|BOS|EOS|UNK|MASK|CLS|SEP|INST)\])$/i;

let made = 0; // for ids that no other element has

/**
 * A disclosure of what the models saw of one completion; its tokens are only made when it is opened.
 *
 * @param renderings As POST /v1/render answers them: models that were given the same are one entry, with the first one's name.
 */
export function renderingDisclosure(renderings) {
  const counts = renderings.map(({ tokens }) => tokens.length);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const size = least === most ? count(most, "token") : `${least} to ${count(most, "token")}`;
  const summary = element("summary", {}, "Model input ", element("span", { className: "aside" }, size));
  if (renderings.some(({ truncated }) => truncated)) summary.append(" ", truncatedBadge());
  const disclosure = element("details", { className: "saw" }, summary);
  disclosure.addEventListener("toggle", () => disclosure.append(contents(renderings)), { once: true });
  return disclosure;
}

function truncatedBadge() {
  return element("span", { className: "badge" }, "truncated");
}

function contents(renderings) {
  const views = renderings.map(view);
  return views.length === 1 ? views[0] : tabbed(renderings.map(named), views);
}

function named({ model, path }) {
  return path ? `${model} (${path})` : model;
}

function view(rendering) {
  const { text, tokens, token_ids: ids, truncated, path } = rendering;
  const facts = element("p", { className: "facts-line" }, element("span", { className: "names" }, named(rendering)));
  facts.append(` saw ${count(tokens.length, "token")}.`);
  if (path) facts.append(" Models that were given the same are shown once.");
  if (truncated) facts.append(" ", truncatedBadge(), " The text was longer than the model takes, and was cut.");
  const legend = element("p", { className: "aside" }, "· space, ↵ line break, → tab, � part of a character, ");
  legend.append(element("strong", { className: "token special" }, "special token"));
  const plain = element("pre", { className: "plain", dir: "auto", translate: false }, text);
  const asText = element("details", {}, asTextSummary(truncated, text), plain);
  return element("div", { className: "view" }, facts, tokenList(tokens, ids ?? []), legend, asText);
}

function asTextSummary(truncated, text) {
  const start = beginning(text.trim().replaceAll(/\s+/g, " "), PREVIEWED);
  const title = truncated ? "The text before it was cut " : "The text ";
  return element("summary", {}, title, element("span", { className: "aside preview", dir: "auto", translate: false }, start));
}

function tokenList(tokens, ids) {
  const texts = pieces(tokens, (token) => SPECIAL.test(token));
  const list = element("ol", { className: "tokens", "aria-label": "Tokens", translate: false });
  const whole = element("div", {}, list);
  const more = element("button", { type: "button" });
  const show = () => {
    const from = list.children.length;
    const upTo = Math.min(tokens.length, from + SHOWN_AT_ONCE);
    for (let place = from; place < upTo; place++) list.append(chip(texts[place], SPECIAL.test(tokens[place]), ids[place]));
    more.remove();
    if (upTo === tokens.length) return;
    more.textContent = `Show the next ${count(Math.min(SHOWN_AT_ONCE, tokens.length - upTo), "token")}`;
    whole.append(more);
  };
  more.addEventListener("click", show);
  show();
  return whole;
}

function chip(token, special, id) {
  const parts = token.split(INVISIBLE).filter(Boolean).map(visible);
  const inner = special
    ? element("strong", { className: "token special" }, ...parts)
    : element("span", { className: "token", dir: "auto" }, ...(parts.length ? parts : [sign("∅")]));
  if (id !== undefined) inner.title = special ? `special token, id ${id}` : `id ${id}`;
  return element("li", { className: token.endsWith("\n") ? "ends-line" : "" }, inner);
}

function visible(part) {
  if (!INVISIBLE.test(part)) return part;
  return sign(SIGNS[part] ?? `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

function sign(text) {
  return element("span", { className: "sign" }, text);
}

/** The tabs of the ARIA pattern: arrow keys, Home and End move and choose, Tab goes on to the panel. */
function tabbed(names, views) {
  const group = `rendering-${++made}`;
  const tabs = names.map((name, place) =>
    element("button", { type: "button", role: "tab", id: `${group}-tab-${place}`, "aria-controls": `${group}-view-${place}` }, name),
  );
  const choose = (place, focus) => {
    tabs.forEach((tab, other) => {
      tab.setAttribute("aria-selected", String(other === place));
      tab.tabIndex = other === place ? 0 : -1;
      views[other].hidden = other !== place;
    });
    if (focus) tabs[place].focus();
  };
  views.forEach((panel, place) => {
    panel.id = `${group}-view-${place}`;
    panel.setAttribute("role", "tabpanel");
    panel.tabIndex = 0;
    panel.setAttribute("aria-labelledby", tabs[place].id);
  });
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(place));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const next = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place ? place - 1 : last, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      choose(next, true);
    });
  });
  choose(0);
  return element("div", {}, element("div", { className: "tabs", role: "tablist", "aria-label": "Models" }, ...tabs), ...views);
}
