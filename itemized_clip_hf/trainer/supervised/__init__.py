"""Training on labels and masks: what the heads share, and one module for each task."""
