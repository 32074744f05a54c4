//! The name that a wrapper is called by. It determines the wrapper's table in the file, and its
//! inner shim.

use std::path::Path;

const PREFIX: &str = "containerd-shim-";
const SUFFIX: &str = "-v2";
/// The wrapper's own name. With the suffix `-NAME` the wrapper wraps the shim of that name.
const OWN: &str = "coroner";

/// `coroner-kata` of `containerd-shim-coroner-kata-v2`, `kata` of `containerd-shim-kata-v2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrapperName(Option<String>);

impl WrapperName {
    /// Parses the path that a program is called by. A path that is not a shim's has no name, and
    /// the common keys apply.
    pub fn of(called_as: &Path) -> Self {
        let file = called_as.file_name().and_then(|file| file.to_str());
        let name = file.and_then(|file| file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        Self(name.filter(|name| !name.is_empty()).map(str::to_owned))
    }

    /// The names of a `[runtime.NAME]` that apply: the first that the file contains.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.0.as_deref().into_iter().chain(self.wrapped())
    }

    /// NAME of `containerd-shim-coroner-NAME-v2`.
    pub fn wrapped(&self) -> Option<&str> {
        self.0.as_deref()?.strip_prefix(OWN)?.strip_prefix('-').filter(|name| !name.is_empty())
    }

    /// NAME of the stock shim that it wraps, unless the file has an `inner`: runc's for the
    /// wrapper's own name.
    pub fn shim(&self) -> &str {
        let named = || self.0.as_deref().filter(|name| *name != OWN && !name.starts_with("coroner-"));
        self.wrapped().or_else(named).unwrap_or("runc")
    }

    /// The file name of that stock shim.
    pub fn inner(&self) -> String {
        format!("{PREFIX}{}{SUFFIX}", self.shim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_decides_table_and_inner_shim() {
        for (called, tables, shim) in [
            ("containerd-shim-coroner-v2", &["coroner"] as &[&str], "runc"),
            ("/usr/bin/containerd-shim-coroner-kata-v2", &["coroner-kata", "kata"], "kata"),
            ("containerd-shim-coroner-kata-fc-v2", &["coroner-kata-fc", "kata-fc"], "kata-fc"),
            ("/opt/bin/containerd-shim-kata-v2", &["kata"], "kata"),
            ("containerd-shim-runc-v2", &["runc"], "runc"),
            ("containerd-shim-coroner--v2", &["coroner-"], "runc"),
            ("containerd-shim--v2", &[], "runc"),
            ("wrapper", &[], "runc"),
            ("/", &[], "runc"),
        ] {
            let name = WrapperName::of(Path::new(called));
            assert_eq!(name.tables().collect::<Vec<_>>(), tables, "{called}");
            assert_eq!(name.shim(), shim, "{called}");
        }
    }
}
