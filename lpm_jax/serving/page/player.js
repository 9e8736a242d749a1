// Plays pictures and sound against one clock. With a running AudioContext the clock is what is heard (its time less the
// output latency); before a user's gesture allows sound, or where no device exists, it is performance.now().

const LEAD = 0.06; // seconds between a first block's arrival and its sound

export class Player {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.pen.imageSmoothingQuality = "high";
    this.context = new AudioContext({ sampleRate: 24000, latencyHint: "interactive" });
    this.mode = "wall"; // or "audio"
    this.moved = { at: 0, wall: 0 }; // when the audio clock last moved
    this.drawn = [];
    this.reset();
    const tick = () => { this.tick(); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
    setInterval(() => this.follow(), 200); // hidden pages get no animation frames
  }

  reset() {
    for (const frame of this.frames ?? []) frame.picture.close();
    for (const block of this.blocks ?? []) block.source?.stop();
    this.frames = []; // {time, picture}, by time
    this.blocks = []; // {time, buffer, source}
    this.calls = []; // {time, run}: what happens when a moment is heard
    this.base = null; // clock reading at which media time 0 is played
    this.end = 0; // media time received so far
    this.stalled = true;
    if (this.decoder?.state === "configured") this.decoder.close();
    this.decoder = null;
  }

  get clock() { return this.mode === "audio" ? this.context.currentTime : performance.now() / 1000; }
  get position() { return this.base === null ? 0 : this.clock - this.base; }
  get heard() { return this.position - (this.mode === "audio" ? this.context.outputLatency || 0 : 0); }
  get buffered() { return Math.max(0, this.end - this.position); }
  get silent() { return this.mode !== "audio"; }

  async unlock() {
    if (this.context.state === "suspended") await this.context.resume();
    this.follow();
  }

  // Change clocks without a jump in media time, and let the sound in hand be heard.
  use(mode) {
    if (mode === this.mode) return;
    const position = this.position;
    for (const block of this.blocks) { block.source?.stop(); block.source = null; }
    this.mode = mode;
    if (this.base === null) return;
    this.base = this.clock - position;
    if (mode === "audio") for (const block of this.blocks) this.schedule(block);
  }

  follow() {
    const wall = performance.now() / 1000, at = this.context.currentTime;
    if (at !== this.moved.at) this.moved = { at, wall };
    const alive = this.context.state === "running" && at > 0 && wall - this.moved.wall < 0.6;
    this.use(alive ? "audio" : "wall");
    if (this.base !== null && this.position > this.end) { // an underrun: hold
      this.base = this.clock - this.end;
      this.stalled = true;
    }
    while (this.frames.length > 96) this.frames.shift().picture.close();
    this.blocks = this.blocks.filter((block) => block.time + block.buffer.duration > this.position - 1);
    this.calls = this.calls.filter((call) => call.time > this.heard || call.run());
  }

  at(time, run) { this.calls.push({ time, run: () => { run(); return false; } }); }

  sound(time, pcm) {
    const buffer = this.context.createBuffer(1, pcm.length, 24000);
    const samples = buffer.getChannelData(0);
    for (let i = 0; i < pcm.length; i++) samples[i] = pcm[i] / 32768;
    if (this.stalled) {
      this.base = this.clock + LEAD - time;
      this.stalled = false;
    }
    const block = { time, buffer, source: null };
    this.blocks.push(block);
    this.end = Math.max(this.end, time + buffer.duration);
    if (this.mode === "audio") this.schedule(block);
  }

  schedule(block) {
    const start = this.base + block.time, late = this.context.currentTime - start;
    if (late >= block.buffer.duration) return;
    block.source = new AudioBufferSourceNode(this.context, { buffer: block.buffer });
    block.source.connect(this.context.destination);
    block.source.start(Math.max(0, start), Math.max(0, late));
  }

  vp8(time, key, data) {
    if (!this.decoder) {
      this.decoder = new VideoDecoder({
        output: (picture) => this.keep(picture.timestamp / 1e6, picture),
        error: () => { this.decoder = null; },
      });
      this.decoder.configure({ codec: "vp8", optimizeForLatency: true });
      this.waiting = true;
    }
    if (this.waiting && !key) return;
    this.waiting = false;
    this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: Math.round(time * 1e6), data }));
  }

  async jpeg(time, data) {
    this.keep(time, await createImageBitmap(new Blob([data], { type: "image/jpeg" })));
  }

  keep(time, picture) {
    let i = this.frames.length;
    while (i && this.frames[i - 1].time > time) i--;
    this.frames.splice(i, 0, { time, picture });
  }

  // The picture's height and width, drawn large.
  shape(height, width) {
    this.canvas.width = Math.round((this.canvas.height * width) / height);
    this.pen.imageSmoothingQuality = "high";
  }

  // What was received from `time` on is not to be played: it comes anew.
  drop(time) {
    const late = (thing) => thing.time > time - 0.001;
    for (const frame of this.frames.filter(late)) frame.picture.close();
    for (const block of this.blocks.filter(late)) block.source?.stop();
    for (const kept of ["frames", "blocks", "calls"]) this[kept] = this[kept].filter((thing) => !late(thing));
    this.end = Math.min(this.end, time);
    if (this.decoder?.state === "configured") this.decoder.close();
    this.decoder = null; // the next frame is a key frame
  }

  tick() {
    this.follow();
    const heard = this.heard + 0.004;
    let shown = null;
    while (this.frames.length && this.frames[0].time <= heard) {
      shown?.picture.close();
      shown = this.frames.shift();
    }
    if (!shown) return;
    this.pen.drawImage(shown.picture, 0, 0, this.canvas.width, this.canvas.height);
    shown.picture.close();
    const now = performance.now();
    this.drawn = this.drawn.filter((moment) => now - moment < 2000);
    this.drawn.push(now);
    this.count = (this.count ?? 0) + 1;
  }

  get fps() {
    const d = this.drawn;
    return d.length > 1 && performance.now() - d.at(-1) < 500 ? (1000 * (d.length - 1)) / (d.at(-1) - d[0]) : 0;
  }
}
