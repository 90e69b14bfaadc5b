"""File formats of photographs, a module each."""
