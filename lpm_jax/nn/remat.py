"""What the backward pass keeps of a layer's activations, and what it computes again.

    none      everything, but not gathered weights (sharding.py), which are gathered again
    dots      matrix products
    names     the outputs of self-attention and of text and audio attention, besides the layers' inputs
    offload   the same, moved to the host's memory meanwhile
    full      only the layers' inputs

Of flash attention, "dots" and "names" keep what the kernel itself gives, log-sum-exp included: with its output alone
the backward pass would run it again. "offload" does run it again.

After Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from lpm_jax.errors import InputError

POLICIES = ("none", "dots", "names", "offload", "full")
NAMED = ("self_attention", "cross_attention")  # as models/dit.py names them
WEIGHTS = "gathered"


def rematerialised(layer: Callable, policy: str, sharded: bool) -> Callable:
    """``layer``, the body of a scan, under ``policy``; ``sharded`` says whether it gathers weights.

    Raises:
      InputError: there is no such policy.
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        if not sharded:
            return layer
        kept = policies.save_anything_except_these_names(WEIGHTS)
    elif policy == "dots":
        kept = policies.save_from_both_policies(policies.dots_saveable, _flash)
    elif policy == "names":
        kept = policies.save_from_both_policies(policies.save_only_these_names(*NAMED), _flash)
    elif policy == "offload":
        kept = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(NAMED),
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
    elif policy == "full":
        kept = policies.nothing_saveable
    else:
        raise InputError(f"train.remat: expected one of {', '.join(POLICIES)}, found {policy!r}")
    return jax.checkpoint(layer, prevent_cse=False, policy=kept)


def _flash(primitive, *_, **__) -> bool:
    """Whether it is cuDNN's forward kernel. Splash names its results itself (``nn/attention/flash.py``)."""
    return "dot_product_attention_fwd" in primitive.name


def named_weights(weights):
    """Gathered weights under the name that no policy keeps."""
    return jax.tree.map(lambda x: checkpoint_name(x, WEIGHTS), weights)
