"""Lists of studies -> records, prepared folders, items of a training step."""
