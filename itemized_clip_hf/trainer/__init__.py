"""Training: objectives, the ragged collator and the Trainer."""
