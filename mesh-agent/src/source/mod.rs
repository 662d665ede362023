//! Where resources come from.

pub mod directory;
