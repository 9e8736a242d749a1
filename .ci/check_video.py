"""Fails unless VIDEO has pictures that move at 24 fps, lasts as long as SOUND, and carries sound."""

import sys

import av
import numpy as np

video, sound = sys.argv[1:]
with av.open(sound) as file:
    seconds = sum(f.samples / f.sample_rate for f in file.decode(audio=0))
with av.open(video) as file:
    assert file.streams.video[0].average_rate == 24, file.streams.video[0].average_rate
    frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)]).astype(float)
with av.open(video) as file:
    heard = np.concatenate([f.to_ndarray().mean(0) for f in file.decode(audio=0)])
assert len(frames) == -(-round(seconds * 24_000) // 1000), (len(frames), seconds)
assert np.abs(np.diff(frames, axis=0)).mean() > 0.05, "the picture does not move"
assert np.sqrt(np.mean(heard**2)) > 0.01, "there is no sound"
print(f"{video}: {len(frames)} frames, {seconds:.2f} s, with sound")
