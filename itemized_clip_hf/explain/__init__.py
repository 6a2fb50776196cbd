"""Where a model looked for an item: maps in the scan's own space, and pictures of them."""
