// The page: one WebSocket, one player, and the buttons.
import { Player } from "./player.js";
import { openMicrophone, playPartner, toPcm16 } from "./microphone.js";

const $ = (id) => document.getElementById(id);
const options = new URLSearchParams(location.search);
const player = new Player($("view"));
// What the bundled model does when it is asked.
const PRESETS = ["looks calm", "turns the head to the left", "turns the head to the right", "tilts the head to the left", "closes the eyes"];
const STATES = { silence: "idle", speak: "speaking", listen: "listening", both: "speaking and listening" };
const KINDS = { vp8: 1, jpeg: 2, pcm: 3 };

let socket = null, chunkSeconds = 0.5, character = options.get("character"), partner = null, times = [];
let stopMicrophone = null, stopPartner = null, opening = false, interruptedAt = 0, spoken = 0;

const send = (event) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event));

// --- connection

async function connect() {
  const decodes = "VideoDecoder" in window && (await VideoDecoder.isConfigSupported({ codec: "vp8" })).supported;
  const video = options.get("video") ?? (decodes ? "vp8" : "jpeg");
  player.reset();
  connection("connecting", "connecting …");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => send({ type: "session.update", video, character, prompt: $("prompt").value.trim() || null });
  socket.onmessage = ({ data }) => (typeof data === "string" ? events(JSON.parse(data)) : media(data));
  socket.onclose = () => {
    hush();
    if (document.body.dataset.connection !== "busy") connection("closed", "connection lost, trying again …");
    setTimeout(connect, 1500);
  };
}

function media(data) {
  const view = new DataView(data);
  const kind = view.getUint8(0), key = view.getUint8(1) & 1, time = view.getFloat64(8, true);
  if (kind === KINDS.pcm) player.sound(time, new Int16Array(data, 16));
  else if (kind === KINDS.vp8) player.vp8(time, key, new Uint8Array(data, 16));
  else if (kind === KINDS.jpeg) player.jpeg(time, new Uint8Array(data, 16));
}

function events(event) {
  const on = {
    status: () => connection("warming", "the model is warming up …"),
    "session.created": () => {
      connection("live", "live");
      chunkSeconds = event.chunk_seconds;
      player.shape(...event.size);
      select(event.character);
      if (event.prompt && !$("prompt").value) $("prompt").value = event.prompt;
      if (options.get("autospeak") === "1") say({ sample: $("samples").firstElementChild?.dataset.name });
    },
    "session.updated": () => {},
    disclosure: () => { $("disclosure").hidden = !event.ai_generated; $("disclosure").textContent = event.text; },
    "agent.speak_started": () => player.at(event.time, () => speaking(+1)),
    "agent.speak_ended": () => player.at(event.time, () => {
      speaking(-1);
      if (event.interrupted && interruptedAt) $("silence").innerHTML = number(performance.now() - interruptedAt, "ms");
      interruptedAt = 0;
    }),
    "playback.dropped": () => player.drop(event.time),
    stats: () => stats(event),
    error: () => {
      if (event.code === "busy") connection("busy", "another session is live, waiting …");
      else toast(event.message);
    },
    "session.closed": () => {},
  };
  on[event.type]?.();
}

function connection(state, text) {
  document.body.dataset.connection = state;
  $("connection").lastElementChild.textContent = text.replace(" …", "");
  for (const part of document.querySelectorAll(".controls")) part.inert = state !== "live";
  $("veil").hidden = state === "live";
  $("veil").lastElementChild.textContent = text;
  $("still").hidden = state === "live" || !$("still").src;
  $("sound").hidden = state !== "live" || !player.silent;
}

// --- what is shown

const number = (value, unit, digits = 0) => `${value.toFixed(digits)}<small> ${unit}</small>`;

function stats(event) {
  player.at(event.time, () => {
    document.body.dataset.state = event.state;
    $("state").lastElementChild.textContent = STATES[event.state] ?? event.state;
  });
  $("first").innerHTML = number(event.first_frame_ms, "ms");
  $("compute").innerHTML = number(event.compute_ms, "ms");
  $("factor").innerHTML = number(event.realtime_factor, "×", 1);
  times = [...times.slice(-59), event.compute_ms / (1000 * event.duration)];
  const points = times.map((share, i) => `${(i * 240) / 59},${Math.max(1, 38 - 32 * share).toFixed(1)}`);
  $("history").lastElementChild.setAttribute("points", points.join(" "));
}

setInterval(() => {
  document.body.dataset.frames = player.count ?? 0;
  document.body.dataset.clock = player.mode;
  if (document.body.dataset.connection !== "live") return;
  $("fps").innerHTML = number(player.fps, "fps");
  $("buffered").innerHTML = number(1000 * player.buffered, "ms");
  $("sound").hidden = !player.silent;
  send({ type: "playback", time: Math.max(0, player.position) });
}, 250);

function speaking(change) {
  spoken = Math.max(0, spoken + change);
  $("interrupt").disabled = !spoken;
}

function toast(text) {
  const note = document.createElement("p");
  note.textContent = text;
  $("toasts").append(note);
  setTimeout(() => note.remove(), 7000);
}

function button(text, className, run) {
  const made = document.createElement("button");
  made.className = className;
  made.textContent = text;
  made.onclick = run;
  return made;
}

// --- speaking

function say(what) {
  if (!what.sample && !what.speech) return;
  send({ type: "agent.speak", ...what });
  $("interrupt").disabled = false;
}

async function upload(input, path) {
  const [file] = input.files;
  input.value = "";
  if (!file) return null;
  const form = new FormData();
  form.append("file", file);
  try {
    const reply = await fetch(path, { method: "POST", body: form });
    const answer = await reply.json();
    if (reply.ok) return answer;
    toast(answer.error ?? "the upload failed");
  } catch (error) {
    toast(`The upload failed: ${error.message}`);
  }
  return null;
}

$("speech").onchange = async () => { const kept = await upload($("speech"), "/v1/speech"); if (kept) say({ speech: kept.id }); };

function interrupt() {
  interruptedAt = performance.now();
  send({ type: "agent.interrupt" });
}
$("interrupt").onclick = interrupt;
addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("interrupt").disabled) interrupt(); });

// --- listening

function heard(samples) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(toPcm16(samples).buffer);
  const loud = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
  document.querySelector(".meter b").style.width = `${Math.min(100, 400 * loud)}%`;
}

function hush() {
  stopMicrophone?.();
  stopPartner?.();
  stopMicrophone = stopPartner = null;
  spoken = 0;
  $("interrupt").disabled = true;
  $("microphone").setAttribute("aria-pressed", "false");
  document.querySelector(".meter b").style.width = 0;
}

// Opens a source of sound once, however often it is asked for; null when it cannot be, or the connection went.
async function source(open, what) {
  if (opening) return null;
  opening = true;
  const asked = socket;
  try {
    const stop = await open();
    if (asked === socket && socket.readyState === WebSocket.OPEN) return stop;
    stop();
  } catch (error) {
    toast(`${what}: ${error.message}`);
  } finally {
    opening = false;
  }
  return null;
}

$("microphone").onclick = async () => {
  if (stopMicrophone) {
    stopMicrophone();
    stopMicrophone = null;
  } else stopMicrophone = await source(() => openMicrophone(heard), "No microphone");
  $("microphone").setAttribute("aria-pressed", String(!!stopMicrophone));
};

$("partner").onclick = async () => {
  if (stopPartner) { stopPartner(); return; }
  const done = () => { stopPartner = null; $("partner").setAttribute("aria-pressed", "false"); };
  stopPartner = await source(() => playPartner(player.context, partner, heard, done), "The partner cannot be heard");
  $("partner").setAttribute("aria-pressed", String(!!stopPartner));
};

// --- direction and characters

function direct(prompt) {
  $("prompt").value = prompt;
  send({ type: "prompt.update", prompt });
}
$("direct").onsubmit = (event) => { event.preventDefault(); direct($("prompt").value); };
$("presets").append(...PRESETS.map((text) => button(text, "button quiet", () => direct(text))));

function tile(name, image) {
  const made = button("", "tile", () => choose(name));
  made.dataset.name = made.title = made.ariaLabel = name;
  const picture = new Image();
  picture.src = image;
  picture.alt = "";
  made.append(picture);
  return made;
}

function select(name) {
  character = name;
  for (const made of document.querySelectorAll(".tile[data-name]")) made.ariaPressed = String(made.dataset.name === name);
}

function choose(name) {
  select(name);
  send({ type: "session.update", character: name });
}

$("image").onchange = async () => {
  const kept = await upload($("image"), "/v1/images");
  if (!kept) return;
  const made = tile(kept.id, kept.image);
  made.title = made.ariaLabel = "your picture";
  $("gallery").lastElementChild.before(made);
  choose(kept.id);
};

// --- start

$("sound").onclick = () => player.unlock();
addEventListener("pointerdown", () => player.unlock());
addEventListener("keydown", () => player.unlock());

const [characters, samples] = await Promise.all(
  ["/v1/characters", "/v1/samples"].map(async (path) => (await fetch(path)).json()),
).catch((error) => {
  connection("closed", `the service does not answer: ${error.message}`);
  throw error;
});
for (const { name, image } of characters) $("gallery").lastElementChild.before(tile(name, image));
for (const { name, audio } of samples) {
  if (name === "partner") {
    partner = audio;
    $("partner").hidden = false;
    continue;
  }
  const made = button(name, $("samples").children.length ? "button" : "button main", () => say({ sample: name }));
  made.dataset.name = name;
  $("samples").append(made);
}
const first = characters.find(({ name }) => name === character) ?? characters[0];
if (first) {
  select(first.name);
  $("still").src = first.image;
}
connect();
