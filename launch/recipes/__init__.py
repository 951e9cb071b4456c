"""The recipes that come with jscale: one file each, to run, to read and to copy."""
