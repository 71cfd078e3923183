"""Tiers around a tier, which do what a test wants, and keep the laws of tiers."""
