"""Reproduction: profiles, stages with keys, the notebook runner, provenance. Imports no torch at module level."""
