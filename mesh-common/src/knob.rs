//! What an operator may change while everything runs, with `meshctl` or
//! `bpftool map update`.

/// Index of the array `knobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Knob {
    /// 0: the short-circuit is used where the workloads' settings say so;
    /// 1: it is off for every connection, from its next message on.
    ShortCircuitOff = 0,
    /// What the kernel programs say: 0 nothing, 1 errors, 2 warnings, 3 what is refused, 4 what
    /// becomes of each connection, 5 more. The agent replaces the programs when it changes.
    LogLevel = 1,
}

/// Number of [`Knob`]s.
pub const KNOBS: usize = 2;
