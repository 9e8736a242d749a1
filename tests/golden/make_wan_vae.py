"""Makes ``wan_vae_*.safetensors`` and ``wan_vae_names.json``: what diffusers' Wan VAE computes on small random models.

Run by hand where torch is (2.13.0 on CPU, diffusers 0.42.1); the tests read only the files it leaves here.

    python tests/golden/make_wan_vae.py [path to wan/modules/vae.py of github.com/Wan-Video/Wan2.1]

With the path, ``wan_vae_names.json`` is made too: every parameter of the full-size model as the original code names it,
with the key that diffusers' own converter gives it and its shape.

Weights are rounded to bfloat16 and stored so, under the keys of diffusers; pictures and latents are channels last.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file

HERE = Path(__file__).parent
CONFIGS = {
    # Wan 2.1 in small; latents of 2 x 3.
    "deep": dict(base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]),
    # Other depths and widths, one halving of time, and pictures whose sides are no multiple of 4.
    "odd": dict(base_dim=6, z_dim=3, dim_mult=[1, 3, 2], num_res_blocks=1, temperal_downsample=[True, False]),
}
VIDEO = {"deep": (1, 3, 9, 16, 24), "odd": (2, 3, 5, 17, 26)}
LATENTS = {"deep": (1, 4, 5, 2, 3), "odd": (2, 3, 4, 3, 5)}
CHUNKS = {"deep": (1, 2, 1, 1), "odd": (1, 3)}


def last(x: torch.Tensor) -> torch.Tensor:
    """Channels last."""
    return x.movedim(1, -1).contiguous()


def draw(rng: np.random.Generator, shape) -> torch.Tensor:
    return torch.tensor(rng.normal(size=shape), dtype=torch.float32)


def model(name: str, rng: np.random.Generator) -> AutoencoderKLWan:
    z = CONFIGS[name]["z_dim"]
    mean, std = rng.normal(size=z).round(4).tolist(), (1 + rng.uniform(size=z)).round(4).tolist()
    vae = AutoencoderKLWan(**CONFIGS[name], latents_mean=mean, latents_std=std).eval()
    with torch.no_grad():
        for key, p in sorted(vae.named_parameters()):
            value = draw(rng, p.shape)
            if key.endswith("gamma"):
                value = 1 + 0.2 * value.abs()
            elif key.endswith("bias"):
                value = 0.1 * value
            else:
                value = value / p[0].numel() ** 0.5
                if key == "decoder.conv_out.weight":
                    value *= 0.4  # most pixels within -1..1
            p.copy_(value.bfloat16().float())
    return vae


def decode_in_chunks(vae: AutoencoderKLWan, z: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """The reference's decoder with its own feature cache, before it clamps."""
    vae.clear_cache()
    parts = vae.post_quant_conv(z).split(sizes, dim=2)
    return torch.cat([vae.decoder(x, vae._feat_map, [0], first_chunk=i == 0) for i, x in enumerate(parts)], dim=2)


def resample_in_chunks(layer, x: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    cache = [None]
    return torch.cat([layer(part, cache, [0]) for part in x.split(sizes, dim=2)], dim=2)


@torch.no_grad()
def make(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    vae = model(name, rng)
    z = CONFIGS[name]["z_dim"]
    mean = torch.tensor(vae.config.latents_mean).view(1, z, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, z, 1, 1, 1)

    video = torch.tensor(rng.uniform(-1, 1, VIDEO[name]), dtype=torch.float32)
    latents = draw(rng, LATENTS[name])
    raw = latents * std + mean
    tensors = {
        "video": video,
        "encoded": (vae.encode(video).latent_dist.mode() - mean) / std,
        "latents": latents,
        "decoded": vae.decode(raw).sample,
        "decoded_in_chunks": decode_in_chunks(vae, raw, CHUNKS[name]),
    }
    # Single blocks: a residual block with a shortcut, the attention, and resampling with its first frame.
    shortcut = next(
        i
        for i, block in enumerate(vae.encoder.down_blocks)
        if hasattr(block, "conv_shortcut") and not isinstance(block.conv_shortcut, torch.nn.Identity)
    )
    down = next(i for i, block in enumerate(vae.encoder.down_blocks) if getattr(block, "mode", "") == "downsample3d")
    up = vae.config.temperal_downsample[::-1].index(True)
    blocks = {
        "residual": (vae.encoder.down_blocks[shortcut], vae.encoder.down_blocks[shortcut].in_dim),
        "attention": (vae.decoder.mid_block.attentions[0], vae.decoder.mid_block.attentions[0].dim),
        "down": (vae.encoder.down_blocks[down], vae.encoder.down_blocks[down].dim),
        "up": (vae.decoder.up_blocks[up].upsamplers[0], vae.decoder.up_blocks[up].upsamplers[0].dim),
    }
    for block, (layer, width) in blocks.items():
        x = draw(rng, (1, width, 5, 3, 5))
        sizes = {"down": (1, 2, 2), "up": (1, 1, 3)}.get(block)
        tensors[f"{block}_in"] = x
        tensors[f"{block}_out"] = resample_in_chunks(layer, x, sizes) if sizes else layer(x)
    print(name, {key: (tuple(x.shape), round(x.std().item(), 3)) for key, x in tensors.items()})
    print("share of clamped pixels", (tensors["decoded_in_chunks"].abs() > 1).float().mean().item())

    weights = {f"weights/{key}": x.bfloat16() for key, x in vae.state_dict().items()}
    config = {key: vae.config[key] for key in (*CONFIGS[name], "latents_mean", "latents_std")}
    save_file(
        {key: last(x) for key, x in tensors.items()} | weights,
        HERE / f"wan_vae_{name}.safetensors",
        {"config": json.dumps(config), "chunks": json.dumps(CHUNKS[name])},
    )


def make_names(source: str) -> None:
    spec = importlib.util.spec_from_file_location("wan_vae_source", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.device("meta"):
        original = module.WanVAE_(
            dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]
        )
        reference = AutoencoderKLWan().state_dict()
    tagged = {key: key for key in original.state_dict()}
    diffusers = {original: key for key, original in convert_wan_vae_to_diffusers(tagged).items()}
    assert sorted(diffusers.values()) == sorted(reference)
    for key, x in original.state_dict().items():
        assert x.shape == reference[diffusers[key]].shape, key
    rows = [json.dumps([key, diffusers[key], list(x.shape)]) for key, x in original.state_dict().items()]
    (HERE / "wan_vae_names.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    for name in CONFIGS:
        make(name)
    if len(sys.argv) > 1:
        make_names(sys.argv[1])
