"""The weights that ship with the package, with their cards and their index."""
