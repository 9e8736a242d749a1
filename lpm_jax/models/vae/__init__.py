"""Video autoencoders: 4x in time, 8x in space, causal; the first frame of a clip stands alone."""
