"""Evaluations without a label table, one file each."""
