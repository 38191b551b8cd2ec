//! Addresses of devices: one device has one written form, and what is read is what was written.

use berth_host::PciAddress;

/// Checks whatever the bytes say.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<PciAddress>() {
        Ok(address) => accepted(text, address),
        Err(error) => {
            let said = error.to_string();
            // Quoted, so that control characters don't get into a log.
            let begin = format!("{:?}", text.chars().take(80).collect::<String>());
            assert!(said.contains(&begin), "{said:?} doesn't name {begin}");
            assert!(said.len() < 1000, "{} bytes about {} bytes", said.len(), text.len());
        }
    }
}

fn accepted(text: &str, address: PciAddress) {
    let full = address.to_string();
    assert_eq!(full.parse(), Ok(address), "{text:?} is printed as {full:?}");
    // It becomes part of paths.
    let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    assert!(full.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'.')), "{full:?}");
    assert!(!full.contains(".."), "{full:?}");
    let (place, function) = full.rsplit_once('.').expect("a function");
    assert!(matches!(function.as_bytes(), [b'0'..=b'7']), "{full:?}");
    let libvirt = format!("pci_{}_{function}", place.replace(':', "_"));
    assert_eq!(libvirt.parse(), Ok(address), "{libvirt:?}");
    // What was accepted says the same digits: nothing else was read into it.
    let digits = |text: &str| -> String {
        let text = text.strip_prefix("pci_").unwrap_or(text).to_ascii_lowercase();
        text.chars().filter(char::is_ascii_hexdigit).collect()
    };
    let (given, printed) = (digits(text), digits(&full));
    let same = printed.ends_with(&given)
        || given.trim_start_matches('0') == printed.trim_start_matches('0');
    assert!(same, "{text:?} is read as {full:?}");
    let json = serde_json::to_string(&address).expect("JSON");
    assert_eq!(serde_json::from_str::<PciAddress>(&json).ok(), Some(address), "{json}");
}
