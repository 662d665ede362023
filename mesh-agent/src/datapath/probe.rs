//! What the running kernel makes of sockets in a map of sockets, found out by
//! trying, between two network namespaces that go when the probe ends, as
//! between two workloads. It takes a tenth of a second.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Map, MapData, SkStorage, SockHash};
use aya::programs::SkMsg;
use mesh_common::Splice;
use socket2::SockRef;

use super::bpf::attach_to_sockets;
use super::object::Loader;
use super::{OBJECT, programs};
use crate::netns::Wire;

const PROGRAM: &str = "um_probe";
/// How long a call may take that should return at once.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one may take that waits for something: an agent that starts does not wait for ever.
const LONG: Duration = Duration::from_secs(10);
/// `SO_MEMINFO` (include/uapi/asm-generic/socket.h) and the first of its numbers.
const SO_MEMINFO: libc::c_int = 55;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    /// Why nothing may be handed over at all.
    pub(super) unsafe_because: Option<&'static str>,
    /// What applications notice whose sockets hand bytes over, but get theirs by TCP.
    pub(super) noticed_by_senders: Vec<&'static str>,
    /// What applications notice that are handed bytes.
    pub(super) noticed_by_receivers: Vec<&'static str>,
}

/// Tries it. An error is the reason why it cannot be tried.
pub(super) fn run(loader: &mut Loader) -> Result<Findings, String> {
    let start = Instant::now();
    // The thread's namespaces are not the process's, and go with the thread.
    let result = thread::scope(|scope| {
        let probe = thread::Builder::new()
            .name("probe".to_owned())
            .spawn_scoped(scope, || {
                Probe::new(loader).and_then(|mut probe| probe.findings())
            });
        probe
            .map(|probe| probe.join())
            .map_err(|error| error.to_string())
    })?;
    tracing::debug!(elapsed = ?start.elapsed(), "the kernel was probed");
    result
        .unwrap_or_else(|_| Err(io::Error::other("it ended before its time")))
        .map_err(|error| format!("the probe of this kernel failed: {error}"))
}

struct Probe {
    /// Senders are at this end of it, receivers at the other.
    _wire: Wire,
    listener: TcpListener,
    /// Keeps the program loaded.
    _object: Ebpf,
    sockets: SockHash<MapData, u64>,
    splices: SkStorage<MapData, Splice>,
    next: u64,
}

/// Two ends of a connection, both in the map.
struct Pair {
    sender: TcpStream,
    receiver: TcpStream,
}

impl Probe {
    fn new(loader: &mut Loader) -> io::Result<Self> {
        let wire = Wire::lay()?;
        let other = |error: &dyn std::error::Error| io::Error::other(error.to_string());
        let mut object = loader.load(OBJECT).map_err(|e| other(&e))?;
        let program = object.program_mut(PROGRAM);
        let program = program.ok_or_else(|| other(&programs::missing(PROGRAM)))?;
        let program: &mut SkMsg = program
            .try_into()
            .map_err(|e: aya::programs::ProgramError| other(&e))?;
        program
            .load()
            .map_err(|e| other(&programs::refused(PROGRAM, &e)))?;
        let program = program.fd().map_err(|e| other(&e))?;
        let program = program.as_fd().try_clone_to_owned()?;
        if let Some(Map::SockHash(sockets)) = object.map("spliced_sockets") {
            attach_to_sockets(program.as_fd(), sockets.fd().as_fd())?;
        }
        let mut take = |name: &str| {
            let map = object.take_map(name);
            map.ok_or_else(|| io::Error::other(format!("no map {name}")))
        };
        let (sockets, splices) = (take("spliced_sockets")?, take("splices")?);
        Ok(Self {
            listener: wire.at_far_end(|| TcpListener::bind((wire.far_address(), 0)))?,
            _wire: wire,
            sockets: sockets
                .try_into()
                .map_err(|e: aya::maps::MapError| other(&e))?,
            splices: splices
                .try_into()
                .map_err(|e: aya::maps::MapError| other(&e))?,
            _object: object,
            next: 1,
        })
    }

    /// `sends`: the sender's bytes are handed over; otherwise TCP carries them.
    fn pair(&mut self, sends: bool) -> io::Result<Pair> {
        let sender = TcpStream::connect_timeout(&self.listener.local_addr()?, LONG)?;
        let (receiver, _) = self.listener.accept()?;
        for stream in [&sender, &receiver] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        let (first, second) = (self.next, self.next + 1);
        self.next += 2;
        for (socket, own, peer, sends) in [
            (&sender, first, second, sends),
            (&receiver, second, first, false),
        ] {
            let splice = Splice {
                own,
                peer,
                sends: sends.into(),
                ..Splice::default()
            };
            (self.splices.insert(socket, splice, 0)).map_err(io::Error::other)?;
            (self.sockets.insert(own, socket.as_raw_fd(), 0)).map_err(io::Error::other)?;
        }
        Ok(Pair { sender, receiver })
    }

    fn findings(&mut self) -> io::Result<Findings> {
        let unsafe_because = self.unsafe_because()?;
        let mut noticed = |sends| -> io::Result<Vec<&'static str>> {
            let mut noticed = Vec::new();
            for (what, shows) in [
                (
                    "FIONREAD",
                    Self::fionread as fn(&mut Self, bool) -> io::Result<bool>,
                ),
                ("splice(2)", Self::splice),
                ("a read that is short, though more is there", Self::whole),
                ("a blocking recv during a reset", Self::reset),
            ] {
                if !shows(self, sends)? {
                    noticed.push(what);
                }
            }
            Ok(noticed)
        };
        let found = Findings {
            unsafe_because,
            noticed_by_senders: noticed(false)?,
            noticed_by_receivers: noticed(true)?,
        };
        tracing::debug!(?found, "the kernel's ways with sockets");
        Ok(found)
    }

    /// Handed-over bytes arrive, and count in the receiver's memory.
    fn unsafe_because(&mut self) -> io::Result<Option<&'static str>> {
        const BYTES: usize = 60_000;
        let mut pair = self.pair(true)?;
        pair.sender.write_all(&[7; BYTES])?;
        let charged = receive_memory(&pair.receiver)?;
        let mut arrived = vec![0; BYTES];
        pair.receiver.read_exact(&mut arrived)?;
        Ok(if arrived.iter().any(|byte| *byte != 7) {
            Some("this kernel changes the bytes that it hands over")
        } else if (charged as usize) < BYTES {
            Some(
                "this kernel does not charge receivers for what they are handed (Linux 6.13 and \
                 later stable releases do), so nothing would hold a writer back",
            )
        } else {
            None
        })
    }

    /// `FIONREAD` tells how much can be read.
    fn fionread(&mut self, sends: bool) -> io::Result<bool> {
        let mut pair = self.pair(sends)?;
        pair.sender.write_all(b"12345")?;
        // Peeking waits until they are there.
        pair.receiver.peek(&mut [0; 5])?;
        let mut count: libc::c_int = 0;
        // SAFETY: writes an int.
        let result =
            unsafe { libc::ioctl(pair.receiver.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        Ok(result == 0 && count == 5)
    }

    /// splice(2) finds what can be read.
    fn splice(&mut self, sends: bool) -> io::Result<bool> {
        let mut pair = self.pair(sends)?;
        let (_read, write) = io::pipe()?;
        pair.sender.write_all(b"12345")?;
        pair.receiver.peek(&mut [0; 5])?;
        // Where it finds nothing, it must not wait until it does: the flag below is for the pipe.
        pair.receiver.set_nonblocking(true)?;
        // SAFETY: two descriptors that are open; no offsets are given.
        let moved = unsafe {
            libc::splice(
                pair.receiver.as_raw_fd(),
                std::ptr::null_mut(),
                write.as_raw_fd(),
                std::ptr::null_mut(),
                5,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        Ok(moved == 5)
    }

    /// A recv gives all that is there, also what came in different ways: who waits for
    /// events (epoll(7), edge-triggered) may take a short one for the last.
    fn whole(&mut self, sends: bool) -> io::Result<bool> {
        let mut pair = self.pair(sends)?;
        pair.sender.write_all(b"12345")?;
        let by_tcp = self.splices.get(&pair.sender, 0);
        let by_tcp = Splice {
            sends: 0,
            ..by_tcp.map_err(io::Error::other)?
        };
        (self.splices.insert(&pair.sender, by_tcp, 0)).map_err(io::Error::other)?;
        pair.sender.write_all(b"67890")?;
        await_acknowledged(&pair.sender)?;
        Ok(pair.receiver.read(&mut [0; 20])? == 10)
    }

    /// A recv that waits when the connection is reset says so.
    fn reset(&mut self, sends: bool) -> io::Result<bool> {
        let pair = self.pair(sends)?;
        let receiver = pair.receiver.try_clone()?;
        receiver.set_read_timeout(Some(LONG))?;
        let (waits, waiting) = mpsc::channel();
        let reader = thread::spawn(move || {
            let _ = waits.send(());
            let mut receiver = receiver;
            receiver.read(&mut [0; 1]).map_err(|error| error.kind())
        });
        let _ = waiting.recv();
        // There is no telling when the other thread waits in the kernel; too early, and recv finds the
        // reset when it begins, which looks right: only the caution is lost.
        thread::sleep(Duration::from_millis(20));
        SockRef::from(&pair.sender).set_linger(Some(Duration::ZERO))?;
        drop(pair.sender);
        let said = reader.join().map_err(|_| io::Error::other("no answer"))?;
        Ok(said == Err(io::ErrorKind::ConnectionReset))
    }
}

/// Waits until the other end has what was sent by TCP.
fn await_acknowledged(sender: &TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: writes an int.
        let result =
            unsafe { libc::ioctl(sender.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        match (result, unacknowledged) {
            (0, 0) => return Ok(()),
            (0, _) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            (0, _) => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Bytes that wait to be read, as the socket is charged for them.
fn receive_memory(stream: &TcpStream) -> io::Result<u32> {
    let mut numbers = [0u32; 9];
    let mut size = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: a buffer of the size that is given.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(numbers[0])
}
