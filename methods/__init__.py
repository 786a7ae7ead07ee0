"""One file per method. The file's stem is the method's name everywhere."""
