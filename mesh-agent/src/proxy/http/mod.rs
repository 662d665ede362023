//! HTTP/1.1, HTTP/2 and gRPC on the client's node: route, balance, forward.
