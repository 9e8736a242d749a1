"""Golden tensors of Wan 2.1's transformer, by diffusers' ``WanTransformer3DModel`` with hashed weights.

    python tests/golden/make_wan_dit.py        # with torch 2.13.0 (CPU) and diffusers 0.42.1, no network

Writes ``wan_dit_NAME.safetensors`` beside itself: inputs, the embeddings, the tokens after every block, the output in
float32, and the output of the same network in bfloat16 as diffusers loads it (norms, tables and the time embedding in
float32). ``i2v`` is the image-to-video layout after the surgery that LPM describes: its weights come from a model with
CLIP image cross-attention and 36 input channels, of which the first 16 are kept. The script asserts that this equals
the whole model whose image values are zero and whose other channels hold nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from hashed import uniform, weight
from safetensors.torch import save_file

HERE = Path(__file__).parent
COMMON = dict(patch_size=(1, 2, 2), out_channels=16, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6)
IMAGE = dict(in_channels=36, image_dim=24, added_kv_proj_dim=256)
MODELS = {
    # name: (model, latent frames, rows, columns, words, timesteps)
    "t2v": (
        dict(num_attention_heads=2, attention_head_dim=64, in_channels=16, text_dim=48, freq_dim=64, ffn_dim=224,
             num_layers=4), 3, 3, 5, 7, (250.0, 987.5),
    ),
    "narrow": (
        dict(num_attention_heads=3, attention_head_dim=40, in_channels=16, text_dim=20, freq_dim=32, ffn_dim=100,
             num_layers=4), 3, 1, 7, 5, (31.0,),
    ),
    "i2v": (
        dict(num_attention_heads=2, attention_head_dim=128, in_channels=16, text_dim=16, freq_dim=256, ffn_dim=320,
             num_layers=2), 2, 5, 3, 512, (640.0,),
    ),
}  # fmt: skip
KEEP_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


def draw(key: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(1.7 * uniform(key, shape)).float()


def load(config: dict, state: dict | None = None) -> WanTransformer3DModel:
    """A model in float32; every tensor from its name unless ``state`` has it."""
    model = WanTransformer3DModel(**COMMON, **config).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(weight(k, s)) if state is None else state[k] for k, s in shapes.items()})
    return model


@torch.no_grad()
def make(name: str) -> None:
    config, frames, rows, columns, words, timesteps = MODELS[name]
    b = len(timesteps)
    latents = draw("latents", b, 16, frames, 2 * rows, 2 * columns)
    text = draw("text", b, words, config["text_dim"])
    time = torch.tensor(timesteps)
    shapes = None
    if name == "i2v":
        whole = load({**config, **IMAGE})
        shapes = {key: list(value.shape) for key, value in whole.state_dict().items()}
        state = {key: value.clone() for key, value in whole.state_dict().items()}
        state["patch_embedding.weight"] = state["patch_embedding.weight"][:, :16].contiguous()
        model = load(config, state)
        for block in whole.blocks:
            block.attn2.add_v_proj.weight.zero_()
            block.attn2.add_v_proj.bias.zero_()
        padded = torch.cat([latents, torch.zeros(b, 20, *latents.shape[2:])], dim=1)
        expected = whole(padded, time, text, draw("image", b, 5, 24), return_dict=False)[0]
    else:
        model = load(config)
        expected = None
    seen = {}

    def keep(key):
        def hook(_, __, out):
            seen[key] = [x.clone() for x in out if x is not None] if isinstance(out, tuple) else out.clone()

        return hook

    hooks = [block.register_forward_hook(keep(f"block{i}")) for i, block in enumerate(model.blocks)]
    hooks.append(model.condition_embedder.register_forward_hook(keep("embedded")))
    hooks.append(model.patch_embedding.register_forward_hook(keep("patches")))
    output = model(latents, time, text, return_dict=False)[0]
    if expected is not None:
        assert torch.allclose(output, expected, atol=1e-5), (output - expected).abs().max()
    for hook in hooks:
        hook.remove()
    temb, modulation, words_out = seen.pop("embedded")
    seen["patches"] = seen["patches"].flatten(2).transpose(1, 2)
    keys = {key: list(value.shape) for key, value in model.state_dict().items()}
    for key, parameter in model.named_parameters():
        if not any(part in key.split(".") for part in KEEP_FLOAT32):
            parameter.data = parameter.data.bfloat16()
    half = model(latents.bfloat16(), time, text.bfloat16(), return_dict=False)[0]
    print(name, "bfloat16 against float32:", float((half.float() - output).norm() / output.norm()))
    tensors = {
        "latents": latents, "text": text, "timesteps": time, "time": temb, "modulation": modulation,
        "words": words_out[:, :16], "output": output, "output_bfloat16": half, **seen,
    }  # fmt: skip
    meta = {"config": json.dumps(config), "grid": json.dumps([frames, rows, columns])}
    meta["shapes"] = json.dumps(shapes or keys)  # of the state dict that the weights come from
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"wan_dit_{name}.safetensors", meta)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in MODELS:
        make(name)
