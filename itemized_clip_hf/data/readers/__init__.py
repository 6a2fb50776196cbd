"""One file per format -> `Scan`; a folder or zip -> `Study`."""
