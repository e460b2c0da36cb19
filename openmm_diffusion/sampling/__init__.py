"""Samplers of trained models: reverse-time SDEs, and maps with an exact density."""
