//! Byte streams of several kinds as one.

/// Implements reading, writing and [`Duplex`](super::copy::Duplex) for an enum whose
/// variants hold a stream each.
macro_rules! one_of {
    ($name:ident: $($variant:ident)|+) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => std::pin::Pin::new(io).poll_read(cx, buffer),)+
                }
            }
        }

        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(io) => std::pin::Pin::new(io).poll_write(cx, bytes),)+
                }
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                slices: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(io) => std::pin::Pin::new(io).poll_write_vectored(cx, slices),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $(Self::$variant(io) => io.is_write_vectored(),)+
                }
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => std::pin::Pin::new(io).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(io) => std::pin::Pin::new(io).poll_shutdown(cx),)+
                }
            }
        }

        impl $crate::proxy::copy::Duplex for $name {
            fn abort(&mut self) {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::abort(io),)+
                }
            }

            fn poll_chunk(
                &mut self,
                cx: &mut std::task::Context<'_>,
                buffer: &mut bytes::BytesMut,
            ) -> std::task::Poll<std::io::Result<$crate::proxy::copy::Chunk>> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::poll_chunk(io, cx, buffer),)+
                }
            }

            fn all_written(&mut self) {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::all_written(io),)+
                }
            }

            fn broken(&self) -> Option<std::io::Error> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::broken(io),)+
                }
            }

            fn batch_bytes(&self) -> usize {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::batch_bytes(io),)+
                }
            }

            fn keeps(&self) -> bool {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::keeps(io),)+
                }
            }

            fn poll_give(
                &mut self,
                cx: &mut std::task::Context<'_>,
                bytes: &mut bytes::Bytes,
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::poll_give(io, cx, bytes),)+
                }
            }

            fn application(
                &mut self,
            ) -> Option<&mut $crate::proxy::application_stream::ApplicationStream> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::application(io),)+
                }
            }

            fn is_plain(&self) -> bool {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::is_plain(io),)+
                }
            }

            fn poll_fill(
                &mut self,
                cx: &mut std::task::Context<'_>,
                pipe: &mut $crate::proxy::copy::KernelPipe,
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::poll_fill(io, cx, pipe),)+
                }
            }

            fn poll_drain(
                &mut self,
                cx: &mut std::task::Context<'_>,
                pipe: &mut $crate::proxy::copy::KernelPipe,
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::poll_drain(io, cx, pipe),)+
                }
            }

            fn poll_aborted(
                &mut self,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Error> {
                match self {
                    $(Self::$variant(io) => $crate::proxy::copy::Duplex::poll_aborted(io, cx),)+
                }
            }
        }
    };
}

pub(super) use one_of;
