//! `/proc/net/route` and `/proc/net/ipv6_route`: which interfaces carry routes.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A route by an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::linux) struct Route {
    pub interface: String,
    /// `default`, or the network.
    pub network: String,
}

/// The flag of a route that is in use.
const UP: u32 = 0x1;
/// The flag of an IPv6 route that refuses.
const REJECT: u32 = 0x200;

/// IPv4 routes; link-local networks are left out.
pub(in crate::linux) fn parse_v4(text: &str) -> Vec<Route> {
    text.lines().skip(1).filter_map(line_v4).collect()
}

fn line_v4(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let (network, flags, mask) = (hex(1)?, hex(3)?, hex(7)?);
    // The kernel prints the bytes as they lie in memory, which is network order.
    let address = Ipv4Addr::from(network.to_ne_bytes());
    if flags & UP == 0 || address.is_link_local() {
        return None;
    }
    let network = match (network, mask) {
        (0, 0) => "default".to_owned(),
        _ => format!("{address}/{}", mask.count_ones()),
    };
    Some(Route { interface: (*fields.first()?).to_owned(), network })
}

/// IPv6 routes; link-local and multicast networks, which every interface has, are left out.
pub(in crate::linux) fn parse_v6(text: &str) -> Vec<Route> {
    text.lines().filter_map(line_v6).collect()
}

fn line_v6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let network = u128::from_str_radix(fields.first()?, 16).ok()?;
    let length = u8::from_str_radix(fields.get(1)?, 16).ok().filter(|length| *length <= 128)?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let interface = *fields.get(9)?;
    let address = Ipv6Addr::from(network);
    let everywhere = address.is_unicast_link_local() || address.is_multicast();
    if flags & UP == 0 || flags & REJECT != 0 || everywhere || interface == "lo" {
        return None;
    }
    let network = match (network, length) {
        (0, 0) => "default".to_owned(),
        _ => format!("{address}/{length}"),
    };
    Some(Route { interface: interface.to_owned(), network })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ipv4() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth2\t0003A8C0\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0
junk
";
        let routes = parse_v4(text);
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0], Route { interface: "eth0".into(), network: "default".into() });
        assert_eq!(routes[1].network, "192.168.2.0/24");
    }

    #[test]
    fn reads_ipv6() {
        let zero = "0".repeat(32);
        let text = format!(
            "{zero} 00 {zero} 00 fe80{} 00000400 00000001 00000000 00000003 eth0\n\
             fe80{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n\
             fd00{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n",
            "0".repeat(28),
            "0".repeat(28),
            "0".repeat(28),
        );
        let routes = parse_v6(&text);
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0], Route { interface: "eth0".into(), network: "default".into() });
        assert_eq!(routes[1], Route { interface: "eth1".into(), network: "fd00::/64".into() });
    }
}
