"""Cohorts: embeddings of many studies in one file, and what is looked for in them."""
