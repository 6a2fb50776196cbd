"""One verb per file. Files are loaded by `itemized_clip_cli` without the package, which they import when they run."""
