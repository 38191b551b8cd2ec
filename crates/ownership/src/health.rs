//! What the machine shows against a device: the causes of its being degraded or failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, UnixMs};
use crate::model::Condition;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident $name:literal $condition:ident;)*) => {
        /// What stands against a device.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum CauseCode {
            $($(#[$doc])* #[serde(rename = $name)] $code,)*
        }

        impl CauseCode {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$code),*];

            /// Its name on every surface.
            pub fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// What a device is while it stands.
            pub fn condition(self) -> Condition {
                match self { $(Self::$code => Condition::$condition,)* }
            }
        }
    };
}

codes! {
    /// The configuration space doesn't answer: all ones.
    ConfigGone "CONFIG_GONE" Failed;
    /// The kernel takes it to be awake, and it has no power.
    PowerState "POWER_STATE" Failed;
    /// Uncorrectable errors after which the link isn't reliable.
    AerFatal "AER_FATAL" Failed;
    /// Uncorrectable errors by which transactions were lost.
    AerNonfatal "AER_NONFATAL" Degraded;
    /// The link has fewer lanes than both of its ends could do.
    LinkWidth "LINK_WIDTH" Degraded;
    /// It is slower than both could do, though the device doesn't save power.
    LinkSpeed "LINK_SPEED" Degraded;
    /// Resets failed, and none has worked since.
    ResetFailed "RESET_FAILED" Degraded;
}

impl fmt::Display for CauseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that stands against a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// What.
    pub code: CauseCode,
    /// In numbers: `3`, `x4 of x16`.
    pub what: String,
    /// Since when.
    pub since_ms: UnixMs,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.what.is_empty() { Ok(()) } else { write!(f, " {}", self.what) }
    }
}

/// Uncorrectable errors, as the kernel counted them since the device appeared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// After which the link is.
    pub nonfatal: u64,
    /// After which it isn't.
    pub fatal: u64,
}

/// How far a device's errors were counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The errors that are held against nobody any more.
    pub base: Errors,
    /// The errors that there were.
    pub seen: Errors,
    /// When they became more, in milliseconds of CLOCK_BOOTTIME,
    pub grew_boot_ms: u64,
    /// of this boot: the kernel counts anew on each.
    pub boot_id: BootId,
}

/// What the machine shows against a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// By code, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Its errors; `None`: none were counted on this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
}

impl Health {
    /// The worst that a cause says.
    pub fn condition(&self) -> Condition {
        self.causes.iter().map(|cause| cause.code.condition()).max().unwrap_or_default()
    }

    /// The causes in words, the worst first.
    pub fn words(&self) -> String {
        let words: Vec<String> = self.causes.iter().map(ToString::to_string).collect();
        words.join(", ")
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
