// The ranking of one request: who is first, by how much, what each member says, and who has no score and why.

import { beginning, count, drawn, element, number } from "./dom.js";

const SHOWN = 280; // characters of a completion
const MEMBER = /^member\/\d+$/; // a member's own score, and not a detail of it such as member/0/raw

/**
 * What the server says of each completion, the best first and those without a score last.
 *
 * @param answer Of POST /v1/rewards.
 * @param completions The texts, in the order in which they were sent.
 * @returns Rows of {number, text, score, error, rank, members, spread, details}: `score` is null where there is none, `error`
 *   says why where it failed, equal scores share a rank, `number` is the completion's place in the form from 1.
 */
export function ranked(answer, completions) {
  const rewards = new Map(answer.rewards.map((row) => [row.index, row]));
  const details = Object.entries(answer.details ?? {});
  const rows = completions.map((text, index) => {
    const found = rewards.get(index) ?? { error: "the server's answer leaves this completion out" };
    const own = details.map(([name, values]) => [name, values[index] ?? null]);
    return {
      number: index + 1,
      text,
      score: typeof found.reward === "number" ? found.reward : null,
      error: found.error,
      members: own.filter(([name, value]) => MEMBER.test(name) && value !== null).map(([name, value]) => ({ name: spoken(name), value })),
      spread: Object.fromEntries(own).std ?? null,
      details: own,
    };
  });
  rows.sort((one, other) => (other.score ?? -Infinity) - (one.score ?? -Infinity) || one.number - other.number);
  const scores = rows.map((row) => row.score).filter((score) => score !== null);
  for (const row of rows) row.rank = row.score === null ? null : 1 + scores.filter((score) => score > row.score).length;
  return rows;
}

/** In a sentence, who is best. */
export function verdict(rows) {
  const scored = rows.filter(({ score }) => score !== null);
  const best = scored.filter(({ rank }) => rank === 1);
  if (!best.length) return `No score for ${count(rows.length, "completion")}.`;
  const without = rows.length - scored.length;
  return `${named(best)} best, with ${number(best[0].score)}.${without ? ` ${count(without, "completion")} got no score.` : ""}`;
}

function named(rows) {
  if (rows.length === 1) return `Completion ${rows[0].number} is`;
  if (rows.length > 3) return `${rows.length} completions are`;
  return `Completions ${new Intl.ListFormat("en").format(rows.map((row) => String(row.number)))} are`;
}

/** The list, its scale and, where there are details, the table of all numbers. */
export function rankingView(rows) {
  const scale = scaleFor(rows.flatMap(({ score, members }) => [score, ...members.map(({ value }) => value)]).filter((value) => value !== null));
  const parts = [];
  if (rows.some(({ score }) => score !== null)) parts.push(legend(rows), axis(scale));
  parts.push(element("ol", { className: "ranking", role: "list" }, ...rows.map((row) => item(row, scale))));
  if (rows.some(({ details }) => details.length)) parts.push(table(rows));
  return parts;
}

function spoken(name) {
  return name.replace("/", " ");
}

function item(row, scale) {
  const title = element("h3", {}, `Completion ${row.number}`);
  const text = row.text.trim()
    ? element("p", { className: "text", dir: "auto", translate: false }, beginning(row.text.trim(), SHOWN))
    : element("p", { className: "text aside" }, row.text ? "(white space only)" : "(empty)");
  const made = element("li", { className: "row" }, rankBadge(row), title, score(row), text);
  made.dataset.number = row.number;
  if (row.score === null) made.append(element("p", { className: "why" }, why(row)));
  if (row.score !== null || row.members.length) made.append(chart(row, scale));
  return made;
}

function rankBadge({ rank }) {
  if (rank === null) return element("p", { className: "rank none" }, element("span", { className: "unseen" }, "Not ranked"));
  return element("p", { className: rank === 1 ? "rank first" : "rank" }, element("span", { className: "unseen" }, "Rank "), String(rank));
}

function score(row) {
  if (row.score === null) return element("p", { className: "score none" }, row.error === undefined ? "Abstained" : "Failed");
  const value = element("data", { value: String(row.score), title: String(row.score) }, number(row.score));
  const found = element("p", { className: "score" }, element("span", { className: "unseen" }, "Score "), value);
  if (row.spread !== null) found.append(element("span", { className: "spread" }, `spread ${number(row.spread)}`));
  return found;
}

function why({ error }) {
  if (error === undefined) return "The reward gave this completion no score, which is not a score of 0.";
  return `It could not be scored: ${error}`;
}

/** A scale that has 0 and every value on it, with round numbers along it. */
function scaleFor(values) {
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values) || (low ? 0 : 1);
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high; tick++) ticks.push(tick * step);
  const place = (value) => `${((100 * (value - low)) / (high - low)).toFixed(3)}%`;
  return { low, high, ticks, place };
}

function label(tick) {
  return Number(tick.toPrecision(6)).toLocaleString("en", { maximumSignificantDigits: 6 }).replace("-", "−");
}

function axis({ ticks, place }) {
  const labels = ticks.map((tick) => drawn("text", { x: place(tick), y: 14, class: tick === 0 ? "tick zero" : "tick" }, label(tick)));
  return element("div", { className: "axis", "aria-hidden": "true" }, drawn("svg", { height: 20 }, ...labels));
}

function chart(row, { low, high, ticks, place }) {
  const { score: value, members } = row;
  const height = members.length ? 36 : 20;
  const lines = ticks.map((tick) => drawn("line", { x1: place(tick), x2: place(tick), y1: 0, y2: height, class: tick === 0 ? "zero" : "grid" }));
  const made = drawn("svg", { class: "chart", height, role: "img", "aria-label": description(row, number(low), number(high)) }, ...lines);
  if (value !== null) {
    const [left, right] = [Math.min(0, value), Math.max(0, value)].map((end) => Number.parseFloat(place(end)));
    const width = `${(right - left).toFixed(3)}%`;
    made.append(drawn("rect", { x: `${left}%`, width, y: 4, height: 12, rx: 2, class: value < 0 ? "bar below" : "bar" }));
  }
  if (members.length) {
    const values = members.map((member) => member.value);
    made.append(drawn("line", { x1: place(Math.min(...values)), x2: place(Math.max(...values)), y1: 27, y2: 27, class: "range" }));
    for (const member of members) {
      const told = drawn("title", {}, `${member.name}: ${number(member.value)}`);
      made.append(drawn("circle", { cx: place(member.value), cy: 27, r: 4.5, class: "mark" }, told));
    }
  }
  return made;
}

function description({ score: value, members, spread }, from, to) {
  const parts = [value === null ? "No score" : `Score ${number(value)}`];
  if (members.length) parts.push(members.map((member) => `${member.name} ${number(member.value)}`).join(", "));
  if (spread !== null) parts.push(`spread ${number(spread)}`);
  return `${parts.join("; ")}. On a scale from ${from} to ${to}.`;
}

function legend(rows) {
  const made = element("p", { className: "legend" }, element("span", {}, swatch("bar"), "score"));
  if (rows.some(({ members }) => members.length)) made.append(" ", element("span", {}, swatch("dot"), "one member’s score"));
  if (rows.some(({ spread }) => spread !== null)) made.append(" ", element("span", {}, "spread: the members’ standard deviation"));
  return made;
}

function swatch(kind) {
  return element("span", { className: `swatch ${kind}`, "aria-hidden": "true" });
}

function table(rows) {
  const names = rows[0].details.map(([name]) => name);
  const columns = ["score", ...names].map((name, place) => {
    const values = rows.map((row) => (place ? row.details[place - 1][1] : row.score));
    const comparable = place === 0 || MEMBER.test(name);
    return { name, values, best: comparable ? Math.max(...values.filter((value) => value !== null)) : null };
  });
  const head = element("tr", {}, heading("Completion", "col"), ...columns.map(({ name }) => heading(name, "col")));
  const body = rows.map((row, line) => element("tr", {}, heading(String(row.number), "row"), ...columns.map((column) => cell(column, line))));
  const made = element("table", {}, element("caption", {}, "All numbers, the best of each column in bold"));
  made.append(element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { className: "scrolled", role: "region", "aria-label": "All numbers", tabIndex: 0 }, made);
}

function heading(text, scope) {
  return element("th", { scope }, text);
}

function cell({ values, best }, line) {
  const value = values[line];
  if (value === null) return element("td", { className: "aside" }, "none");
  const text = number(value);
  return element("td", {}, value === best ? element("strong", {}, text) : text);
}
