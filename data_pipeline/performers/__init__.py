"""Synthetic performers: drawn characters that speak, listen and idle, with exact ground truth for every frame."""
