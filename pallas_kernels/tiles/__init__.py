"""Tiles that were measured on a chip: a table for each, which is asked before the rules are."""
