//! Which processes come from which.

use std::fs;

use anyhow::Result;

/// The processes that have this one as their parent.
///
/// # Errors
/// There is no `/proc`.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in front may hold anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent == Some(pid.to_string().as_str())
            && let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            found.push(child);
        }
    }
    Ok(found)
}

/// How many processes come from this one, and from those.
///
/// # Errors
/// As [`children`].
pub fn descendants(pid: u32) -> Result<usize> {
    let mut count = 0;
    let mut left = children(pid)?;
    while let Some(next) = left.pop() {
        count += 1;
        left.extend(children(next)?);
    }
    Ok(count)
}
