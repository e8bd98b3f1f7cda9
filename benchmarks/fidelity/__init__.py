"""A study of samples: which ones rank checkpoints as the whole corpus does."""
