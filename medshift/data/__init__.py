"""Heads, views and X-ray physics: from a volume of densities to images of five domains."""
