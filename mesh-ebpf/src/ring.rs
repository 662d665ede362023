//! A ring buffer of events. aya's own definition gives the map a value type and
//! a value size of 0, which libbpf (and so `bpftool prog loadall`) refuses.

use core::ptr;

use aya_ebpf::bindings::{BPF_RB_NO_WAKEUP, bpf_map_type::BPF_MAP_TYPE_RINGBUF};
use aya_ebpf::helpers::generated::bpf_ringbuf_output;
use mesh_common::FlowEvent;

/// Size in bytes: a power of two and a multiple of the page. The agent maps it twice in
/// a row, as its reader has to, and all of it counts as memory of the agent.
const BYTES: usize = 1 << 20;

/// The loaders read the numbers off the types.
#[repr(C)]
pub struct EventRing {
    r#type: *const [i32; BPF_MAP_TYPE_RINGBUF as usize],
    max_entries: *const [i32; BYTES],
}

// SAFETY: never read or written; the loaders replace its address by that of the map.
unsafe impl Sync for EventRing {}

impl EventRing {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            max_entries: ptr::null(),
        }
    }

    /// Whether there was room. The agent looks by itself several times a
    /// second: waking it for each event would cost more than the event.
    #[inline(always)]
    pub fn output(&self, event: &FlowEvent) -> bool {
        // SAFETY: the map, and a value of the size that is given.
        let result = unsafe {
            bpf_ringbuf_output(
                ptr::from_ref(self).cast_mut().cast(),
                ptr::from_ref(event).cast_mut().cast(),
                size_of::<FlowEvent>() as u64,
                u64::from(BPF_RB_NO_WAKEUP),
            )
        };
        result == 0
    }
}
