"""Draws the bundled characters: held-out identities, which no training clip shows.

uv run python -m benchmarks.make_characters
"""

from pathlib import Path

from PIL import Image

from data_pipeline.performers.character import sample_held_out_character
from data_pipeline.performers.render import references

FOLDER = Path(__file__).parent.parent / "lpm_jax" / "assets" / "characters"
CAST = {"1-mei": 927, "2-nova": 920, "3-omar": 906, "4-walter": 933, "5-blip": 934, "6-rosa": 935}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, seed in CAST.items():
        picture = references(sample_held_out_character(seed), seed, size=256)["global"]
        Image.fromarray(picture).save(FOLDER / f"{name}.png", optimize=True)
