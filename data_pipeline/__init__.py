"""Data: synthetic performers with exact ground truth, the record, and the loaders that feed training."""
