//! Which devices may be given away at all, by rules of the configuration.

use berth_host::{DeviceFacts, PciAddress};
use berth_ownership::{Group, Reason, Refusal};

use super::Snapshot;

/// What a rule says of the devices that it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// They may be given away.
    Allow,
    /// They may not.
    Deny,
}

/// One rule. It fits a device that all its parts fit; without any it fits every device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// What it says.
    pub verdict: Ruling,
    /// The beginning of a class code, in lower case.
    pub class: Option<String>,
    /// Vendor id.
    pub vendor: Option<u16>,
    /// Device id.
    pub device: Option<u16>,
    /// A full address, in which `*` stands for any text.
    pub address: Option<String>,
    /// Why, for whoever is refused.
    pub note: String,
    /// Where it stands, `FILE:LINE`.
    pub place: String,
}

impl DeviceRule {
    fn fits(&self, facts: &DeviceFacts) -> bool {
        let class = || format!("{:06x}", facts.class);
        self.vendor.is_none_or(|vendor| vendor == facts.vendor)
            && self.device.is_none_or(|device| device == facts.device)
            && self.class.as_ref().is_none_or(|prefix| class().starts_with(prefix.as_str()))
            && self.address.as_ref().is_none_or(|pattern| is_like(facts.address, pattern))
    }
}

/// Rules in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceRules(pub Vec<DeviceRule>);

impl DeviceRules {
    /// The rule that keeps a device from being given away. The first that fits counts; without one
    /// every device may be given away.
    #[must_use]
    pub fn denies(&self, facts: &DeviceFacts) -> Option<&DeviceRule> {
        let first = self.0.iter().find(|rule| rule.fits(facts))?;
        (first.verdict == Ruling::Deny).then_some(first)
    }

    /// Refuses a group with a member that a rule keeps: whoever has a group has all of it.
    ///
    /// # Errors
    /// `DENIED_BY_RULE`.
    pub fn check(&self, snapshot: &Snapshot, group: &Group) -> Result<(), Box<Refusal>> {
        let members = group.devices.iter().filter_map(|id| snapshot.device_by_id(id));
        for facts in members.filter(|facts| !facts.bridge) {
            if let Some(rule) = self.denies(facts) {
                let at = facts.address;
                let text =
                    format!("{at} of group {} is not given away: the rule at {rule}", group.id);
                let way_out =
                    format!("choose another device, or change the rule at {}", rule.place);
                let refusal = Refusal::new(Reason::DeniedByRule, at, text);
                return Err(refusal.with_resolve(vec![way_out]));
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.place)?;
        if self.note.is_empty() { Ok(()) } else { write!(f, ", {}", self.note) }
    }
}

fn is_like(address: PciAddress, pattern: &str) -> bool {
    let text = address.to_string();
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn a_star_is_any_text() {
        let at = "0000:65:00.1".parse().unwrap();
        for yes in ["0000:65:00.1", "*", "0000:65:*", "*.1", "0000:*:00.*", "0000:65:00.1*"] {
            assert!(is_like(at, yes), "{yes}");
        }
        for no in ["0000:65:00.0", "0000:66:*", "*.0", "", "0001*", "*:65:00", "0000:65:00.1.*"] {
            assert!(!is_like(at, no), "{no}");
        }
    }
}
