"""One number a weight: floats and integers that are stored as they are."""
