"""Configuration: small frozen dataclasses, each read by one room only. Where they come from: ``options.py``."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from lpm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The toy causal video VAE: 4x in time, 8x in space (``models/vae/toy.py``)."""

    channels: int = 96  # latent channels
    width: int = 192  # of the residual blocks
    encoder_blocks: int = 2
    decoder_blocks: int = 4
    noise: float = 0.05  # fixed posterior standard deviation
    kl: float = 1e-4  # weight of the posterior mean's square: keeps the latent's scale near one
    group = 4  # video frames per latent frame
    stride = 8  # pixels per latent cell, each side


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """The Wan 2.1 VAE (``models/vae/wan.py``): sizes as in diffusers' config, defaults as published, 126,892,531
    parameters."""

    base_dim: int = 96  # channels at full resolution
    z_dim: int = 16  # latent channels
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # of base_dim, a stage each; space is halved between stages
    num_res_blocks: int = 2  # of a stage of the encoder; the decoder has one more
    attn_scales: tuple[float, ...] = ()  # none is published, and the reference cannot run any
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # whether time is halved too
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.attn_scales:
            raise ValueError(f"attn_scales: expected none, found {self.attn_scales}")
        lengths = {"temporal_downsample": len(self.dim_mult) - 1, "latents_mean": self.z_dim, "latents_std": self.z_dim}
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name}: expected {length} values, found {len(getattr(self, name))}")

    @property
    def group(self) -> int:
        """Video frames per latent frame."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def stride(self) -> int:
        """Pixels per latent cell, each side."""
        return 2 ** len(self.temporal_downsample)


@dataclasses.dataclass(frozen=True)
class Wav2VecConfig:
    """The wav2vec 2.0 audio encoder (``models/wav2vec.py``). The defaults are wav2vec 2.0 base; comments give the names
    in its ``config.json``."""

    width: int = 768  # hidden_size
    layers: int = 12  # num_hidden_layers
    heads: int = 12  # num_attention_heads
    ffn: int = 3072  # intermediate_size
    channels: int = 512  # conv_dim, the same in every convolution
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)  # conv_kernel
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)  # conv_stride
    conv_bias: bool = False
    norm: str = "group"  # feat_extract_norm: "group" (first convolution, over time) or "layer" (all, over channels)
    position_kernel: int = 128  # num_conv_pos_embeddings
    position_groups: int = 16  # num_conv_pos_embedding_groups
    stable: bool = False  # do_stable_layer_norm
    eps: float = 1e-5  # layer_norm_eps
    normalize: bool = True  # do_normalize of the feature extractor: each utterance to mean 0 and variance 1

    @property
    def hop(self) -> int:
        """Samples from one feature to the next: 320."""
        return math.prod(self.strides)

    @property
    def field(self) -> int:
        """Samples that a feature sees before the transformer: 400."""
        steps = [math.prod(self.strides[:i]) for i in range(len(self.strides))]
        return 1 + sum((kernel - 1) * step for kernel, step in zip(self.kernels, steps, strict=True))

    def features(self, samples: Any) -> Any:
        """How many features ``samples`` (an integer or an array of them) become."""
        return (samples - self.field) // self.hop + 1


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """The umT5 text encoder (``models/umt5.py``). The defaults are umT5-XXL; comments give the names in its
    ``config.json``."""

    vocabulary: int = 256_384  # vocab_size
    width: int = 4096  # d_model
    head_dim: int = 64  # d_kv
    ffn: int = 10_240  # d_ff
    layers: int = 24  # num_layers
    heads: int = 64  # num_heads
    buckets: int = 32  # relative_attention_num_buckets
    max_distance: int = 128  # relative_attention_max_distance
    eps: float = 1e-6  # layer_norm_epsilon
    tokens: int = 512  # Wan's text length


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Audio tokens of one video frame each (``models/audio.py``): log-mel, or wav2vec 2.0 where it is given."""

    bands: int = 40
    hops_per_frame: int = 4  # mel columns per video frame: 96 Hz at 24 fps
    width: int = 256  # width of the encoded audio tokens
    speak_window: float = 0.2  # seconds each side [SPEC 2]
    listen_window: float = 1.5
    hearing: int = 0  # blocks of the network that hears what log-mel says (stage "audio"); 0: there is none
    hearing_width: int = 192
    wav2vec: Wav2VecConfig | None = None  # frozen; ``bands`` and ``hops_per_frame`` then mean nothing


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A tiny word encoder trained with the model (``models/text.py``), or umT5 where it is given."""

    vocabulary: int = 2048
    tokens: int = 24
    width: int = 256
    umt5: UMT5Config | None = None  # frozen; it has its own vocabulary, and ``tokens`` and ``width`` are its own


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """The LPM diffusion transformer (``models/dit.py``). Depth counts single blocks: even speak, odd listen."""

    depth: int = 6
    width: int = 256
    heads: int = 4
    ffn: int = 768
    channels: int = 96
    patch: int = 2  # spatial; the temporal patch is 1
    time_width: int = 256  # sinusoidal features of the noise level
    text_width: int = 256
    audio_width: int = 256
    eps: float = 1e-6
    # Where references stand on the time axis of RoPE: t + offset + stride * index [SPEC 2; values ours].
    first_frame_offset: float = -1.0
    global_offset: float = -8.0
    view_offset: float = -16.0
    expression_offset: float = -32.0
    reference_stride: float = 1.0
    # "velocity" (Wan's target, as the large models) or "clean": the network names x_0 and the velocity is derived.
    # With 384 values a token and a width of 256 the noise in a velocity does not fit through the network
    # (Li and He, "Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720).
    prediction: str = "clean"
    life: bool = False  # each latent frame is told of a little life that nothing else foretells (``models/life.py``)
    warp: int = 0  # principal motions by which the output moves the picture (``models/warp.py``); 0: it does not

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Noise levels of flow matching, ``x_t = (1 - t) x_0 + t noise``."""

    shift: float = 1.0  # Wan's timestep shift: t <- shift t / (1 + (shift - 1) t)
    text_dropout: float = 0.1
    audio_dropout: float = 0.1
    loss_floor: float = 0.3  # x_0 error counts 1 / max(t, floor)^2: the velocity loss, bounded


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """The causal student and its rolling cache, sizes in chunks (``streaming/``)."""

    chunk: int = 3  # latent frames a step: 12 video frames, 0.5 s
    sink: int = 1
    window: int = 1
    levels: tuple[float, ...] = (1.0, 0.5)  # T0, T1: the noise level of each evaluation
    history: str = "last"  # what they leave in the cache: "last", "each" or "clean" (streaming/denoise.py)
    refine: float = 0.0  # T2: the noise level that the Refiner starts from; 0: there is none
    refiner_history: str = "clean"
    # What a chunk starts from of the last latent's difference from the reference ("near", flow.py): at 1 grain adds up.
    carry: float = 0.6
    references: int = 2  # slots for views and expressions beside the first frame and the global appearance
    attention: str = ""  # backend of self-attention (nn/attention); "": the platform's
    weights: str = ""  # of the transformer's kernels in memory: "int8", "float8" or ""; as they are
    cache: str = ""  # of its keys and values, likewise

    def __post_init__(self) -> None:
        for name in ("weights", "cache"):
            if getattr(self, name) not in ("", "int8", "float8"):
                raise InputError(f"stream.{name}: expected int8, float8 or nothing, found {getattr(self, name)!r}")
        for name in ("history", "refiner_history"):
            if getattr(self, name) not in ("last", "each", "clean"):
                raise InputError(f"stream.{name}: expected last, each or clean, found {getattr(self, name)!r}")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise InputError(f"stream.levels: expected noise levels above 0 up to 1, found {self.levels}")
        if not 0 <= self.refine <= 1:
            raise InputError(f"stream.refine: expected a noise level up to 1, or 0 for no Refiner, found {self.refine}")
        for name, least in (("chunk", 1), ("sink", 0), ("window", 1), ("references", 0)):
            if getattr(self, name) < least:
                raise InputError(f"stream.{name}: expected at least {least}, found {getattr(self, name)}")

    @property
    def span(self) -> int:
        """Chunks that one attention call can see: sink, window and the current one."""
        return self.sink + self.window + 1


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Offline video from Base (``base/``): the solver, its guidance and the segments of a long video."""

    steps: int = 40
    shift: float = 5.0  # Wan's timestep shift, for inference: 3 at 480p and 5 at 720p in Wan's own code
    text_scale: float = 5.0
    audio_scale: float = 4.0
    segment: int = 125  # frames, 4 k + 1: the first is given, the others are generated
    overlap: int = 2  # latent frames that a segment shares with the one before it
    tail_level: float = 0.5  # noise that the shared frames start from: 0 keeps those of the segment before, 1 redraws


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis of the mesh (``sharding.py``); -1, once, is what is left."""

    replica: int = 1  # whole copies of the weights, across slices: gradients are all that passes
    fsdp: int = -1  # batch, and shards of the weights, gathered where they are used
    ring: int = 1  # patches of a frame, keys passed around: across the fast domain
    context: int = 1  # patches of a frame, exchanged for heads (Ulysses): inside it
    tensor: int = 1  # heads and hidden units

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise InputError(f"mesh.{name}: expected at least 1, or -1 for what is left, found {size}")
        if list(sizes.values()).count(-1) > 1:
            raise InputError(
                f"mesh: expected at most one -1, found {', '.join(k for k, v in sizes.items() if v == -1)}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage's run (``training/loop.py``)."""

    steps: int = 1000
    batch: int = 16
    latents: int = 9  # latent frames of a training window
    learning_rate: float = 2e-3
    warmup: int = 100
    optimizer: str = "muon"  # or "adamw"
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    log_every: int = 20
    save_every: int = 250
    validate_every: int = 500
    keep: int = 2  # the newest so many checkpoints stay
    keep_every: int = 0  # and, for ever, those of steps that this divides; 0: none
    profile_at: int = 0  # trace three steps from this one on; 0: never (SIGUSR1 asks for a trace at any time)
    # Weights of picture regions in the loss, relative to 1 elsewhere.
    mouth: float = 4.0
    eyes: float = 2.5
    face: float = 1.5
    crop: int = 64  # vae: side of the training crops, pixels
    crops_per_clip: int = 4
    sounds: int = 6000  # audio: clips of sound that are made for it
    # Share of clips heard as other voices (training/voices.py): audio, base stages, online.causal, online.rollout.
    voices: float = 0.0
    # Weight of the lips' own loss (training/lips.py): base stages, online.causal, .rollout and .stream_audio.
    lips: float = 0.0
    # Likewise, of what the whole face does (training/faces.py): online.rollout and .stream_audio.
    faces: float = 0.0
    # Weight of the error of what a model with ``dit.warp`` says has moved (data_pipeline/moves.py): base stages,
    # online.causal, .rollout and .stream_audio.
    moves: float = 0.0
    # Start from this stage's weights instead of the one before's; STAGE@STEP or STAGE@latest: from the average in its
    # checkpoint; "scratch": from none.
    init: str = ""
    encoders: str = ""  # large models: the folder of the converted model whose frozen encoders make the latent cache
    dtype: str = "float32"  # of the computation; weights and optimiser stay float32
    accumulate: int = 1  # microbatches of a step, one after the other
    remat: str = (
        "none"  # activations that the backward pass keeps: "none" recomputed, "dots", "names", "offload", "full"
    )
    attention: str = ""  # backend of self-attention (nn/attention); "": the platform's
    unroll: bool = False  # write out the scan over blocks: a tenth faster on CPU, slower to compile
    data_threads: int = 2
    kinds: tuple[str, ...] = ()  # clip kinds of the mixture; none: all
    extra_references: float = 0.0  # share of clips that show view and expression references
    # Share of windows that are a clip's beginning and follow the character's picture, as streams do, and not a frame of
    # the clip, which may show what the prompt asks for already. Diffusion stages.
    from_picture: float = 0.0
    whole_every: int = 20  # every so many steps all patches are computed; 0: never
    token_keep: float = 0.5  # share of a frame's patches that a training step computes


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Distillation of the student (``training/distill.py``). The defaults are Self-Forcing's published values where it
    has them; its generator's learning rate, 2e-6, is ``train.learning_rate``."""

    teacher: str = "base.identity"  # the stage whose weights give the real score, and the critic its first weights
    text_scale: float = 1.0  # guidance of the real score
    audio_scale: float = 1.0
    generator_every: int = 5  # the critic learns in every step, the generator in every so many
    critic_learning_rate: float = 4e-7
    low: float = 0.02  # noise levels that samples are taken to
    high: float = 0.98
    rollout: int = 7  # chunks of the longest rollout
    gradient: int = 3  # chunks at its end that gradients reach, and that are scored
    switch: float = 0.0  # share of clips in a rollout whose prompt and sound change where that end begins
    corrupt: float = 0.0  # standard deviation of noise on what a chunk leaves for the next, as a share of its own
    guidance: float = 0.0  # online.rollout, .stream_audio: share of what sound changes in mouths that is exaggerated
    perceptual: float = 0.0  # weight of the features' distance from the teacher's sample (off-policy stage)
    windows: int = 512  # of the teacher's samples: trajectories that are kept
    fresh: float = 0.0  # share of them that start from noise of their own instead of the trajectory's (online.ode)
    lora: int = 0  # rank of the networks' changes; 0: all weights change
    park: bool = False  # networks that stay wait in the host's memory while nothing uses them (duel.py)

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"distill.low, high: expected 0 <= low < high <= 1, found {self.low}, {self.high}")
        if not 1 <= self.gradient <= self.rollout:
            raise InputError(
                f"distill.gradient: expected from 1 to distill.rollout ({self.rollout}), found {self.gradient}"
            )
        if not 0 <= self.guidance < 1:
            raise InputError(f"distill.guidance: expected 0 <= guidance < 1, found {self.guidance}")
        for name in ("generator_every", "windows"):
            if getattr(self, name) < 1:
                raise InputError(f"distill.{name}: expected at least 1, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs. ``stages`` holds what each stage changes in ``train``."""

    name: str
    size: int = 128  # height of the picture in pixels
    width: int = 0  # of the picture; 0: as wide as high
    data: str = "runs/performers"
    vae: VAEConfig | WanVAEConfig = VAEConfig()
    audio: AudioConfig = AudioConfig()
    text: TextConfig = TextConfig()
    dit: DiTConfig = DiTConfig()
    flow: FlowConfig = FlowConfig()
    stream: StreamConfig = StreamConfig()
    sample: SampleConfig = SampleConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    stages: typing.Mapping[str, dict] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    recipe: tuple[str, ...] = ()  # the stages of ``--stage all``; none: all there are

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a picture."""
        return self.size, self.width or self.size

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        height, width = self.pixels
        return height // self.vae.stride, width // self.vae.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        rows, columns = self.cells
        return rows // self.dit.patch, columns // self.dit.patch

    def for_stage(self, stage: str) -> Config:
        """This config with the stage's own training settings in ``train``."""
        if stage not in self.stages:
            raise InputError(f"--stage: expected one of {', '.join(self.stages)}, found {stage!r}")
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in self.stages[stage].items()}  # after JSON
        return dataclasses.replace(self, train=dataclasses.replace(self.train, **changes))
