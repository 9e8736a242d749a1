"""Makes ``umt5_*.safetensors``: tiny umT5 encoders of transformers with random weights, inputs and outputs.

Run once, outside the project's environment, with torch 2.13.0 (CPU) and transformers 5.23.0:
``python tests/golden/make_umt5.py``.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

HERE = Path(__file__).parent
COMMON = {"vocab_size": 61, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}
CASES = {
    # heads * d_kv differs from d_model; distances run past the last bucket.
    "short_buckets": (
        {"d_model": 20, "d_kv": 6, "d_ff": 44, "num_layers": 3, "num_heads": 4}
        | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
        (37, [37, 21, 1]),
    ),
    # umT5-XXL's buckets.
    "xxl_buckets": (
        {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
        | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        (141, [141, 90]),
    ),
}


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Nothing zero, nothing one, activations of ordinary size."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name:
                value.copy_(1 + 0.2 * noise)
            elif "relative" in name or "shared" in name or "embed_tokens" in name:
                value.copy_(noise)
            else:
                value.copy_(noise * value.shape[1] ** -0.5 * (0.6 if name.endswith(("q.weight", "k.weight")) else 1))


def main() -> None:
    for seed, (name, (settings, (length, lengths))) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = UMT5EncoderModel(UMT5Config(**COMMON, **settings)).eval()
        randomise(model, generator)
        ids = torch.randint(2, COMMON["vocab_size"], (len(lengths), length), generator=generator)
        mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        ids = torch.where(mask, ids, 0)
        attention = model.encoder.block[0].layer[0].SelfAttention
        distances = torch.arange(-700, 701)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        tensors = {f"weights/{key}": value for key, value in model.state_dict().items() if "embed_tokens" not in key}
        tensors |= {
            "ids": ids.int(),
            "mask": mask,
            "output": output * mask[..., None],
            "distances": distances.int(),
            "buckets": attention._relative_position_bucket(distances).int(),
        }
        tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
        save_file(tensors, HERE / f"umt5_{name}.safetensors", {"config": json.dumps(COMMON | settings)})
        print(name, float(output.std()), float(output.abs().max()))


if __name__ == "__main__":
    main()
