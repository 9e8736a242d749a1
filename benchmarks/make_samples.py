"""Speak the bundled sample sentences: ``uv run python -m benchmarks.make_samples``.

Writes ``lpm_jax/assets/samples/*.flac`` (24 kHz, mono, 16 bit) with voices that no training clip uses.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from data_pipeline.performers.speech import Voice, say
from data_pipeline.schema import SAMPLE_RATE

SAMPLES = Path(__file__).parents[1] / "lpm_jax" / "assets" / "samples"

# name: voice and phrases; between the phrases the speaker pauses for 0.35 s.
SENTENCES = {
    "hello": (
        Voice("en-us", "f5", rate=166, pitch=52),
        ("Hello there!", "A moment ago, I was a picture.", "Now I talk, and I listen."),
    ),
    "story": (
        Voice("en-us", "m7", rate=164, pitch=48),
        ("Every morning, the baker opens her window,", "and the smell of warm bread wakes the whole street."),
    ),
    "willkommen": (
        Voice("de", "linda", rate=164, pitch=50),
        ("Guten Tag!", "Schön, dass Sie da sind.", "Worüber möchten Sie heute sprechen?"),
    ),
    "partner": (
        Voice("en-gb-x-rp", "david", rate=168, pitch=46),
        ("So I tried the new train yesterday.", "It was fast, very quiet,", "and you know what? It was on time!"),
    ),
}


def speak(voice: Voice, phrases: tuple[str, ...], pause: float = 0.35) -> Float[np.ndarray, " samples"]:
    """The phrases with pauses between them, and 0.2 s of silence at both ends."""
    gap, edge = np.zeros(int(pause * SAMPLE_RATE), np.float32), np.zeros(int(0.2 * SAMPLE_RATE), np.float32)
    parts = [edge]
    for phrase in phrases:
        parts += [say(phrase, voice).samples, gap]
    return np.concatenate([*parts[:-1], edge])


def write_flac(path: Path, samples: Float[np.ndarray, " samples"]) -> None:
    with av.open(str(path), "w", format="flac") as out:
        stream = out.add_stream("flac", rate=SAMPLE_RATE, layout="mono", options={"compression_level": "12"})
        pcm = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def main() -> None:
    SAMPLES.mkdir(parents=True, exist_ok=True)
    for name, (voice, phrases) in SENTENCES.items():
        path = SAMPLES / f"{name}.flac"
        samples = speak(voice, phrases)
        write_flac(path, samples)
        print(f"{path.name}: {len(samples) / SAMPLE_RATE:.2f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
