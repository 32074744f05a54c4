//! Paths of cgroups, below the hierarchy's root.

/// Whether one path is strictly below another, which is not the root.
pub(super) fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}
