"""Files -> studies: readers, study lists, items."""
