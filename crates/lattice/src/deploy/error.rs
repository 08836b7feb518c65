//! What can go wrong with deployments.

use std::{collections::BTreeMap, fmt, time::Duration};

use airssys_wasm_actor::registry::ComponentId;

use crate::{config::HostName, digest::Digest};

/// A component was not stored, or not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComponentError {
    /// It is too large.
    #[error("the component has {size} bytes or more, and {allowed} are allowed")]
    TooLarge {
        /// Bytes that it has at the least.
        size: u64,
        /// Bytes that it may have.
        allowed: u64,
    },
    /// No component of this digest is stored.
    #[error("no component {digest} is stored; `Lattice::put` stores it")]
    NotFound {
        /// The digest.
        digest: Digest,
    },
    /// What is stored under this digest has another.
    #[error("what is stored as the component {digest} is something else")]
    Altered {
        /// The digest.
        digest: Digest,
    },
    /// The servers did not store it, or did not give it.
    #[error("the lattice's components are not to be had now")]
    Store {
        /// The cause.
        #[source]
        source: async_nats::Error,
    },
}

/// A host does not accept components.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It does so already.
    #[error("this host accepts components already")]
    Accepting,
    /// It has left the lattice.
    #[error("this host has left the lattice")]
    Left,
}

/// A deployment was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// This host is not in the lattice now.
    #[error("this host is not in the lattice now")]
    NotJoined,
    /// Another change is under way.
    #[error("`{name}` is being changed by the host `{by}`; try again when that is done")]
    Busy {
        /// The deployment.
        name: ComponentId,
        /// Whose change it is.
        by: HostName,
    },
    /// The deployment was removed, or its records were lost, while it was changed.
    #[error("`{name}` was removed or lost while it was changed")]
    Overtaken {
        /// The deployment.
        name: ComponentId,
    },
    /// The deployment's record is larger than the servers take.
    #[error("the record of the deployment has {size} bytes, and {allowed} are allowed; make its manifest smaller")]
    TooLarge {
        /// Bytes that it has.
        size: usize,
        /// Bytes that it may have.
        allowed: usize,
    },
    /// The component is not to be had.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The records could not be written, and it is not known whether they were.
    #[error("the lattice's records could not be written")]
    Records {
        /// The cause.
        #[source]
        source: async_nats::Error,
    },
}

/// A component was not deployed: it is placed on no more hosts than before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// It was not placed on as many hosts as it was to be.
    #[error("`{name}` was to be placed on {missing} hosts more, and no others match and have room{}", failed(failures))]
    NotPlaced {
        /// The component's name.
        name: ComponentId,
        /// Hosts that are missing.
        missing: usize,
        /// Those that were tried, and why the component does not run there.
        failures: Vec<NotRun>,
    },
    /// Another version is deployed, or with another manifest or other labels.
    #[error("`{name}` is deployed in another way; roll it to another version, or undeploy it first")]
    Otherwise {
        /// The component's name.
        name: ComponentId,
    },
    /// A host has exported an actor of that name.
    #[error("`{name}` is the host `{holder}`'s")]
    NameTaken {
        /// The name.
        name: ComponentId,
        /// Who has it.
        holder: HostName,
    },
    /// The record was not changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// A roll did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollError {
    /// There is no such deployment.
    #[error("`{name}` is not deployed")]
    NotDeployed {
        /// The name.
        name: ComponentId,
    },
    /// It stopped at a host, which runs the version from before again. Hosts before it run the new version, those after it the old one.
    #[error("the roll of `{name}` stopped: {failure}")]
    Stopped {
        /// The component's name.
        name: ComponentId,
        /// Where it stopped, and why.
        failure: NotRun,
        /// What each host runs, as far as it has said.
        runs: BTreeMap<HostName, Option<Digest>>,
    },
    /// The record was not changed, or the change was overtaken.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// A host does not run what it was ordered to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotRun {
    /// Which.
    pub host: HostName,
    /// Why not.
    pub why: WhyNot,
}

/// Why a host does not run a version of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyNot {
    /// It does not have it, does not grant what it needs, or it did not start there.
    Refused {
        /// In the host's words.
        because: String,
    },
    /// It failed on probation.
    RolledBack,
    /// Its actor ended.
    Ended,
    /// The host is not in the lattice.
    Lost,
    /// The host did not say what came of it in time.
    Late {
        /// How long it had.
        longest: Duration,
    },
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host `{}` ", self.host)?;
        match &self.why {
            WhyNot::Refused { because } => write!(f, "refused it: {}", because.escape_debug()),
            WhyNot::RolledBack => f.write_str("rolled it back, as it failed on probation"),
            WhyNot::Ended => f.write_str("started it, and its actor ended"),
            WhyNot::Lost => f.write_str("is not in the lattice"),
            WhyNot::Late { longest } => write!(f, "did not say within {longest:?} what came of it"),
        }
    }
}

fn failed(failures: &[NotRun]) -> String {
    failures.iter().map(|failure| format!("; {failure}")).collect()
}
