// The form: what is typed, sent and told. What comes back is drawn by ranking.js and rendering.js.

import { count, element } from "./dom.js";
import { ranked, rankingView, verdict } from "./ranking.js";
import { renderingDisclosure } from "./rendering.js";
import { ServerError, ask, key } from "./server.js";

const AT_FIRST = 2; // completions
const SHORT = 12; // characters of a fingerprint

const find = (id) => document.getElementById(id);
const completionFields = () => [...find("completions").children];

let running = null; // the AbortController of the request that is on its way
let afterKey = null; // what is done again once there is a key
let mostItems = Infinity; // that the server takes at once
let scored = null; // the samples that the ranking is of, as JSON

// --- What is typed -----------------------------------------------------------------------------------------------------

function isConversation() {
  return document.querySelector("input[name=kind]:checked").value === "conversation";
}

function showKind() {
  find("system-field").hidden = !isConversation();
  find("prompt-label").textContent = isConversation() ? "User message" : "Prompt";
}

function addCompletion() {
  const field = find("completion-template").content.cloneNode(true).firstElementChild;
  field.querySelector("button").addEventListener("click", () => removeCompletion(field));
  find("completions").append(field);
  numberCompletions();
  return field.querySelector("textarea");
}

function removeCompletion(field) {
  const neighbour = field.nextElementSibling ?? field.previousElementSibling;
  field.remove();
  numberCompletions();
  neighbour.querySelector("textarea").focus();
  markStale();
}

function numberCompletions() {
  const fields = completionFields();
  fields.forEach((field, place) => {
    const [label, remove, area] = [field.querySelector("label"), field.querySelector("button"), field.querySelector("textarea")];
    area.id = `completion-${place + 1}`;
    label.htmlFor = area.id;
    label.textContent = `Completion ${place + 1}`;
    remove.setAttribute("aria-label", `Remove completion ${place + 1}`);
    remove.hidden = fields.length === 1;
  });
  find("add").disabled = fields.length >= mostItems;
  find("add").textContent = find("add").disabled ? `The server takes ${mostItems} at once` : "Add a completion";
}

/** One sample a completion, as POST /v1/rewards takes them. */
function samples() {
  const [system, prompt] = [find("system").value, find("prompt").value];
  return completionTexts().map((text) => {
    if (!isConversation()) return { prompt, completion: text };
    const turns = [
      { role: "system", content: system },
      { role: "user", content: prompt },
    ];
    return { prompt: turns.filter(({ content }) => content), completion: [{ role: "assistant", content: text }] };
  });
}

function completionTexts() {
  return completionFields().map((field) => field.querySelector("textarea").value);
}

// --- What is told ------------------------------------------------------------------------------------------------------

function tell(text) {
  find("status").textContent = text;
}

function showError(error, place = "error") {
  for (const id of ["error", "key-error"]) {
    find(id).hidden = id !== place || !error;
    find(id).replaceChildren();
  }
  if (!error) return;
  find(place).append(element("p", {}, error.message));
  if (error.requestId) find(place).append(element("p", { className: "aside" }, "Request ", element("code", {}, error.requestId)));
}

function showReward({ model, fingerprint }) {
  if (model) {
    find("model").textContent = model;
    document.title = `${model} · rm-plugins`;
  }
  find("fingerprint-fact").hidden = !fingerprint;
  if (!fingerprint) return;
  find("fingerprint").dataset.whole = fingerprint;
  find("fingerprint").textContent = fingerprint.slice(0, SHORT);
  find("fingerprint").title = fingerprint;
}

function markStale() {
  find("stale").hidden = scored === null || scored === JSON.stringify(samples());
}

function busy(on) {
  find("score").setAttribute("aria-disabled", String(on)); // and not disabled, which would take the focus away
  find("score").textContent = on ? "Scoring…" : "Score";
  find("cancel").hidden = !on;
}

// --- What is sent ------------------------------------------------------------------------------------------------------

async function connect() {
  try {
    const info = await ask("v1/info");
    mostItems = info.max_items ?? Infinity;
    numberCompletions();
    showReward(info);
    showError(null);
  } catch (error) {
    find("model").textContent = "unknown";
    refused(error, connect);
  }
}

async function score() {
  if (running) return;
  const completions = completionTexts();
  if (!completions.some(Boolean)) {
    showError(new Error("There is nothing to score: write at least one completion."));
    find("completion-1").focus();
    return;
  }
  showError(null);
  tell("");
  running = new AbortController();
  busy(true);
  const options = { signal: running.signal, onWait: (seconds) => tell(`The server is busy; trying again in ${count(seconds, "second")}.`) };
  const body = { samples: samples() };
  const began = performance.now();
  try {
    const answer = await ask("v1/rewards", body, options);
    const rows = ranked(answer, completions);
    scored = JSON.stringify(body.samples);
    showReward(answer);
    showRanking(rows, answer.usage ?? {}, performance.now() - began);
    await showRenderings(body, options);
  } catch (error) {
    if (error.name === "AbortError") tell("Cancelled.");
    else refused(error, score);
  } finally {
    if (document.activeElement === find("cancel")) find("score").focus();
    running = null;
    busy(false);
  }
}

function refused(error, again) {
  tell("");
  if (error.status === 401) {
    afterKey = again;
    find("key-title").textContent = key.get() ? "The server does not take this key" : "This server asks for a key";
    find("key-form").hidden = false;
    showError(error, "key-error");
    find("key").focus();
    return;
  }
  showError(error instanceof ServerError ? error : new Error(`The page could not read the server's answer: ${error.message}`));
}

function showRanking(rows, usage, milliseconds) {
  const facts = [count(rows.length, "completion"), `${Math.round(milliseconds).toLocaleString("en")} ms`];
  if (usage.tokens) facts.push(count(usage.tokens, "token"));
  if (usage.truncated) facts.push(`${usage.truncated} truncated`);
  find("summary").textContent = facts.join(" · ");
  markStale(); // of what was typed meanwhile
  find("ranking").replaceChildren(...rankingView(rows));
  find("results").classList.add("filled");
  tell(verdict(rows));
  const title = find("results-title").getBoundingClientRect();
  if (title.top < 0 || title.bottom > window.innerHeight) find("results").scrollIntoView({ block: "start" });
}

/** Put what the models saw under each completion; scores stand without it. */
async function showRenderings(body, options) {
  const items = find("ranking").querySelectorAll("[data-number]");
  try {
    const { renderings } = await ask("v1/render", body, options);
    for (const item of items) {
      const found = renderings[item.dataset.number - 1] ?? [];
      if (found.length) item.append(renderingDisclosure(found));
    }
    if (!renderings.some((found) => found.length)) note("No part of this reward is a model, so there are no tokens to show.");
  } catch (error) {
    if (error.name === "AbortError") throw error;
    note(`The models' input could not be shown: ${error.message}`);
  }
}

function note(text) {
  find("ranking").append(element("p", { className: "aside" }, text));
}

// --- What is pressed ---------------------------------------------------------------------------------------------------

find("texts").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
find("texts").addEventListener("input", markStale);
find("cancel").addEventListener("click", () => running?.abort());
find("add").addEventListener("click", () => {
  addCompletion().focus();
  markStale();
});
for (const choice of document.querySelectorAll("input[name=kind]")) choice.addEventListener("change", showKind);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || find("key-form").contains(event.target)) return;
  event.preventDefault();
  score();
});

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(find("key").value);
  find("key").value = "";
  find("key-form").hidden = true;
  find("key-fact").hidden = false;
  showError(null);
  find("prompt").focus();
  const again = afterKey;
  afterKey = null;
  again?.();
});
find("forget-key").addEventListener("click", () => {
  key.forget();
  find("key-fact").hidden = true;
  tell("The key is forgotten.");
});

find("copy").addEventListener("click", async () => {
  const shown = find("fingerprint");
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(shown.dataset.whole);
    tell("The fingerprint is copied.");
    find("copy").textContent = "Copied";
    setTimeout(() => (find("copy").textContent = "Copy"), 2000);
  } else {
    // Browsers only give the clipboard to pages that came over TLS or from this machine.
    shown.textContent = shown.dataset.whole;
    getSelection().selectAllChildren(shown);
    tell("The whole fingerprint is selected, to be copied.");
  }
});

if (/Mac|iP(hone|ad|od)/.test(navigator.userAgentData?.platform ?? navigator.platform)) find("modifier").textContent = "Cmd";

for (let place = 0; place < AT_FIRST; place++) addCompletion();
showKind();
find("key-fact").hidden = !key.get();
connect();
