"""The benchmark behind ``bench fs``: the file system tier beside bare threads that move the same files."""
