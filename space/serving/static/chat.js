"use strict";
const byId = (id) => document.getElementById(id);
const [form, question, send, stop, talk, status] = ["form", "question", "send", "stop", "talk", "status"].map(byId);
let messages = [];
let dropped = 0; // the oldest messages, which the model no longer sees; always questions with their answers
let running = null; // aborts the answer under way
const MOST = 63; // messages of one request: the API takes 64, and the first is to be a question

async function introduce() {
  const about = await (await fetch("about")).json();
  byId("model").textContent = document.title = about.model;
  const version = about.version ? `version ${about.version}` : "";
  const commit = about.commit ? `commit ${about.commit.slice(0, 8)}` : "";
  byId("version").textContent = [version, commit].filter(Boolean).join(", ") || about.label;
  byId("version").title = about.engine;
  byId("origin").textContent = about.origin;
  if (about.examples.length) byId("try").textContent = "Ask the model a question, for example";
  byId("examples").hidden = about.examples.length === 0;
  for (const text of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => ask(text));
    const item = document.createElement("li");
    item.append(button);
    byId("examples").append(item);
  }
}

function show(role, text) {
  const [item, who, body] = ["li", "span", "span"].map((name) => document.createElement(name));
  item.className = role;
  who.className = "who";
  who.textContent = role === "user" ? "You: " : "Answer: ";
  body.className = "text";
  body.textContent = text;
  item.append(who, body);
  talk.append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function note(item, text) {
  const line = document.createElement("span");
  line.className = "note";
  line.textContent = text;
  item.append(line);
}

function setBusy(busy) {
  send.hidden = busy;
  stop.hidden = !busy;
  byId("new").hidden = busy || messages.length === 0;
  byId("welcome").hidden = busy || messages.length > 0;
}

async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new Error(data.error.message);
      if (data.choices.length) yield data.choices[0];
    }
  }
}

async function answer(item) {
  const body = item.querySelector(".text");
  const first = Math.max(dropped, messages.length - MOST);
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages: messages.slice(first), stream: true, truncation: "auto" }),
    signal: running.signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);  // a proxy's error is a page
    throw new Error(told?.error?.message ?? `status ${response.status}`);
  }
  const unseen = first + Number(response.headers.get("X-Dropped-Messages"));
  if (unseen > dropped) {
    const which = unseen > 2 ? `your ${unseen / 2} oldest questions and their answers`
      : "your oldest question and its answer";
    note(item, `The conversation is too long for the model. It no longer sees ${which}.`);
    dropped = unseen;
  }
  for await (const choice of pieces(response)) {
    const stays = talk.closest("main");
    const atEnd = stays.scrollHeight - stays.scrollTop - stays.clientHeight < 80;
    body.textContent += choice.delta.content ?? "";
    if (choice.finish_reason === "length") note(item, "The answer was cut off: it reached its limit.");
    if (atEnd) item.scrollIntoView({ block: "end" });
  }
}

async function ask(text) {
  if (running) return;
  status.textContent = "";
  running = new AbortController();
  messages.push({ role: "user", content: text });
  setBusy(true);
  const mine = show("user", text);
  const item = show("assistant", "");
  item.setAttribute("aria-busy", "true");
  const said = item.querySelector(".text");
  try {
    await answer(item);
  } catch (error) {
    if (error.name === "AbortError") note(item, "Stopped.");
    else status.textContent = `No answer: ${error.message}`;
  }
  item.setAttribute("aria-busy", "false");
  if (said.textContent) {
    messages.push({ role: "assistant", content: said.textContent });
  } else { // the question goes back to where it can be changed and sent again
    messages.pop();
    mine.remove();
    item.remove();
    question.value = text;
    grow();
  }
  running = null;
  setBusy(false);
  question.focus();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || running) return;
  question.value = "";
  grow();
  ask(text);
});
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
byId("new").addEventListener("click", () => {
  messages = [];
  dropped = 0;
  talk.replaceChildren();
  status.textContent = "";
  setBusy(false);
  question.focus();
});
introduce().catch((error) => { status.textContent = `The model does not answer: ${error.message}. Reload the page to try again.`; });
