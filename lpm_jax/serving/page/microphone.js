// The microphone, or a recording in its place, as PCM16 blocks at 24 kHz.

export function toPcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) pcm[i] = Math.max(-1, Math.min(1, samples[i])) * 32767;
  return pcm;
}

export async function openMicrophone(receive) {
  const media = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
  });
  const context = new AudioContext();
  await context.audioWorklet.addModule("worklet.js");
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  node.port.onmessage = (event) => receive(event.data);
  context.createMediaStreamSource(media).connect(node);
  await context.resume();
  return () => { for (const track of media.getTracks()) track.stop(); context.close(); };
}

// Sends a recording as if it were being spoken now, and lets it be heard.
export async function playPartner(context, url, receive, done) {
  const file = await (await fetch(url)).arrayBuffer();
  const buffer = await context.decodeAudioData(file); // at the context's rate: 24 kHz
  const samples = buffer.getChannelData(0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  const began = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    const due = Math.min(samples.length, Math.floor(((performance.now() - began) / 1000) * 24000));
    if (due > sent) receive(samples.slice(sent, due));
    sent = due;
    if (sent >= samples.length) stop();
  }, 40);
  const stop = () => { clearInterval(timer); source.stop(); done(); };
  return stop;
}
