"""Losses as functions of tensors; objectives are made of them."""
