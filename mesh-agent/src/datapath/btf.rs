//! Where fields stand in the running kernel's structures, read from its BTF
//! (Documentation/bpf/btf.rst). Only what [`KernelLayout`] needs: structures,
//! their members through anonymous ones, and one enumeration.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use mesh_common::KernelLayout;

/// The kernel's own types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why the layout is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum BtfError {
    /// The kernel was built without.
    #[error("{VMLINUX}: {0}")]
    Missing(#[from] std::io::Error),
    /// It is not what the documentation says.
    #[error("{VMLINUX}: not in the format of BTF")]
    Malformed,
    /// A field has another name or place in this kernel.
    #[error("this kernel's {0} is not where it was expected")]
    Field(&'static str),
}

/// The layout of the running kernel.
pub(super) fn kernel_layout() -> Result<KernelLayout, BtfError> {
    layout(&fs::read(Path::new(VMLINUX))?)
}

fn layout(bytes: &[u8]) -> Result<KernelLayout, BtfError> {
    let btf = Btf::parse(bytes).ok_or(BtfError::Malformed)?;
    let field = |structure: &'static str, path: &[&str], what: &'static str| {
        btf.offset(structure, path).ok_or(BtfError::Field(what))
    };
    let zerocopy = btf.enumerator("sock_flags", "SOCK_ZEROCOPY");
    Ok(KernelLayout {
        is_known: 1,
        receive_memory: field("sock", &["sk_backlog", "rmem_alloc"], "sk_rmem_alloc")?,
        receive_buffer: field("sock", &["sk_rcvbuf"], "sk_rcvbuf")?,
        flags: field("sock", &["__sk_common", "skc_flags"], "sk_flags")?,
        zerocopy_bit: zerocopy.ok_or(BtfError::Field("SOCK_ZEROCOPY"))?,
        write_seq: field("tcp_sock", &["write_seq"], "write_seq")?,
        copied_seq: field("tcp_sock", &["copied_seq"], "copied_seq")?,
        shutdown: field("sock", &["sk_shutdown"], "sk_shutdown")?,
        state: field("sock", &["__sk_common", "skc_state"], "sk_state")?,
        lock_owned: field("sock", &["sk_lock", "owned"], "sk_lock")?,
        error: field("sock", &["sk_err"], "sk_err")?,
    })
}

/// A type: its kind, flag and number of members, its size or the type that it
/// refers to, and where what follows it begins.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    bitfields: bool,
    members: u32,
    size_or_type: u32,
    rest: usize,
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// By number; 0 is void.
    all: Vec<Type>,
    structures: HashMap<&'a str, u32>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let (start, length) = (word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            let start = header.checked_add(start)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let void = Type {
            name: 0,
            kind: 0,
            bitfields: false,
            members: 0,
            size_or_type: 0,
            rest: 0,
        };
        let mut btf = Self {
            types,
            strings,
            all: vec![void],
            structures: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4)?;
            let read = Type {
                name: word(types, at)?,
                kind: info >> 24 & 0x1f,
                bitfields: info >> 31 != 0,
                members: info & 0xffff,
                size_or_type: word(types, at + 8)?,
                rest: at + 12,
            };
            if read.kind == KIND_STRUCT {
                let number = btf.all.len() as u32;
                btf.structures.entry(btf.text(read.name)?).or_insert(number);
            }
            at = read.rest + extra(&read);
            btf.all.push(read);
        }
        Some(btf)
    }

    fn text(&self, at: u32) -> Option<&'a str> {
        let rest = self.strings.get(at as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// Offset in bytes of a member of a structure, and of its member, and so on.
    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut at = *self.structures.get(structure)?;
        let mut bits = 0;
        for name in path {
            let (offset, number) = self.member(at, name)?;
            bits += offset;
            at = number;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Offset in bits and type of a member, also of an anonymous structure or union inside.
    fn member(&self, number: u32, wanted: &str) -> Option<(u32, u32)> {
        let outer = self.resolve(number)?;
        if outer.kind != KIND_STRUCT && outer.kind != KIND_UNION {
            return None;
        }
        (0..outer.members as usize).find_map(|index| {
            let at = outer.rest + index * 12;
            let (name, number) = (word(self.types, at)?, word(self.types, at + 4)?);
            let offset = word(self.types, at + 8)?;
            let offset = if outer.bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            if self.text(name)? == wanted {
                return Some((offset, number));
            }
            if name != 0 {
                return None;
            }
            let (inner, number) = self.member(number, wanted)?;
            Some((offset + inner, number))
        })
    }

    /// Value of an enumerator.
    fn enumerator(&self, enumeration: &str, wanted: &str) -> Option<u32> {
        let found = self.all.iter().find(|candidate| {
            candidate.kind == KIND_ENUM && self.text(candidate.name) == Some(enumeration)
        })?;
        (0..found.members as usize).find_map(|index| {
            let at = found.rest + index * 8;
            let name = self.text(word(self.types, at)?)?;
            (name == wanted).then(|| word(self.types, at + 4))?
        })
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, number: u32) -> Option<Type> {
        let mut read = *self.all.get(number as usize)?;
        while [KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_TYPE_TAG].contains(&read.kind) {
            read = *self.all.get(read.size_or_type as usize)?;
        }
        Some(read)
    }
}

/// Bytes that follow a type of this kind.
fn extra(read: &Type) -> usize {
    let members = read.members as usize;
    match read.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => members * 12,
        KIND_ENUM | KIND_FUNC_PROTO => members * 8,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernels_layout_is_found() {
        let layout = kernel_layout().unwrap();
        // `struct sock` is below 1 KiB, the rest of `struct tcp_sock` below 4 KiB.
        for offset in [layout.receive_memory, layout.receive_buffer, layout.flags] {
            assert!((1..1024).contains(&offset), "{layout:?}");
        }
        for offset in [layout.write_seq, layout.copied_seq] {
            assert!(
                (1024..4096).contains(&offset) && offset % 4 == 0,
                "{layout:?}"
            );
        }
        assert!((1..64).contains(&layout.zerocopy_bit), "{layout:?}");
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        for bytes in [&b""[..], b"\x9f\xeb", &[0; 64], &[0xff; 64]] {
            assert!(matches!(layout(bytes), Err(BtfError::Malformed)));
        }
        // A header alone has no types.
        let mut header = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        header.resize(24, 0);
        assert!(matches!(layout(&header), Err(BtfError::Field(_))));
    }
}
