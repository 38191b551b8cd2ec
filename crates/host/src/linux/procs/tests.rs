use super::*;
use crate::linux::testing::{self, ConfigBytes, FakeDevice, FakeTree};

fn tree() -> (tempfile::TempDir, FakeTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
    let device = FakeDevice::new("0000:00:05.0".parse().unwrap(), &config).group(8);
    tree.add(&device).unwrap();
    for (pid, comm, target) in [
        (10, "qemu", "/dev/vfio/8"),
        (11, "sh", "/dev/null"),
        (12, "driver", ANONYMOUS),
        (13, "old", ANONYMOUS),
    ] {
        tree.file(&format!("proc/{pid}/comm"), format!("{comm}\n")).unwrap();
        tree.file(&format!("proc/{pid}/stat"), testing::process_stat(pid, comm, 7_000)).unwrap();
        tree.link(&format!("proc/{pid}/fd/7"), target).unwrap();
    }
    let fdinfo = "pos: 0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:00:05.0\n";
    tree.file("proc/12/fdinfo/7", fdinfo).unwrap();
    (dir, tree)
}

fn holders(tree: &FakeTree, node: &str, except: i32) -> Vec<(i32, String)> {
    let root = Root::new(tree.root());
    let sought = sought(&root, &[node.to_owned()]).unwrap();
    let mut found = find(&root, &sought, except).unwrap();
    without_guesses(&mut found);
    found.into_iter().map(|found| (found.pid, found.what)).collect()
}

#[test]
fn finds_who_has_the_node_or_its_device_open() {
    let (_dir, tree) = tree();
    let expected = [(10, "/dev/vfio/8".to_owned()), (12, "0000:00:05.0".to_owned())];
    assert_eq!(holders(&tree, "/dev/vfio/8", 0), expected);
    assert_eq!(holders(&tree, "/dev/vfio/8", 10), expected[1..]);
}

#[test]
fn a_device_that_cannot_be_told_is_answered_only_when_nothing_else_is_known() {
    let (_dir, tree) = tree();
    std::fs::remove_file(tree.root().join("proc/10/fd/7")).unwrap();
    std::fs::remove_file(tree.root().join("proc/12/fd/7")).unwrap();
    assert_eq!(holders(&tree, "/dev/vfio/8", 0), [(13, ANONYMOUS.to_owned())]);
    assert_eq!(holders(&tree, "/dev/vfio/9", 0), []);
}

#[test]
fn only_vfio_nodes_may_be_asked_for() {
    for good in [
        "/dev/iommu",
        "/dev/vfio/vfio",
        "/dev/vfio/12",
        "/dev/vfio/noiommu-0",
        "/dev/vfio/devices/vfio3",
        "/dev/vfio/devices/noiommu-vfio3",
        "/dev/vhost-vdpa-0",
    ] {
        assert!(is_node(good), "{good}");
    }
    for bad in [
        "/dev/sda",
        "/dev/vfio/",
        "/dev/vfio/../sda",
        "/dev/vfio/devices/3",
        "/dev/vhost-vdpa-",
        "",
        "8",
    ] {
        assert!(!is_node(bad), "{bad}");
        assert!(sought(&Root::new("/"), &[bad.to_owned()]).is_err());
    }
}

#[test]
fn a_process_that_can_not_be_looked_at_is_not_nobody() {
    let (_dir, tree) = tree();
    let root = Root::new(tree.root());
    let sought = sought(&root, &["/dev/vfio/9".to_owned()]).unwrap();
    assert_eq!(find(&root, &sought, 0).unwrap(), [], "whoever can be looked at hasn't got it");
    // What root may always look into, too: a table that isn't one answers ENOTDIR.
    tree.file("proc/14/fd", "").unwrap();
    let error = find(&root, &sought, 0).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOTDIR.raw_os_error()));
    assert!(error.to_string().contains("proc/14/fd"), "{error}");
    assert_eq!(find(&root, &sought, 14).unwrap(), [], "oneself needn't be looked at");
}

#[test]
fn a_descriptor_that_can_not_be_read_is_not_no_descriptor() {
    let (_dir, tree) = tree();
    let root = Root::new(tree.root());
    let sought = sought(&root, &["/dev/vfio/9".to_owned()]).unwrap();
    // Not a link: EINVAL.
    tree.file("proc/11/fd/8", "").unwrap();
    assert_eq!(find(&root, &sought, 0).unwrap_err().errno(), Some(Errno::INVAL.raw_os_error()));
}

#[test]
fn a_process_that_has_ended_meanwhile_has_nothing_open() {
    let (_dir, tree) = tree();
    let root = Root::new(tree.root());
    let sought = sought(&root, &["/dev/vfio/9".to_owned()]).unwrap();
    // In the list, and gone when it is looked at.
    std::fs::create_dir_all(tree.root().join("proc/15")).unwrap();
    tree.link("proc/16", "/nonexistent").unwrap();
    assert_eq!(find(&root, &sought, 0).unwrap(), []);
}

#[test]
fn the_other_threads_of_a_process_still_have_what_the_first_one_had() {
    let (_dir, tree) = tree();
    let root = Root::new(tree.root());
    std::fs::create_dir_all(tree.root().join("proc/17/fd")).unwrap();
    std::fs::create_dir_all(tree.root().join("proc/17/task/17/fd")).unwrap();
    tree.file("proc/17/comm", "threads\n").unwrap();
    tree.file("proc/17/stat", testing::process_stat(17, "threads", 7)).unwrap();
    tree.link("proc/17/task/18/fd/3", "/dev/vfio/9").unwrap();
    assert_eq!(holders(&tree, "/dev/vfio/9", 0), [(17, "/dev/vfio/9".to_owned())]);
    let real = std::thread::spawn(std::process::id).join().unwrap();
    let nobody = Sought { nodes: ["/dev/vfio/9".to_owned()].into(), devices: BTreeSet::new() };
    let own = Path::new("/proc").join(real.to_string());
    assert!(look(&own, &nobody).unwrap().open.is_empty(), "{}", root.path().display());
}

#[test]
fn the_parent_and_the_start_time_are_found_behind_any_name() {
    assert_eq!(parent_and_start_of(&testing::process_stat(7, "a) b (c)", 22)), Some((1, 22)));
    for garbage in ["", ")", "7 (x) S 1 2", "7 x"] {
        assert_eq!(parent_and_start_of(garbage), None);
    }
    let child = std::process::Command::new("sleep").arg("100").spawn();
    let mut child = child.unwrap();
    let dir = tree::open_dir(&Path::new("/proc").join(child.id().to_string())).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(parent_and_start_at(&dir).map(|(parent, _)| parent), Ok(own));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_user_is_named_with_the_start_time_of_the_process_that_was_looked_at() {
    let (_dir, tree) = tree();
    let root = Root::new(tree.root());
    let sought = sought(&root, &["/dev/vfio/8".to_owned()]).unwrap();
    assert!(find(&root, &sought, 0).unwrap().iter().all(|user| user.start_time == 7_000));
    // Without it a signal could reach whoever has the pid by then.
    tree.file("proc/10/stat", "10 (qemu) S").unwrap();
    assert_eq!(find(&root, &sought, 0).unwrap_err().errno(), Some(Errno::IO.raw_os_error()));
    std::fs::remove_file(tree.root().join("proc/10/stat")).unwrap();
    let found = find(&root, &sought, 0).unwrap();
    assert!(found.iter().all(|user| user.pid != 10), "it ended while it was looked at");
}
