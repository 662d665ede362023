//! HBONE: HTTP/2 CONNECT over mutual TLS 1.3 on port 15008, as Istio ambient speaks it.
