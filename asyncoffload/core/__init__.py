"""The planning core: pure bookkeeping that never waits, reads no clock and touches no memory but its own."""
