//! The tables as a document.

/// Renders `docs/ownership.md`.
pub fn render() -> String {
    String::new()
}
