"""What ``doctor`` looks at: a directory, the disk below it, and the machine around it."""
