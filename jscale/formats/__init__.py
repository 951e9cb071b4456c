"""Weights in the formats of other frameworks: tables of names and shapes, read both ways."""
