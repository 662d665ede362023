//! What Undermesh promises, shown with real kernel programs, real namespaces,
//! real TLS and unmodified clients and servers.

mod laboratory;
