"""Makes ``wav2vec_*.safetensors``: tiny wav2vec 2.0 encoders of transformers with random weights, inputs and outputs.

Run once, outside the project's environment, with torch 2.13.0 (CPU) and transformers 5.23.0:
``python tests/golden/make_wav2vec.py``.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

HERE = Path(__file__).parent
COMMON = {"conv_dim": [16] * 7, "num_hidden_layers": 3, "layerdrop": 0.0, "apply_spec_augment": False}
CASES = {
    "base": {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "feat_extract_norm": "group",
        "conv_bias": False,
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    # The large layout; an odd positional kernel.
    "large": {
        "hidden_size": 20,
        "num_attention_heads": 2,
        "intermediate_size": 28,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 9,
        "num_conv_pos_embedding_groups": 2,
    },
}
LENGTHS = [8_003, 4_417]


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Nothing zero, nothing one, activations of ordinary size."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("bias"):
                value.copy_(0.1 * noise)
            elif "norm" in name:
                value.copy_(1 + 0.2 * noise)
            elif name.endswith("original0"):  # g of the weight norm
                value.copy_(2 + 0.5 * noise)
            elif name.endswith("original1"):
                value.copy_(noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)


def sound(generator: torch.Generator) -> list[torch.Tensor]:
    """Tones in noise, off centre, one utterance louder than the other."""
    time = torch.arange(max(LENGTHS)) / 16_000
    tones = [torch.sin(2 * torch.pi * f * time * (1 + time)) for f in (170.0, 410.0)]
    noise = torch.randn(len(LENGTHS), len(time), generator=generator)
    scales = (1.0, 0.2)
    return [(0.02 + a * (0.3 * t + 0.1 * x))[:n] for a, t, x, n in zip(scales, tones, noise, LENGTHS, strict=True)]


def stack(out) -> torch.Tensor:
    """All hidden states, the last one after the final norm: so up to transformers 4; 5 leaves the norm out (large)."""
    return torch.stack([*out.hidden_states[:-1], out.last_hidden_state], 2)


def main() -> None:
    for seed, (name, settings) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = Wav2Vec2Model(Wav2Vec2Config(**COMMON, **settings)).eval()
        randomise(model, generator)
        utterances = sound(generator)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        inputs = extractor([x.numpy() for x in utterances], sampling_rate=16_000, padding=True, return_tensors="pt")
        raw = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
        with torch.no_grad():
            padded = model(**inputs, output_hidden_states=True)
            single = model(inputs.input_values[:1], output_hidden_states=True)
            plain = model(raw[:1, :1_999]).last_hidden_state  # not normalised
        valid = model._get_feature_vector_attention_mask(padded.last_hidden_state.shape[1], inputs.attention_mask)
        position = model.encoder.pos_conv_embed.conv
        features = padded.last_hidden_state
        tensors = {f"weights/{key}": value for key, value in model.state_dict().items() if "masked_spec" not in key}
        tensors |= {
            "samples": raw,
            "lengths": torch.tensor(LENGTHS).int(),
            "normalized": inputs.input_values,
            "valid": valid.bool(),
            "states": stack(padded) * valid[..., None, None],
            "output": features * valid[..., None],
            "single_states": stack(single),
            "plain": plain,
            "position_weight": position.weight.detach(),
            "corners": torch.nn.functional.interpolate(
                features.transpose(1, 2), size=11, mode="linear", align_corners=True
            ).transpose(1, 2),
            "corners_of": features,
        }
        tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
        save_file(tensors, HERE / f"wav2vec_{name}.safetensors", {"config": json.dumps(COMMON | settings)})
        print(name, features.shape, float(features.std()), [float(x.std()) for x in padded.hidden_states])
        print(sorted(key for key in model.state_dict() if "pos_conv" in key or "conv_layers.0" in key))


if __name__ == "__main__":
    main()
