// Collects microphone input, resampled to 24 kHz by averaging (towards lower rates) and linear interpolation.

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / 24000;
    this.at = 0; // position of the next output sample, in input samples
    this.last = 0;
    this.smooth = 0;
    this.out = [];
  }

  process([input]) {
    const x = input[0];
    if (!x) return true;
    const a = Math.min(1, 1 / this.step); // one-pole low-pass against aliasing
    const y = new Float32Array(x.length + 1);
    y[0] = this.last;
    for (let i = 0; i < x.length; i++) {
      this.smooth += a * (x[i] - this.smooth);
      y[i + 1] = this.smooth;
    }
    for (; this.at < x.length; this.at += this.step) {
      const i = Math.floor(this.at), f = this.at - i;
      this.out.push(y[i] * (1 - f) + y[i + 1] * f);
    }
    this.at -= x.length;
    this.last = y[x.length];
    if (this.out.length >= 960) { // 40 ms
      this.port.postMessage(Float32Array.from(this.out));
      this.out = [];
    }
    return true;
  }
}

registerProcessor("capture", Capture);
