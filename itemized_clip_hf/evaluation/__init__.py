"""Scores and metrics; models and processors come in as arguments."""
