//! What an operator may change while everything runs, with `meshctl` or
//! `bpftool map update`.

/// Index of the array `knobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Knob {
    /// 0: the short-circuit is used where the workloads' settings say so;
    /// 1: it is off for every connection, from its next message on.
    ShortCircuitOff = 0,
}

/// Number of [`Knob`]s.
pub const KNOBS: usize = 1;
