//! Log lines. They are in an object of their own, which the agent loads while
//! the operator asks for them; of the object that runs otherwise they are no part.

pub mod connect;

#[cfg(feature = "log")]
use mesh_common::Ip;

/// `log!(debug, "connect to {:i}:{}", ip = bytes(&ip), port = port)`: one line at one
/// of the levels of aya-log. Its values are copied first: the line is written by a
/// function of its own, and what that refers to has to lie on the stack, where the
/// verifier forgets what is known of pointers in it.
macro_rules! log {
    ($level:ident, $format:literal $(, $name:ident = $value:expr)* $(,)?) => {
        #[cfg(feature = "log")]
        {
            $(let $name = $value;)*
            aya_log_ebpf::$level!((), $format $(, $name)*);
        }
    };
}
pub(crate) use log;

/// An address as log lines take it; IPv4 in its mapped form.
#[cfg(feature = "log")]
#[inline(always)]
pub fn bytes(ip: &Ip) -> [u8; 16] {
    // SAFETY: four words of network order are 16 bytes.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(ip.words) }
}
