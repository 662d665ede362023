//! What the short-circuit may do: by the kernel's abilities, which a probe
//! finds out, and by the workloads' settings.

use mesh_common::{KernelLayout, workload_flag};

use super::btf;
use super::object::Loader;
use super::probe::{self, Findings};
use crate::registry::ShortCircuit;

/// Whether a tier is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tier {
    /// For all workloads that do not say `off`.
    Automatic,
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
        let bit = |tier: &Tier, flag| if tier.is_used(setting) { flag } else { 0 };
        bit(&self.to_agent, workload_flag::SPLICE_TO_AGENT)
            | bit(&self.to_application, workload_flag::SPLICE_FROM_AGENT)
    }

    /// Whether an application with this setting may receive through the short-circuit.
    pub fn reaches_application(&self, setting: ShortCircuit) -> bool {
        self.to_application.is_used(setting)
    }
}

impl Tier {
    fn is_used(&self, setting: ShortCircuit) -> bool {
        match (self, setting) {
            (Self::Off { .. }, _) | (_, ShortCircuit::Off) => false,
            (Self::Automatic, _) | (_, ShortCircuit::On) => true,
            (Self::OptIn { .. }, ShortCircuit::Auto) => false,
        }
    }
}

/// What this kernel allows, and its layout for the programs.
pub(super) fn examine(loader: &mut Loader) -> (KernelLayout, Tiers) {
    let kernel = match btf::kernel_layout() {
        Ok(kernel) => kernel,
        Err(error) => return (KernelLayout::default(), Tiers::off(error.to_string())),
    };
    match probe::run(loader) {
        Ok(found) => (kernel, tiers(&found)),
        Err(reason) => (KernelLayout::default(), Tiers::off(reason)),
    }
}

fn tiers(found: &Findings) -> Tiers {
    if let Some(reason) = found.unsafe_because {
        return Tiers::off(reason);
    }
    let tier = |noticed: &[&'static str]| match noticed {
        [] => Tier::Automatic,
        noticed => Tier::OptIn {
            reason: format!("here an application can notice it: {}", noticed.join(", ")),
        },
    };
    Tiers {
        to_agent: tier(&found.noticed_by_senders),
        to_application: tier(&found.noticed_by_receivers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> Tiers {
        Tiers {
            to_agent: Tier::Automatic,
            to_application: Tier::OptIn {
                reason: String::new(),
            },
        }
    }

    #[test]
    fn a_workload_gets_what_it_asks_for_within_what_the_kernel_can() {
        use workload_flag::*;
        let tiers = mixed();
        assert_eq!(tiers.flags(ShortCircuit::Auto), SPLICE_TO_AGENT);
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

    #[test]
    fn what_applications_can_notice_is_for_those_that_opt_in() {
        let found = Findings {
            unsafe_because: None,
            noticed_by_senders: vec![],
            noticed_by_receivers: vec!["a", "b"],
        };
        let judged = tiers(&found);
        assert_eq!(judged.to_agent, Tier::Automatic);
        let reason = "here an application can notice it: a, b".to_owned();
        assert_eq!(judged.to_application, Tier::OptIn { reason });
        let unsafe_because = Some("no back-pressure");
        let found = Findings {
            unsafe_because,
            ..found
        };
        assert_eq!(tiers(&found), Tiers::off("no back-pressure"));
    }
}
