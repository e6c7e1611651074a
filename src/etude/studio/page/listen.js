"use strict";

const HEARD_SECONDS = 1; // of each excerpt, before a question can be answered
const PAUSE = 600; // milliseconds between the two excerpts of a pair
const WORDS = {
  single: {
    task: "Real or generated?", asked: "Is this real music, or was it generated?", answers: ["real", "generated"],
    labels: ["Real", "Generated"], excerpts: (n, s) => `You hear ${n} excerpts of ${s} seconds. Half of them are real music, half ` +
      "were made by a computer model, in random order. Say of each which it is.",
  },
  pairs: {
    task: "Which one is real?", asked: "Which one is real music?", answers: ["first", "second"],
    labels: ["A is real", "B is real"], excerpts: (n, s) => `You hear ${n} pairs of excerpts, each of ${s} seconds. One of the two ` +
      "is real music, the other was made by a computer model. Say which one is real.",
  },
};
const LETTERS = ["A", "B"];
const ICONS = `<svg viewBox="0 0 24 24" aria-hidden="true"><path class="play" d="M7 3.5v17l14-8.5z"/>` +
  `<path class="stop" d="M5 5h14v14H5z"/></svg>`;

const $ = (id) => document.getElementById(id);
let about = null; // what the test is
let state = null; // how far the session is
let players = []; // of the question: {audio, button, heard, over}
let choice = null; // "one" or "two"
let shownAt = 0; // when the question was shown
let busy = false; // while a request is under way
let timer = 0; // between the two excerpts of a pair
const sounds = new Map(); // name: promise of an address inside the browser

// --- the server ---

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The test does not answer: it was ended. Your answers are saved; start it again with the same command.");
  }
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(sentence(found.error)), { status: answer.status });
  return found;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function load(name) {
  if (!sounds.has(name)) {
    sounds.set(name, fetch(`/sounds/${name}`).then((answer) => {
      if (!answer.ok) throw new Error("A sound can't be loaded. Reload the page to go on.");
      return answer.blob();
    }).then((blob) => URL.createObjectURL(blob)).catch((error) => { sounds.delete(name); throw error; }));
  }
  return sounds.get(name);
}

// Does one thing at a time; what goes wrong is told.
async function once(work, waiting) {
  if (busy) return;
  busy = true;
  $("error").hidden = true;
  const patience = setTimeout(() => { $("wait").textContent = waiting || "One moment ..."; $("wait").hidden = false; }, 250);
  try {
    await work();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
    if (error.status === 409 && state) await catchUp();
    if (error.status === 404) { location.hash = ""; state = null; show("start"); }
  } finally {
    clearTimeout(patience);
    $("wait").hidden = true;
    busy = false;
  }
}

async function catchUp() {
  try { await proceed(await ask(`/sessions/${state.session}`)); } catch { /* the first message stays */ }
}

// --- the pages ---

function show(id) {
  stop();
  document.activeElement?.blur(); // a hidden field keeps the focus until the next frame, and would take the next key
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
  document.body.dataset.page = id;
  window.scrollTo(0, 0);
  if (id === "start") $("name").focus();
}

async function proceed(next) {
  state = next;
  location.hash = state.session;
  if (state.finished) return reveal();
  if (state.answered === state.questions) return show("end");
  return question();
}

async function question() {
  const words = WORDS[state.mode];
  stop();
  choice = null;
  players = [];
  const names = state.clips;
  const sources = await Promise.all(names.map(load));
  for (const name of state.next) load(name).catch(() => {});
  $("count").textContent = `Question ${state.answered + 1} of ${state.questions}`;
  $("bar").style.setProperty("--done", state.answered / state.questions);
  $("bar").setAttribute("aria-valuemax", state.questions);
  $("bar").setAttribute("aria-valuenow", state.answered);
  $("asked").textContent = words.asked;
  $("one").lastElementChild.textContent = words.labels[0];
  $("two").lastElementChild.textContent = words.labels[1];
  $("undo").disabled = state.answered === 0;
  $("players").replaceChildren(...sources.map((source, place) => player(source, place, sources.length)));
  $("players").classList.toggle("alone", sources.length === 1);
  choose(null);
  show("question");
  shownAt = performance.now();
}

function player(source, place, count) {
  const audio = new Audio(source);
  const button = document.createElement("button");
  const name = count > 1 ? LETTERS[place] : "";
  button.className = "player";
  button.innerHTML = `<span class="disc">${ICONS}</span><span class="name"></span>`;
  const label = button.querySelector(".name");
  if (name) label.append(name); else label.append("Play ", key("Space"));
  button.setAttribute("aria-label", name ? `Play ${name}` : "Play");
  const own = { audio, button, heard: false, over: false };
  audio.addEventListener("timeupdate", () => advance(own));
  audio.addEventListener("ended", () => { own.over = true; mark(own, false); });
  button.addEventListener("click", () => (own.button.classList.contains("playing") ? stop() : play(place, false)));
  players.push(own);
  return button;
}

function key(text) {
  const kbd = document.createElement("kbd");
  kbd.textContent = text;
  return kbd;
}

function advance(own) {
  const { audio, button } = own;
  button.style.setProperty("--played", audio.duration ? audio.currentTime / audio.duration : 0);
  if (!own.heard && audio.currentTime >= Math.min(HEARD_SECONDS, (audio.duration || 1) * 0.9)) {
    own.heard = true;
    button.classList.add("heard");
    choose(choice);
  }
}

function mark(own, playing) {
  own.button.classList.toggle("playing", playing);
  if (!playing && own.over) own.button.style.setProperty("--played", 1);
}

const isPlaying = () => timer !== 0 || players.some((own) => own.button.classList.contains("playing"));

function stop() {
  clearTimeout(timer);
  timer = 0;
  for (const own of players) {
    own.audio.onended = null;
    own.audio.pause();
    mark(own, false);
  }
  for (const button of document.querySelectorAll(".replays .playing")) button.classList.remove("playing");
}

async function play(place, goesOn) {
  stop();
  const own = players[place];
  own.audio.currentTime = 0;
  own.over = false;
  own.audio.onended = () => {
    if (goesOn && place + 1 < players.length) timer = setTimeout(() => { timer = 0; play(place + 1, true); }, PAUSE);
  };
  mark(own, true);
  try {
    await own.audio.play();
  } catch (error) {
    mark(own, false);
    if (error.name !== "AbortError") {
      $("error").textContent = `The sound can't be played (${error.name}). Reload the page, or try another browser.`;
      $("error").hidden = false;
    }
  }
}

function playOrStop() {
  if (isPlaying()) return stop();
  const next = players.findIndex((own) => !own.over);
  return play(next < 0 ? 0 : next, true);
}

function hintToListen() {
  $("hint").textContent = players.length > 1 ? "Listen to both first, please." : "Listen first, please.";
}

function choose(which) {
  const ready = players.length > 0 && players.every((own) => own.heard);
  if (which && !ready) return hintToListen();
  choice = which;
  for (const id of ["one", "two"]) {
    $(id).setAttribute("aria-checked", id === which);
    $(id).tabIndex = 0;
  }
  $("confirm").disabled = !which;
  const many = players.length > 1;
  $("hint").textContent = !ready ? (many ? "Listen to both excerpts." : "Listen to the excerpt.")
    : which ? "Confirm, or change your mind." : many ? "Which one is it?" : "What do you think?";
}

function confirm() {
  if (!choice) return players.every((own) => own.heard) ? undefined : hintToListen();
  const words = WORDS[state.mode];
  const body = {
    number: state.answered, answer: words.answers[choice === "one" ? 0 : 1],
    seconds: Math.round(performance.now() - shownAt) / 1000,
  };
  return once(async () => {
    const heard = state.clips;
    const next = await ask(`/sessions/${state.session}/answers`, body);
    for (const name of heard) forget(name);
    await proceed(next);
  });
}

function forget(name) {
  const sound = sounds.get(name);
  sounds.delete(name);
  if (sound) sound.then((address) => URL.revokeObjectURL(address)).catch(() => {});
}

const undo = () => once(async () => {
  if (state.answered > 0) await proceed(await ask(`/sessions/${state.session}/undo`, {}));
});

// --- beginning ---

function begin(pick) {
  const name = $("name").value.trim();
  if (!name) return $("name").focus();
  return once(async () => {
    const found = await ask("/sessions", { name, choice: pick });
    if (found.unfinished) {
      const { answered, questions } = found.unfinished;
      $("earlier").textContent = `Welcome back, ${name}. You have answered ${answered} of ${questions} questions.`;
      $("form").hidden = true;
      $("again").hidden = false;
      $("resume").focus();
      return;
    }
    await proceed(found);
  }, "The music is being prepared ...");
}

function welcome() {
  const words = WORDS[about.mode];
  document.title = words.task;
  $("task").textContent = words.task;
  $("explained").textContent = words.excerpts(about.questions, about.seconds);
  $("form").hidden = false;
  $("again").hidden = true;
  if (!$("name").value) $("name").value = about.name;
  show("start");
}

// --- the result ---

async function reveal() {
  const found = await ask(`/sessions/${state.session}/result`, {});
  const share = found.right / found.questions;
  $("listener").textContent = `${found.listener}, thank you for listening.`;
  $("score").textContent = `${found.right} of ${found.questions} right`;
  for (const [name, value] of [["low", found.low], ["high", found.high], ["share", share]]) {
    $("scale").style.setProperty(`--${name}`, value);
  }
  $("meaning").textContent = "Guessing gets about half. The band shows where your true share may lie.";
  $("sentences").replaceChildren(...found.sentences.map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  }));
  $("list").replaceChildren(...found.answers.map(line));
  $("saved").textContent = `Your answers are saved in ${found.results}.`;
  show("result");
}

function line(given, place) {
  const item = document.createElement("li");
  const right = given.answer === given.right;
  const names = { real: "real", generated: "generated", first: "A", second: "B" };
  item.className = right ? "right" : "wrong";
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.textContent = right ? "✓" : "✗";
  mark.setAttribute("aria-label", right ? "right" : "wrong");
  const told = document.createElement("span");
  told.className = "told";
  const was = state.mode === "pairs" ? `${names[given.right]} was real` : given.right === "real" ? "Real music" : "Generated";
  const details = document.createElement("small");
  details.textContent = [
    right ? "" : `you said ${names[given.answer]}`, given.genre || "",
    ...given.clips.map((clip, number) => (given.clips.length > 1 ? `${LETTERS[number]}: ` : "") +
      (clip.was === "real" ? clip.piece : `${clip.piece} of ${given.run}`)),
  ].filter(Boolean).join(" · ");
  told.append(`${place + 1}. ${was}`, details);
  const replays = document.createElement("span");
  replays.className = "replays";
  replays.append(...given.clips.map((clip, number) => replay(clip, given.clips.length > 1 ? LETTERS[number] : "", place)));
  item.append(mark, told, replays);
  return item;
}

function replay(clip, letter, place) {
  const button = document.createElement("button");
  button.textContent = `▶ ${letter}`.trim();
  button.setAttribute("aria-label", `Play ${letter} of question ${place + 1} again`);
  button.addEventListener("click", async () => {
    const again = button.classList.contains("playing");
    stop();
    if (again) return;
    try {
      const own = { audio: new Audio(await load(clip.clip)), button, over: false };
      own.audio.addEventListener("ended", () => mark(own, false));
      players = [own];
      mark(own, true);
      await own.audio.play();
    } catch { stop(); }
  });
  return button;
}

const anew = () => {
  location.hash = "";
  state = null;
  welcome();
};

// --- keys and mouse ---

const KEYS = {
  question: {
    " ": playOrStop, Enter: confirm, u: undo, 1: () => choose("one"), 2: () => choose("two"),
    ArrowLeft: () => choose("one"), ArrowRight: () => choose("two"),
    a: () => players.length > 1 && play(0, false), b: () => players.length > 1 && play(1, false),
  },
  end: { Enter: () => once(reveal), u: undo },
  result: { Enter: anew },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const page = document.body.dataset.page;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (page === "start" && !$("again").hidden && pressed === "n") return void begin("new");
  const act = (KEYS[page] || {})[pressed];
  const focused = document.activeElement;
  if (!act || focused instanceof HTMLInputElement) return;
  if ((pressed === " " || pressed === "Enter") && focused.matches("button:focus-visible")) return; // the button's own
  event.preventDefault();
  act();
});

// A button that was clicked keeps no focus, so that the next key means what it always means.
document.addEventListener("click", (event) => {
  const button = event.target instanceof Element ? event.target.closest("button") : null;
  if (button && event.detail > 0) button.blur();
});

for (const [id, act] of Object.entries({
  one: () => choose("one"), two: () => choose("two"), confirm, undo, back: undo, show: () => once(reveal), more: anew,
  resume: () => begin("continue"), anew: () => begin("new"),
})) $(id).addEventListener("click", act);
$("form").addEventListener("submit", (event) => { event.preventDefault(); begin(null); });

once(async () => {
  about = await ask("/test");
  $("keys").replaceChildren(...[
    ["Space", "play, stop"], ...(about.mode === "pairs" ? [["A", ""], ["B", "play one"]] : []), ["1", ""], ["2", "answer"],
    ["Enter", "confirm"], ["U", "undo"],
  ].flatMap(([name, meaning]) => [key(name), meaning ? ` ${meaning}\u2003` : " "]));
  welcome();
  const session = location.hash.slice(1);
  if (session) await proceed(await ask(`/sessions/${encodeURIComponent(session)}`));
}, "Loading ...");
