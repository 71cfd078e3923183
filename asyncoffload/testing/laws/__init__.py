"""The laws of tiers, by subject."""
