"""Necks: what fuses the backbone's levels into a pyramid."""
