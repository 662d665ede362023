//! What the short-circuit may do: by the kernel's abilities, which a probe
//! finds out, and by the workloads' settings.

use mesh_common::{KernelLayout, workload_flag};

use super::btf;
use crate::registry::ShortCircuit;

/// Whether a tier is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tier {
    /// For all workloads that do not say `off`.
    Automatic,
    /// The same, but only on sockets that do not block.
    AutomaticNonblocking {
        /// Why not on others.
        reason: String,
    },
    /// For workloads that say `on`.
    OptIn {
        /// Why not for all.
        reason: String,
    },
    /// For none.
    Off {
        /// Why not.
        reason: String,
    },
}

/// The tiers of the short-circuit, by who receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// From applications to the agent.
    pub to_agent: Tier,
    /// From the agent to applications, and between applications.
    pub to_application: Tier,
}

impl Tiers {
    /// No tier, for one reason.
    pub fn off(reason: impl Into<String>) -> Self {
        let off = Tier::Off {
            reason: reason.into(),
        };
        Self {
            to_agent: off.clone(),
            to_application: off,
        }
    }

    /// Flags of a workload in the kernel's map.
    pub(super) fn flags(&self, setting: ShortCircuit) -> u32 {
        use workload_flag::{SPLICE_FROM_AGENT, SPLICE_NONBLOCKING_TO_AGENT, SPLICE_TO_AGENT};
        let to_agent = match (&self.to_agent, setting) {
            (Tier::Off { .. }, _) | (_, ShortCircuit::Off) => 0,
            (Tier::Automatic, _) | (_, ShortCircuit::On) => SPLICE_TO_AGENT,
            (Tier::AutomaticNonblocking { .. }, _) => SPLICE_NONBLOCKING_TO_AGENT,
            (Tier::OptIn { .. }, ShortCircuit::Auto) => 0,
        };
        let from_agent = if self.reaches_application(setting) {
            SPLICE_FROM_AGENT
        } else {
            0
        };
        to_agent | from_agent
    }

    /// Whether an application with this setting may receive through the short-circuit.
    pub fn reaches_application(&self, setting: ShortCircuit) -> bool {
        match (&self.to_application, setting) {
            (Tier::Off { .. }, _) | (_, ShortCircuit::Off) => false,
            (Tier::Automatic, _) | (_, ShortCircuit::On) => true,
            (_, ShortCircuit::Auto) => false,
        }
    }
}

/// What this kernel allows, and its layout for the programs.
pub(super) fn examine() -> (KernelLayout, Tiers) {
    match btf::kernel_layout() {
        Ok(kernel) => (
            kernel,
            Tiers {
                to_agent: Tier::AutomaticNonblocking {
                    reason: "not probed".to_owned(),
                },
                to_application: Tier::OptIn {
                    reason: "not probed".to_owned(),
                },
            },
        ),
        Err(error) => (KernelLayout::default(), Tiers::off(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers() -> Tiers {
        Tiers {
            to_agent: Tier::AutomaticNonblocking {
                reason: String::new(),
            },
            to_application: Tier::OptIn {
                reason: String::new(),
            },
        }
    }

    #[test]
    fn a_workload_gets_what_it_asks_for_within_what_the_kernel_can() {
        use workload_flag::*;
        let tiers = tiers();
        assert_eq!(tiers.flags(ShortCircuit::Auto), SPLICE_NONBLOCKING_TO_AGENT);
        assert_eq!(
            tiers.flags(ShortCircuit::On),
            SPLICE_TO_AGENT | SPLICE_FROM_AGENT
        );
        assert_eq!(tiers.flags(ShortCircuit::Off), 0);
        assert_eq!(Tiers::off("no").flags(ShortCircuit::On), 0);
        let all = Tiers {
            to_agent: Tier::Automatic,
            to_application: Tier::Automatic,
        };
        assert_eq!(
            all.flags(ShortCircuit::Auto),
            SPLICE_TO_AGENT | SPLICE_FROM_AGENT
        );
        assert_eq!(all.flags(ShortCircuit::Off), 0);
    }
}
