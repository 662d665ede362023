//! Bridges past the agent, in memory that it shares with the kernel programs: they are
//! opened, closed and counted without a system call.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use aya::maps::{HashMap, MapData, SkStorage};
use mesh_common::{BridgeTarget, MAX_BRIDGES, Splice, SplicePeer, bridge_index};

/// Memory of one [`mesh_common::Bridge`], as the programs write it at the same time.
#[repr(C)]
struct Slot {
    sender: AtomicU64,
    open: AtomicU64,
    bytes: AtomicU64,
    receiver: AtomicU64,
    receiver_sock: AtomicU64,
    far_sock: AtomicU64,
    reserved: [u64; 2],
}

const _: () = assert!(size_of::<Slot>() == size_of::<mesh_common::Bridge>());

/// All bridges of the node.
pub struct Bridges {
    slots: Slots,
    splices: SkStorage<MapData, Splice>,
    peers: HashMap<MapData, u64, SplicePeer>,
}

/// What becomes of the wish for a bridge.
pub enum Bridging {
    /// There is one, closed as yet.
    Made(Bridge),
    /// The receiver's socket is not known yet: its application may not have accepted it.
    NotYet,
    /// The connection's bytes go through the agent.
    Never,
}

impl Bridges {
    /// `is_first`: no other agent has bridges; what is there is left from one that died.
    pub(super) fn new(
        map: BorrowedFd<'_>,
        splices: SkStorage<MapData, Splice>,
        peers: HashMap<MapData, u64, SplicePeer>,
        is_first: bool,
    ) -> io::Result<Self> {
        let slots = Slots::map(map)?;
        if is_first {
            for slot in slots.all() {
                slot.open.store(0, Ordering::Relaxed);
                slot.sender.store(0, Ordering::Release);
            }
        }
        Ok(Self {
            slots,
            splices,
            peers,
        })
    }

    /// For what the application at the other end of `near` sends to that at the other end of
    /// `far`, where both take part in the short-circuit.
    pub fn make(self: &Arc<Self>, near: &impl AsRawFd, far: &impl AsRawFd) -> Bridging {
        let (Ok(near), Ok(far)) = (self.splices.get(near, 0), self.splices.get(far, 0)) else {
            return Bridging::Never;
        };
        // Who may not receive from the agent may not receive past it.
        if far.sends == 0 {
            return Bridging::Never;
        }
        let (Some(sender), Some(receiver)) = (self.other_end(&near), self.other_end(&far)) else {
            return Bridging::NotYet;
        };
        let target = BridgeTarget {
            receiver: receiver.cookie,
            receiver_sock: receiver.sock,
            far_sock: far.own_sock,
        };
        match self.claim(sender.cookie, &target) {
            true => Bridging::Made(Bridge {
                bridges: self.clone(),
                sender: sender.cookie,
            }),
            // Another socket is in its place.
            false => Bridging::Never,
        }
    }

    fn other_end(&self, splice: &Splice) -> Option<SplicePeer> {
        if splice.peer != 0 && splice.peer_sock != 0 {
            return Some(SplicePeer {
                cookie: splice.peer,
                sock: splice.peer_sock,
            });
        }
        self.peers.get(&splice.own, 0).ok()
    }

    fn claim(&self, sender: u64, target: &BridgeTarget) -> bool {
        let slot = self.slots.of(sender);
        let claimed =
            (slot.sender).compare_exchange(0, sender, Ordering::SeqCst, Ordering::Relaxed);
        if claimed.is_err() {
            return false;
        }
        // Who reads what is written now sees whose it is, too.
        fence(Ordering::SeqCst);
        slot.bytes.store(0, Ordering::Relaxed);
        slot.receiver.store(target.receiver, Ordering::Relaxed);
        (slot.receiver_sock).store(target.receiver_sock, Ordering::Relaxed);
        slot.far_sock.store(target.far_sock, Ordering::Relaxed);
        true
    }
}

/// The way of one direction of a connection past the agent, until it is dropped.
pub struct Bridge {
    bridges: Arc<Bridges>,
    sender: u64,
}

impl Bridge {
    fn slot(&self) -> &Slot {
        self.bridges.slots.of(self.sender)
    }

    /// From now on no byte passes. To be called before the agent reads what the sender has sent:
    /// a program that finds it read finds this, too.
    pub fn close(&self) {
        self.slot().open.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The agent holds nothing of what it has read.
    pub fn open(&self) {
        self.slot().open.store(self.sender, Ordering::Release);
    }

    /// What has passed.
    pub fn bytes(&self) -> u64 {
        self.slot().bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.close();
        self.slot().sender.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("sender", &self.sender)
            .field("bytes", &self.bytes())
            .finish()
    }
}

/// The map in this process's memory.
struct Slots(NonNull<Slot>);

// SAFETY: everything in it is atomic, and it stays mapped until it is dropped.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    const BYTES: usize = MAX_BRIDGES as usize * size_of::<Slot>();

    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: new memory, wherever the kernel likes.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast())
            .map(Self)
            .ok_or_else(|| io::Error::other("mapped at 0"))
    }

    fn all(&self) -> &[Slot] {
        // SAFETY: so many slots are mapped; zero is a valid value.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), MAX_BRIDGES as usize) }
    }

    fn of(&self, sender: u64) -> &Slot {
        &self.all()[bridge_index(sender) as usize]
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Self::BYTES) };
    }
}
