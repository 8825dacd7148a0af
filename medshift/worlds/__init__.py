"""Worlds in the plane whose densities and velocities are known in closed form, for learning flow matching by sight."""
