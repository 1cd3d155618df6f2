"""Our losses with the names and arguments of other libraries, one file per library. May import ops."""
