//! Real sockets on loopback and in temporary directories.
