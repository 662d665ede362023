//! Undermesh's kernel programs. One file per hook; the decisions are functions
//! of mesh-common, which host tests call.
#![no_std]
#![no_main]
// Inline assembly for the kernel's target; see `context::add`.
#![feature(asm_experimental_arch)]

mod account;
mod bind;
mod bridge;
mod connect;
mod context;
mod direct;
mod dns;
mod kernel;
mod listener;
mod log;
mod maps;
mod moment;
mod original_dst;
mod peername;
mod ring;
mod sk_lookup;
mod sk_msg;
mod sockops;
mod source;
mod splice;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}

/// The kernel gives some of the helpers that are used here only to programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
