// The rating page: asks one question at a time and goes on when the answer is on the disk.
const $ = (id) => document.getElementById(id);
const left = $("left"), right = $("right");
const SIDES = [["left", "Left is better", "1", "←"], ["same", "Same", "2", "↓"], ["right", "Right is better", "3", "→"]];
const GRADES = ["bad", "poor", "fair", "good", "excellent"].map((word, i) => [`${i + 1}`, word, `${i + 1}`]);
const ARROWS = { ArrowLeft: "1", ArrowDown: "2", ArrowRight: "3" };
const KINDS = {
  speaking: "It speaks", listening: "It listens", conversation: "It speaks and listens", motion: "It moves",
  generalisation: "It speaks", long: "A long video",
};

let state = null, busy = false, shown = null;

// --- what is asked

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer, data;
  try {
    answer = await fetch(path, options);
    data = await answer.json();
  } catch {
    throw new Error("the rating program does not answer; nothing was lost, start it again and repeat the answer");
  }
  if (!answer.ok) throw new Error(data.error ?? `status ${answer.status}`);
  return data;
}

// One request at a time: a second key that comes before the first answer is saved is dropped.
async function once(work, done = () => {}) {
  if (busy) return;
  busy = true;
  document.body.dataset.busy = "1";
  try {
    show(await work());
    done();
  } catch (error) {
    complain(error.message);
  } finally {
    busy = false;
    delete document.body.dataset.busy;
  }
}

const enter = (name) => once(() => ask(`/v1/state?rater=${encodeURIComponent(name)}`), () => {
  localStorage.setItem("rater", state.rater);
});

function vote(choice) {
  if (!state?.question) return;
  const { number: question, dimension } = state.question;
  once(() => ask("/v1/votes", { rater: state.rater, question, choice }), () => note(`${dimension}: saved`));
}

function undo() {
  if (state?.undo) once(() => ask("/v1/undo", { rater: state.rater }), () => note("taken back"));
}

// --- what is shown

function view(name) {
  if (document.body.dataset.view !== name) document.activeElement?.blur(); // the field would go on taking keys
  document.body.dataset.view = name;
  for (const id of ["welcome", "task", "end"]) $(id).hidden = id !== name;
  $("who").hidden = name === "welcome";
}

function show(next) {
  state = next;
  $("name").textContent = state.rater;
  const bar = $("bar");
  bar.setAttribute("aria-valuenow", state.done);
  bar.setAttribute("aria-valuemax", state.total);
  $("count").textContent = `${state.done} of ${state.total}`;
  bar.firstElementChild.style.width = `${(100 * state.done) / state.total}%`;
  document.body.dataset.done = state.done;
  if (!state.question) {
    hush();
    shown = null;
    $("sum").textContent = `All ${state.total} answers are saved. Thank you, ${state.rater}.`;
    return view("end");
  }
  view("task");
  question(state.question);
  const screen = `${state.rater} ${state.question.screen}`;
  if (screen !== shown) load(state.question);
  shown = screen;
}

function question(asked) {
  $("dimension").textContent = asked.dimension;
  $("hint").textContent = asked.hint;
  $("places").replaceChildren(...asked.dimensions.map((name, i) => {
    const item = Object.assign(document.createElement("li"), { textContent: name });
    item.className = i < asked.place ? "past" : i === asked.place ? "now" : "";
    return item;
  }));
  $("choices").replaceChildren(...(asked.pair ? SIDES : GRADES).map(([choice, word, ...keys]) => {
    const button = document.createElement("button");
    button.className = "button choice";
    button.dataset.choice = choice;
    button.append(word, " ", ...keys.map((key) => Object.assign(document.createElement("kbd"), { textContent: key })));
    button.onclick = () => vote(choice);
    return button;
  }));
  $("undo").disabled = !state.undo;
}

function load(asked) {
  const rater = `rater=${encodeURIComponent(state.rater)}`, base = `/v1/screens/${asked.screen}`;
  $("kind").textContent = `${KINDS[asked.kind]}${asked.seconds ? `, ${Math.round(asked.seconds)} s` : ""}`;
  $("prompt").textContent = asked.prompt ? `“${asked.prompt}”` : "no text";
  $("reference").hidden = !asked.reference;
  if (asked.reference) $("reference").src = `${base}/reference?${rater}`;
  $("second").hidden = !asked.pair;
  $("left-label").textContent = asked.pair ? "Left" : "How good is it?";
  left.src = `${base}/left?${rater}`;
  if (asked.pair) right.src = `${base}/right?${rater}`;
  else right.removeAttribute("src"), right.load();
  restart();
}

// --- playing: both in step, the left one heard; or one alone with its own sound

const pair = () => !$("second").hidden;
const videos = () => (pair() ? [left, right] : [left]);
const play = (video) => video.play().catch(() => {}); // before a first gesture a browser plays nothing aloud

function hush() { for (const video of [left, right]) video.pause(); }

function restart() {
  hush();
  left.muted = false;
  right.muted = true;
  for (const video of videos()) { video.currentTime = 0; play(video); }
}

function alone(video) {
  if (!videos().includes(video)) return;
  hush();
  video.muted = false;
  video.currentTime = 0;
  play(video);
}

function toggle() {
  if (videos().some((video) => !video.paused && !video.ended)) return hush();
  if (videos().every((video) => video.ended) || Math.abs(left.currentTime - (pair() ? right : left).currentTime) > 0.1) return restart();
  for (const video of videos()) if (!video.ended) play(video);
}

setInterval(() => { // two videos drift apart when the machine is busy
  if (!pair() || left.paused || right.paused || left.ended || right.ended) return;
  if (Math.abs(left.currentTime - right.currentTime) > 0.05) right.currentTime = left.currentTime;
}, 250);

for (const video of [left, right]) {
  video.onerror = () => video.getAttribute("src") && complain(`the ${video.id} video cannot be played`);
}

// --- keys, buttons, messages

const ACTS = { " ": toggle, r: restart, a: () => alone(left), d: () => alone(right), u: undo, Backspace: undo };

addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (ACTS[key]) {
    event.preventDefault(); // also keeps Space from pressing the button that was clicked last
    if (!event.repeat) ACTS[key]();
    return;
  }
  if (document.body.dataset.view !== "task" || event.repeat) return;
  const pressed = state.question.pair ? ARROWS[key] ?? key : key;
  const button = [...$("choices").children].find((b) => b.querySelector("kbd").textContent === pressed);
  if (button) {
    event.preventDefault();
    vote(button.dataset.choice);
  }
});
addEventListener("keyup", (event) => event.key === " " && event.target.tagName === "BUTTON" && event.preventDefault());
for (const button of document.querySelectorAll("[data-act]")) button.onclick = () => ACTS[button.dataset.act]();
$("welcome").onsubmit = (event) => { event.preventDefault(); enter($("rater").value); };
$("leave").onclick = () => { hush(); localStorage.removeItem("rater"); location.reload(); };

let clearing = 0;
function note(text) {
  $("saved").textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => { $("saved").textContent = ""; }, 1500);
}

function complain(text) {
  const line = Object.assign(document.createElement("p"), { textContent: text });
  $("toasts").append(line);
  setTimeout(() => line.remove(), 8000);
}

const known = localStorage.getItem("rater");
if (known) await enter(known);
if (!state) { view("welcome"); $("rater").focus(); }
