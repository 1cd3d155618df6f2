"""Our losses under the names and arguments of other libraries, one file a library."""
