"""The mesh, and where arrays live on it. The only file that names mesh axes."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list | None = None) -> Mesh:
    """All devices along one ``data`` axis."""
    return Mesh(np.array(devices or jax.devices()), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())
