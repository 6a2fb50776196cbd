"""The app in the browser: upload a study, read what was checked and found, turn through it, and ask what a place shows."""
