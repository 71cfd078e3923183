"""Managers: who decides where blocks lie, as coroutines."""
