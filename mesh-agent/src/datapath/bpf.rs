//! The bpf(2) calls that aya does not make: links that are replaced in place,
//! maps that are read and emptied by many entries at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    SockOps = 3,
    SkMsgVerdict = 7,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getsockopt = 21,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SkLookup = 36,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttribute {
    /// Program (create), link (update) or map (attach).
    first: u32,
    /// Cgroup or namespace (create) or program (update, attach).
    second: u32,
    attach_type_or_flags: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttribute {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttribute {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttribute {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

fn call<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute is a prefix of `union bpf_attr` of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attribute = LinkAttribute {
        first: raw(program),
        second: raw(target),
        attach_type_or_flags: kind as u32,
        flags,
    };
    let fd = call(BPF_LINK_CREATE, &mut attribute)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The program of a link is replaced at one instant: no connection sees none.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkAttribute {
        first: raw(link),
        second: raw(program),
        ..LinkAttribute::default()
    };
    call(BPF_LINK_UPDATE, &mut attribute).map(drop)
}

/// The value of a key of a hash map whose values are of type `V`.
pub(super) fn lookup<V: Pod + Default>(map: BorrowedFd<'_>, key: u64) -> io::Result<V> {
    let mut value = V::default();
    let mut attribute = ElementAttribute {
        map: raw(map),
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..ElementAttribute::default()
    };
    call(BPF_MAP_LOOKUP_ELEM, &mut attribute)?;
    Ok(value)
}

/// Replaces the value of a key that is in the map.
pub(super) fn replace<V: Pod>(map: BorrowedFd<'_>, key: u64, value: &V) -> io::Result<()> {
    const BPF_EXIST: u64 = 2;
    update(map, key, value, BPF_EXIST)
}

/// Adds a key that is not in the map.
pub(super) fn insert<V: Pod>(map: BorrowedFd<'_>, key: u64, value: &V) -> io::Result<()> {
    const BPF_NOEXIST: u64 = 1;
    update(map, key, value, BPF_NOEXIST)
}

fn update<V: Pod>(map: BorrowedFd<'_>, key: u64, value: &V, flags: u64) -> io::Result<()> {
    let mut attribute = ElementAttribute {
        map: raw(map),
        key: (&raw const key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
        ..ElementAttribute::default()
    };
    call(BPF_MAP_UPDATE_ELEM, &mut attribute).map(drop)
}

/// Calls `each` for the entries of a hash map, of which the kernel gives many with one call.
pub(super) fn lookup_all<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, &V),
) -> io::Result<()> {
    /// More than a bucket has; the kernel gives whole buckets.
    const COUNT: usize = 1024;
    let mut keys = vec![K::default(); COUNT];
    let mut values = vec![V::default(); COUNT];
    // The number of the next bucket.
    let mut position = 0u32;
    let mut first = true;
    loop {
        let mut attribute = BatchAttribute {
            in_batch: if first { 0 } else { (&raw mut position) as u64 },
            out_batch: (&raw mut position) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: COUNT as u32,
            map: raw(map),
            ..BatchAttribute::default()
        };
        let result = call(BPF_MAP_LOOKUP_BATCH, &mut attribute);
        let is_last = match result {
            Ok(_) => false,
            // The last ones come with it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        first = false;
        let count = (attribute.count as usize).min(COUNT);
        for (key, value) in keys[..count].iter().zip(&values[..count]) {
            each(*key, value);
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Removes these keys from a hash map with one call for many. A key that is
/// not there is as good as removed.
pub(super) fn delete_batch(map: BorrowedFd<'_>, keys: &[u64]) -> io::Result<()> {
    let mut left = keys;
    while !left.is_empty() {
        let mut attribute = BatchAttribute {
            keys: left.as_ptr() as u64,
            count: u32::try_from(left.len()).unwrap_or(u32::MAX),
            map: raw(map),
            ..BatchAttribute::default()
        };
        match call(BPF_MAP_DELETE_BATCH, &mut attribute) {
            Ok(_) => {}
            // The kernel stops at such a key, and `count` says how many went before it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => attribute.count += 1,
            Err(error) => return Err(error),
        }
        left = &left[(attribute.count as usize).min(left.len())..];
    }
    Ok(())
}

/// Makes `program` the one that sees messages of the sockets in a map of
/// sockets (there is no link for this type). Sockets that are in the map
/// already keep the program that was there when they came.
pub(super) fn attach_to_sockets(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkAttribute {
        first: raw(map),
        second: raw(program),
        attach_type_or_flags: AttachType::SkMsgVerdict as u32,
        flags: 0,
    };
    call(BPF_PROG_ATTACH, &mut attribute).map(drop)
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = ObjectAttribute {
        path: path.as_ptr() as u64,
        fd: raw(object),
        flags: 0,
    };
    call(BPF_OBJ_PIN, &mut attribute).map(drop)
}

pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = ObjectAttribute {
        path: path.as_ptr() as u64,
        ..ObjectAttribute::default()
    };
    let fd = call(BPF_OBJ_GET, &mut attribute)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of the link at `path`. `false` where there is none, or
/// its cgroup or namespace has died: the way is free for a new one.
pub(super) fn replace_pinned(path: &Path, program: BorrowedFd<'_>) -> io::Result<bool> {
    use std::os::fd::AsFd;
    let Ok(link) = open_pin(path) else {
        return Ok(false);
    };
    if link_update(link.as_fd(), program).is_ok() {
        return Ok(true);
    }
    std::fs::remove_file(path)?;
    Ok(false)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttribute {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    reserved: u32,
}

/// Programs that are attached to a cgroup itself.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Ids of the programs.
    pub(super) programs: Vec<u32>,
    /// Flags that they were attached with.
    pub(super) flags: u32,
}

/// Most programs of one cgroup and hook (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

pub(super) fn query(target: BorrowedFd<'_>, kind: AttachType) -> io::Result<Attached> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attribute = QueryAttribute {
        target: raw(target),
        attach_type: kind as u32,
        program_ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..QueryAttribute::default()
    };
    call(BPF_PROG_QUERY, &mut attribute)?;
    Ok(Attached {
        programs: ids[..MAX_PROGRAMS.min(attribute.count as usize)].to_vec(),
        flags: attribute.attach_flags,
    })
}

#[repr(C)]
struct InfoAttribute {
    fd: u32,
    length: u32,
    info: u64,
}

/// Beginning of `struct bpf_link_info` for a link to a network namespace.
#[repr(C)]
#[derive(Default)]
struct NetnsLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    inode: u32,
    attach_type: u32,
}

/// Whether the network namespace of a link still exists.
pub(super) fn has_namespace(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = NetnsLinkInfo::default();
    let mut attribute = InfoAttribute {
        fd: raw(link),
        length: size_of::<NetnsLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(info.inode != 0)
}
