//! What sysfs and `/proc` show, as bytes that nobody vouches for.

use berth_host::linux::testing::texts;

/// The first byte chooses the file, the others are what is in it.
pub(crate) fn check(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match which % 10 {
        0 => bars(rest),
        1 => uevent(rest),
        2 => regions(&text),
        3 => mounts(&text),
        4 => routes(&text),
        5 => stat(&text),
        6 => memory(&text),
        7 => configuration_space(rest),
        8 => modules(rest),
        _ => access_list(rest),
    }
}

fn bars(bytes: &[u8]) {
    let found = texts::bars(bytes);
    assert!(found.is_sorted_by(|one, next| one.index < next.index), "{found:?}");
    let mut lines = vec!["0x0 0x0 0x0".to_owned(); 6];
    for bar in &found {
        assert!(bar.index < 6 && bar.size_bytes > 0, "{bar:?}");
        let flags = u64::from(bar.io) * 0x100
            + u64::from(bar.prefetchable) * 0x2000
            + u64::from(bar.memory64) * 0x10_0000
            + 0x200;
        // From 1: a register at 0 of one byte is printed as one that isn't there.
        let (start, end) = match bar.size_bytes {
            u64::MAX => (0, u64::MAX),
            size => (1, size),
        };
        let line = format!("{start:#018x} {end:#018x} {flags:#018x}");
        *lines.get_mut(bar.index as usize).expect("one of six") = line;
    }
    assert_eq!(texts::bars(lines.join("\n").as_bytes()), found);
}

fn uevent(message: &[u8]) {
    let Some(found) = texts::uevent(message) else { return };
    let again = format!(
        "{0}@/devices\0ACTION={0}\0SUBSYSTEM=pci\0PCI_SLOT_NAME={1}\0SEQNUM=1\0",
        found.action, found.device
    );
    assert_eq!(texts::uevent(again.as_bytes()), Some(found));
}

fn regions(text: &str) {
    let found = texts::reserved_regions(text);
    assert!(found.len() <= text.lines().count());
    let mut again = String::new();
    for region in &found {
        assert!(region.first <= region.last, "{region:?} ends before it begins");
        again += &format!("{:#018x} {:#018x} {}\n", region.first, region.last, region.kind);
    }
    assert_eq!(texts::reserved_regions(&again), found);
}

fn mounts(text: &str) {
    // Any text at all is read; the lines that it is worth are no more than it has.
    assert!(texts::mounts(text).len() <= text.lines().count());
    assert!(texts::swaps(text).len() <= text.lines().count());
    // What is mounted under any name is found under that name.
    let plain: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    let kept = escaped(&plain);
    let line = format!("36 35 259:1 / /{kept} rw,noatime shared:1 - ext4 /dev/{kept} rw\n");
    let wanted = [String::from("259:1"), format!("/{plain}"), format!("/dev/{plain}")];
    assert_eq!(texts::mounts(&line), [wanted], "{line:?}");
    let line = format!("Filename Type Size Used Priority\n/{kept} file 1 0 -2\n");
    assert_eq!(texts::swaps(&line), [format!("/{plain}")], "{line:?}");
}

/// As the kernel writes a path.
fn escaped(path: &str) -> String {
    path.chars().fold(String::new(), |text, c| match c {
        ' ' => text + "\\040",
        '#' => text + "\\043",
        '\\' => text + "\\134",
        _ => text + c.encode_utf8(&mut [0; 4]),
    })
}

fn routes(text: &str) {
    for (interface, network) in texts::routes(text).into_iter().chain(texts::routes_v6(text)) {
        assert!(text.contains(&interface) && !interface.is_empty(), "{interface:?}");
        let Some((address, length)) = network.split_once('/') else {
            assert_eq!(network, "default");
            continue;
        };
        let address: std::net::IpAddr = address.parse().expect("an address");
        let length: u8 = length.parse().expect("a length");
        let most = if address.is_ipv4() { 32 } else { 128 };
        assert!(length <= most, "{network} by {interface}");
    }
}

fn stat(text: &str) {
    // A process may have any name, and it must not say when it was started.
    let name: String = text.chars().take(15).collect();
    let tail = "0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0";
    let line = format!("4711 ({name}) S 17 4711 {tail} 987654 1 2 3\n");
    let expected = texts::parent_and_start(&line);
    let plain = texts::parent_and_start(&format!("4711 (x) S 17 4711 {tail} 987654 1 2 3\n"));
    assert_eq!(expected, plain, "{line:?}");
    assert_eq!(plain.map(|found| found.0), Some(17));
    if let Some((parent, _)) = texts::parent_and_start(text) {
        assert!(
            text.contains(&parent.unsigned_abs().to_string()) || text.contains('0'),
            "{text:?}"
        );
    }
}

fn memory(text: &str) {
    let Some(bytes) = texts::total_memory(text) else { return };
    assert_eq!(bytes % 1024, 0);
    let again = format!("MemFree: 1 kB\nMemTotal:       {} kB\n", bytes / 1024);
    assert_eq!(texts::total_memory(&again), Some(bytes));
}

fn configuration_space(bytes: &[u8]) {
    let (found, steps) = texts::configuration_space(bytes);
    // Chains that go in circles end.
    assert!(steps <= 480, "{steps} steps");
    assert_eq!(found.is_some(), bytes.len() >= 64);
    assert_eq!(texts::configuration_space(bytes).0, found);
}

fn modules(bytes: &[u8]) {
    let mut space = [0; 64];
    space[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
    let driver = texts::driver_for(bytes, &space).expect("a configuration space");
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '.');
    let is_name = !driver.is_empty() && !driver.starts_with(['-', '.']);
    assert!(is_name && driver.chars().all(fits), "{driver:?} is no driver's name");
}

fn access_list(bytes: &[u8]) {
    let Some(list) = texts::Acl::read(bytes) else { return };
    assert_eq!(list.bytes(), bytes, "read and written");
    let (one, other) = (60_001, 60_002);
    let mut now = list.clone();
    now.allow(one);
    assert_eq!(now.user(one), Some(6));
    assert_eq!(now.user(other), list.user(other), "another user may more or less");
    assert_eq!(texts::Acl::read(&now.bytes()).as_ref(), Some(&now));
    now.forbid(one);
    assert_eq!(now.user(one), None);
    assert_eq!(now.user(other), list.user(other), "another user may more or less");
    assert_eq!(texts::Acl::read(&now.bytes()), Some(now));
}
