"""The file system tier: each block a file, verified when it is read."""
