"""Inputs the toy was never trained for: a photograph and recorded speech.

uv run python -m benchmarks.real_input --speech RECORDING.wav [--out docs/real_input.png]

The photograph is ``skimage.data.astronaut()`` (NASA), cropped to the face. Debian's ``alsa-utils`` carries
human recordings under ``/usr/share/sounds/alsa``. Top row: the picture, then what the autoencoder alone makes of
it. Below: frames of the performance, evenly spaced.
"""

from pathlib import Path

import numpy as np

from lpm_jax import Pipeline
from lpm_jax.errors import ArgumentParser, run_door
from lpm_jax.media import load_audio
from lpm_jax.models import vae
from lpm_jax.pictures import load_image
from lpm_jax.training.sheets import save_sheet


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--out", type=Path, default=Path("docs/real_input.png"))
    args = parser.parse_args()
    from skimage.data import astronaut

    pipe = Pipeline.from_pretrained(args.model)
    picture = load_image(astronaut()[:300, 75:375], pipe.size)
    speech = load_audio(args.speech)
    z, _ = vae.encode(pipe.config.vae, pipe.params["vae"], vae.to_unit(picture[None, None]))
    alone = np.asarray(vae.to_pixels(vae.decode(pipe.config.vae, pipe.params["vae"], z)[0]))[0, 0]
    frames = np.concatenate([chunk.frames for chunk in pipe.stream(image=picture, audio=speech, seed=0)])
    picks = np.linspace(0, len(frames) - 1, 16).astype(int)
    save_sheet(args.out, [np.stack([picture, alone]), frames[picks[:8]], frames[picks[8:]]])
    change = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    print(f"{args.out}: {len(frames)} frames; mean change from frame to frame {change:.2f} of 255")


if __name__ == "__main__":
    run_door(main)
